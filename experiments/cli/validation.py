"""Checks of a run's flags against each other, its data and its network, before anything is computed."""

import contextlib
import math
from typing import Any

import jax

import data
from data.dataset import Dataset
from experiments.cli.flags import UsageError, require
from experiments.setup import preprocessing
from models import summary
from train.parallel import data_parallel
from train.task import Task


@contextlib.contextmanager
def usage_errors():
    """Inside it a ValueError is a UsageError, but a DataError itself."""
    try:
        yield
    except data.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def train_split(dataset: Dataset) -> tuple[Any, Any]:
    """(images, labels) that are trained on."""
    if "train" not in dataset.splits:
        raise UsageError(f"{dataset.name} has no split train, only {', '.join(dataset.splits)}")
    return dataset.splits["train"]


def lower_precision(config: dict) -> str | None:
    """The type that a network computes in where it is not its parameters' own."""
    return None if config["dtype"] == "float32" else config["dtype"]


def check(config: dict, examples: int, devices: int) -> int:
    """The number of steps, after every number was checked against what is possible."""
    for name in ("batch_size", "steps", "epochs", "learning_rate", "log_every", "keep"):
        value = config[name]
        require(value is None or value > 0, f"--{name}={value}: must be more than 0")
        require(value is None or math.isfinite(value), f"--{name}={value}: must be finite")
    for name in ("weight_decay", "warmup_steps", "eval_every", "save_every", "seed"):
        require(0 <= config[name] < math.inf, f"--{name}={config[name]}: must be 0 or more, and finite")
    require(config["seed"] < 2**32, f"--seed={config['seed']}: accepted are 0 to {2**32 - 1}")
    require(0 <= config["momentum"] < 1, f"--momentum={config['momentum']}: accepted are values in [0, 1)")
    smoothing = config.get("label_smoothing", 0.0)
    require(0 <= smoothing < 1, f"--label_smoothing={smoothing}: accepted are values in [0, 1)")
    require(not config["nesterov"] or config["momentum"] > 0, "--nesterov needs a --momentum above 0")
    passes, update = config.get("fc_passes", 1), config.get("fc_update", "accumulate")
    plain = passes == 1 and update == "accumulate"
    require(
        plain or config["parallelism"] == "hybrid",
        f"--fc_passes={passes} --fc_update={update} need --parallelism=hybrid",
    )
    batch = config["batch_size"]
    require(batch <= examples, f"--batch_size={batch}: the training split has {examples} examples")
    lower = batch // devices * devices
    near = " or ".join(str(size) for size in (lower, lower + devices) if size)
    require(batch % devices == 0, f"--batch_size={batch} does not divide by {devices} devices; nearest: {near}")
    parts = config.get("accumulate", 1)
    require(
        parts > 0 and batch // devices % parts == 0,
        f"--accumulate={parts}: must divide a device's {batch // devices} rows of the batch",
    )
    epochs = 10.0 if config["epochs"] is None else config["epochs"]
    steps = config["steps"] or max(1, math.ceil(epochs * examples / batch))
    require(steps < 2**31, f"{steps} steps: must be fewer than {2**31}")
    warm = config["warmup_steps"]
    require(warm < steps or warm == 0, f"--warmup_steps={warm}: must be fewer than the run's {steps} steps")
    return steps


def check_shapes(config: dict, setup) -> None:
    """Raises UsageError where the network can't see the images, or its weights do not fit the smaller ones that a run
    begins with."""
    _, small = preprocessing.early(config, setup.input_shape, 1)
    size, weights = f"--early_size={config['early_size']}: ", []
    shapes = {"": setup.input_shape} | ({size: (*small, setup.input_shape[2])} if small else {})
    for prefix, shape in shapes.items():
        try:
            weights.append([layer.parameters for layer in summary.layers(setup.model, shape)])
        except ValueError as error:
            raise UsageError(f"{prefix}{error}") from None
    require(weights[0] == weights[-1], f"{size}the weights of --model={config['model']} depend on the image size")


def check_hybrid(config: dict, model, devices: int) -> None:
    passes, rows = config["fc_passes"], config["batch_size"] // devices
    require(hasattr(model, "SHARDED"), f"--parallelism=hybrid is for alexnet_owt and vggN, not {config['model']}")
    # It makes whole matrices orthogonal; a device holds some of their columns.
    require(config["optimizer"] != "muon", "--optimizer=muon is not for --parallelism=hybrid")
    for name, default in (("early_size", None), ("accumulate", 1), ("remat", False)):
        require(config[name] == default, f"--{name} is not for --parallelism=hybrid")
    require(
        passes > 0 and rows % passes == 0,
        f"--fc_passes={passes}: must divide a device's {rows} rows of the batch",
    )


def check_steps(task: Task, state, *, batch, devices: int, always: bool) -> None:
    """Traces the task's steps for arrays or shapes. Raises ValueError where one forgets a reduction over the devices;
    for a single device they are traced where `always` asks for it."""
    if devices == 1 and not always:
        return
    shapes = jax.eval_shape(task.shard, state)
    for step in filter(None, (task.train_step, task.early_step)):
        data_parallel.check_reductions(step, shapes, batch=batch, devices=devices, is_sharded=task.is_sharded)


def layer_specs(config: dict, model, input_shape) -> list:
    """The network as a list of layers for --gradients=backpropagation. Raises UsageError where it is none, or where a
    flag asks for what the written-out equations don't have."""
    known = "perceptron, mlp and lenet"
    require(hasattr(model, "layer_specs"), f"--gradients=backpropagation is for {known}, not {config['model']}")
    plain = {"label_smoothing": 0.0, "early_size": None, "dtype": "float32", "remat": False, "parallelism": "data"}
    for name, value in plain.items():
        require(config[name] == value, f"--{name}={config[name]} is not for --gradients=backpropagation")
    try:
        return model.layer_specs(input_shape)
    except ValueError as error:
        raise UsageError(f"--gradients=backpropagation: {error}") from None
