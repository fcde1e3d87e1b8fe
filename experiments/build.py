"""From flags to a data set, a network and a task: the same for training, evaluation and prediction."""

import functools
import math
from typing import Any, NamedTuple

import data
import models
from data import augment
from data.dataset import Dataset, binary_task, pixel_statistics
from experiments.flags import UsageError
from train import classification, optimizers, parallel
from train.task import Task

MODEL_FLAGS = ("hidden", "activation", "slope", "dropout", "depth", "growth_rate", "bottleneck", "compression")


class Setup(NamedTuple):
    dataset: Dataset
    model: Any
    task: Task
    steps: int
    learning_rate: Any
    axis: str | None


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def network(config: dict, classes: int, axis: str | None):
    """The Linen module. Raises UsageError for an unknown network or an option that it does not take."""
    values = {name: config[name] for name in MODEL_FLAGS if config[name] is not None}
    if "hidden" in values:
        try:
            values["hidden"] = tuple(int(size) for size in values["hidden"])
        except ValueError:
            raise UsageError(f"--hidden={','.join(values['hidden'])}: whole numbers with commas are accepted") from None
        require(
            min(values["hidden"], default=1) > 0, f"--hidden={','.join(config['hidden'])}: sizes must be more than 0"
        )
    slope = config["slope"]
    require(slope is None or config["activation"] == "leaky_relu", f"--slope={slope} needs --activation=leaky_relu")
    require(slope is None or math.isfinite(slope), f"--slope={slope}: must be finite")
    for name in ("depth", "growth_rate", "compression"):
        require(config[name] is None or config[name] > 0, f"--{name}={config[name]}: must be more than 0")
    require((config["compression"] or 0) <= 1, f"--compression={config['compression']}: accepted are values in (0, 1]")
    require(0 <= (config["dropout"] or 0) < 1, f"--dropout={config['dropout']}: accepted are rates in [0, 1)")
    try:
        known = models.options(config["model"])
        for name in values:
            taken = ", ".join(f"--{flag}" for flag in MODEL_FLAGS if flag in known) or "none of these flags"
            require(name in known, f"--{name} is not for --model={config['model']}, which takes {taken}")
        if "activation" in values:
            from models.layers import activation

            activation(values["activation"])
        devices = {"axis_name": axis, "sync_bn": config["sync_bn"]}
        return models.create(config["model"], classes, **values, **{k: v for k, v in devices.items() if k in known})
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_dataset(config: dict) -> Dataset:
    """The data set, as a binary task where --positive asks for one."""
    try:
        if config["dataset"] not in data.REGISTRY:
            data.load(config["dataset"])
        require(config["negative"] is None or config["positive"] is not None, "--negative needs --positive")
        if config["model"] == "logistic" and config["positive"] is None:
            raise UsageError("--model=logistic is a binary task: give --positive=DIGIT (and --negative=DIGIT)")
        dataset = data.load(config["dataset"])
        return binary_task(dataset, config["positive"], config["negative"]) if config["positive"] else dataset
    except data.DataError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


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
    require(not config["nesterov"] or config["momentum"] > 0, "--nesterov needs a --momentum above 0")
    batch = config["batch_size"]
    require(batch <= examples, f"--batch_size={batch}: the training split has {examples} examples")
    lower = batch // devices * devices
    near = " or ".join(str(size) for size in (lower, lower + devices) if size)
    require(batch % devices == 0, f"--batch_size={batch} does not divide by {devices} devices; nearest: {near}")
    epochs = 10.0 if config["epochs"] is None else config["epochs"]
    steps = config["steps"] or max(1, math.ceil(epochs * examples / batch))
    require(steps < 2**31, f"{steps} steps: must be fewer than {2**31}")
    warm = config["warmup_steps"]
    require(warm < steps or warm == 0, f"--warmup_steps={warm}: must be fewer than the run's {steps} steps")
    return steps


def setup(config: dict, devices: int, statistics=None) -> Setup:
    """Everything a run needs. `statistics`: (mean, std) of an earlier run, else of the training split."""
    axis = parallel.axis_of(devices)
    dataset = load_dataset(config)
    images = dataset.splits["train"][0]
    steps = check(config, len(images), devices)
    model = network(config, len(dataset.class_names), axis)
    mean, std = statistics or pixel_statistics(images)
    rate = optimizers.schedule(
        config["schedule"], learning_rate=config["learning_rate"], steps=steps, warmup_steps=config["warmup_steps"]
    )
    optimizer = optimizers.create(
        config["optimizer"],
        rate,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
    )
    eval_prepare = functools.partial(augment.normalize, mean=mean, std=std)
    distort = augment.AUGMENTATIONS[config["augment"]]

    def train_prepare(images, keys):
        return eval_prepare(distort(images, keys) if distort else images)

    task = classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=images.shape[1:],
        class_names=dataset.class_names,
        train_prepare=train_prepare,
        eval_prepare=eval_prepare,
        axis=axis,
    )
    return Setup(dataset, model, task, steps, rate, axis)
