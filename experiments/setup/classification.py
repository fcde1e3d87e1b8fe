"""From flags to a data set, a network and a task: the same for training, evaluation and prediction."""

import functools
import math
from typing import Any, NamedTuple

import data
import models
from data import augment, cifar10, generated, stream
from data.dataset import Dataset, binary_task, pixel_covariance, pixel_statistics
from experiments.cli import validation
from experiments.cli.flags import UsageError, require
from experiments.setup import preprocessing
from train import backpropagation, optimizers
from train.parallel import hybrid
from train.parallel.devices import axis_of
from train.task import Task
from train.tasks import classification

MODEL_FLAGS = (
    *("hidden", "activation", "slope", "dropout", "depth", "blocks", "growth_rate", "bottleneck", "compression"),
    *("dropout_after", "local_response_norm", "v1_5"),
)
# Pixels of the training images that a network is fitted to: 512 images of CIFAR-10.
PATCH_PIXELS = 524_288


class About(NamedTuple):
    """What a run's network was made for; kept in run.json and in each checkpoint."""

    image_shape: tuple[int, ...]  # [H, W, C] of the pictures, before any crop
    mean: tuple[float, ...]  # by channel, on the scale 0 to 255
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    covariance: tuple[tuple[float, ...], ...] = ()  # of the channels, for --colour_noise; empty without it


class Setup(NamedTuple):
    about: Any
    input_shape: tuple[int, ...]  # [H, W, C] that the network sees
    model: Any
    task: Task
    learning_rate: Any


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
    for name in ("depth", "blocks", "growth_rate", "compression"):
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
        settings = {"axis_name": axis, "sync_bn": config["sync_bn"]}
        settings["author_weights"] = config.get("parameter_groups") == "author"
        return models.create(config["model"], classes, **values, **{k: v for k, v in settings.items() if k in known})
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_dataset(config: dict, *, shape: tuple[int, int, int] | None = None) -> Dataset:
    """The data set, as a binary task where --positive asks for one; picture files are resized to `shape` if given."""
    with validation.usage_errors():
        data.find(config["dataset"])
        size, kind = config["image_size"], config["augment"]
        require(size is None or size > 0, f"--image_size={size}: must be more than 0")
        require(config["negative"] is None or config["positive"] is not None, "--negative needs --positive")
        if config["model"] == "logistic" and config["positive"] is None:
            raise UsageError("--model=logistic is a binary task: give --positive=DIGIT (and --negative=DIGIT)")
        if config["dry_run_data"]:
            dataset = generated.load(stream.view(size, kind) if size else None)
        else:
            dataset = data.load(
                config["dataset"],
                config["data_dir"],
                skip_corrupt=config["skip_corrupt"],
                image_size=size,
                augment=kind,
                shape=shape,
            )
        streamed = any(isinstance(images, stream.Stream) for images, _ in dataset.splits.values())
        where = "--dataset=folder or tfds:NAME"
        require(streamed or size is None, f"--image_size={size} is for {where}, not {config['dataset']}")
        require(
            streamed or kind not in ("crop", "resized_crop"),
            f"--augment={kind} is for {where} with pictures of more than 64 pixels a side, or with --image_size",
        )
        require(
            not config["alternate_flip"] or (kind == "flip_shift" and not streamed),
            "--alternate_flip is for --augment=flip_shift with pictures held in memory",
        )
        if config["train_batches"]:
            dataset = cifar10.train_on(dataset, config["train_batches"])
        return binary_task(dataset, config["positive"], config["negative"]) if config["positive"] else dataset


def describe(config: dict, dataset: Dataset) -> About:
    """The constants of a data set, from its training split; the covariance from a sample, where noise needs it."""
    images, _ = validation.train_split(dataset)
    streamed = isinstance(images, stream.Stream)
    mean, std = images.pixel_statistics() if streamed else pixel_statistics(images)
    covariance = pixel_covariance(images[stream.sample(len(images), stream.SAMPLE)]) if config["colour_noise"] else ()
    return About(images.shape[1:], mean, std, dataset.class_names, covariance)


def fit(config: dict, state, images, about: About):
    """`state`, where the network's start depends on the training images fitted to a fixed sample of them."""
    data_dependent_init = models.spec(config["model"]).data_dependent_init
    if data_dependent_init is None or config["init_from"]:
        return state
    height, width = images.shape[1:3]
    count = max(1, PATCH_PIXELS // (height * width))
    sample = images[stream.sample(len(images), count)]
    fitted = data_dependent_init(state.batch_stats, augment.normalize(sample, about.mean, about.std))
    return state._replace(batch_stats=fitted)


def eval_split(dataset: Dataset, asked: str | None = None) -> str:
    """The split that a run is scored on: the one `asked` for, or test, else val or, as tfds has it, validation."""
    for split in (asked,) if asked else ("test", "val", "validation"):
        if split in dataset.splits:
            return split
    known = ", ".join(dataset.splits)
    require(not asked, f"--eval_split={asked}: {dataset.name} has {known}")
    raise UsageError(f"{dataset.name} has no split test, val or validation, only {known}")


def gradient_descent(config: dict, steps: int):
    """(learning-rate schedule, optimizer). Raises UsageError for numbers that make none."""
    try:
        drops = [float(drop) for drop in config["drops"]]
    except ValueError:
        raise UsageError(f"--drops={','.join(config['drops'])}: numbers with commas are accepted") from None
    require(all(0 < drop < 1 for drop in drops), f"--drops={','.join(config['drops'])}: must lie between 0 and 1")
    factor = config["drop_factor"]
    require(1 < factor < math.inf, f"--drop_factor={factor}: must be finite and more than 1")
    rate = optimizers.schedule(
        config["schedule"],
        learning_rate=config["learning_rate"],
        steps=steps,
        warmup_steps=config["warmup_steps"],
        drops=drops,
        drop_factor=factor,
    )
    author = config["parameter_groups"] == "author"
    groups = models.spec(config["model"]).author_groups if author else ()
    known = ", ".join(name for name, spec in models.MODELS.items() if spec.author_groups)
    require(not author or bool(groups), f"--parameter_groups=author is for --model={known}")
    optimizer = optimizers.create(
        config["optimizer"],
        rate,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        groups=groups,
    )
    return rate, optimizer


def checked_setup(config: dict, about: About, *, devices: int, steps: int) -> Setup:
    """`setup`, where the network can see the images."""
    return setup(config, about, devices=devices, steps=steps, checked=True)


def setup(config: dict, about: About, *, devices: int, steps: int, checked: bool = False) -> Setup:
    """The network and its task, for a new run or for one that is read again; `checked` against what it sees."""
    axis = axis_of(devices)
    model = network(config, len(about.class_names), axis)
    other = {"segmentation": "segment", "generation": "generate"}.get(models.spec(config["model"]).task)
    require(other is None, f"--model={config['model']} is for experiments.{other}")
    rate, optimizer = gradient_descent(config, steps)
    precision = {"dtype": validation.lower_precision(config)}
    train_prepare, eval_prepare, input_shape = preprocessing.prepare(config, about)
    written_out = None
    if config["gradients"] == "backpropagation":
        layers = validation.layer_specs(config, model, input_shape)
        written_out = functools.partial(backpropagation.gradients, layers=layers, prepare=train_prepare, axis=axis)
    task = classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=input_shape,
        class_names=about.class_names,
        train_prepare=train_prepare,
        eval_prepare=eval_prepare,
        axis=axis,
        smoothing=config["label_smoothing"],
        early=preprocessing.early(config, input_shape, steps),
        **precision,
        accumulate=config["accumulate"],
        remat=config["remat"],
        gradients=written_out,
    )
    made, hybrid_parallel = Setup(about, input_shape, model, task, rate), config["parallelism"] == "hybrid"
    if hybrid_parallel:
        validation.check_hybrid(config, model, devices)
    if checked:  # Before the hybrid step's own shapes are traced.
        validation.check_shapes(config, made)
    if hybrid_parallel:
        task = hybrid.parallelized(
            task,
            model=model,
            optimizer=optimizer,
            prepare=train_prepare,
            smoothing=config["label_smoothing"],
            axis=axis,
            devices=devices,
            passes=config["fc_passes"],
            update=config["fc_update"],
            **precision,
        )
    return made._replace(task=task)


def read_again(run: dict) -> Setup:
    """The setup of run.json, on one device."""
    about = About(*(tuple(run[name]) for name in ("image_shape", "mean", "std", "class_names")))
    about = about._replace(covariance=tuple(map(tuple, run.get("covariance", ()))))
    return setup(run["flags"], about, devices=1, steps=run["steps"])
