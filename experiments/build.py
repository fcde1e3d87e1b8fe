"""From flags to a data set, a network and a task: the same for training, evaluation and prediction."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

import data
import models
from data import augment, cifar10, decode, pictures, stream
from data.dataset import Dataset, binary_task, pixel_statistics
from experiments.flags import UsageError
from models import table
from train import classification, optimizers, parallel
from train.task import Task

MODEL_FLAGS = ("hidden", "activation", "slope", "dropout", "depth", "growth_rate", "bottleneck", "compression")
# Pixels of the training images that a network is fitted to: 512 images of CIFAR-10.
PATCH_PIXELS = 524_288


class About(NamedTuple):
    """What a run's network was made for; kept in run.json and in each checkpoint."""

    image_shape: tuple[int, ...]  # [H, W, C] of the pictures, before any crop
    mean: tuple[float, ...]  # by channel, on the scale 0 to 255
    std: tuple[float, ...]
    class_names: tuple[str, ...]


class Setup(NamedTuple):
    about: About
    input_shape: tuple[int, ...]  # [H, W, C] that the network sees
    model: Any
    task: Task
    learning_rate: Any


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
        data.find(config["dataset"])
        size, kind = config["image_size"], config["augment"]
        require(size is None or size > 0, f"--image_size={size}: must be more than 0")
        require(config["negative"] is None or config["positive"] is not None, "--negative needs --positive")
        if config["model"] == "logistic" and config["positive"] is None:
            raise UsageError("--model=logistic is a binary task: give --positive=DIGIT (and --negative=DIGIT)")
        dataset = data.load(
            config["dataset"], config["data_dir"], skip_corrupt=config["skip_corrupt"], image_size=size, augment=kind
        )
        streamed = any(isinstance(images, stream.Stream) for images, _ in dataset.splits.values())
        where = "--dataset=folder or tfds:NAME"
        require(streamed or size is None, f"--image_size={size} is for {where}, not {config['dataset']}")
        require(
            streamed or kind not in ("crop", "resized_crop"),
            f"--augment={kind} is for {where} with pictures of more than 64 pixels a side, or with --image_size",
        )
        if config["train_batches"]:
            dataset = cifar10.train_on(dataset, config["train_batches"])
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
    smoothing = config["label_smoothing"]
    require(0 <= smoothing < 1, f"--label_smoothing={smoothing}: accepted are values in [0, 1)")
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


def describe(dataset: Dataset) -> About:
    """The constants of a data set, from its training split."""
    if "train" not in dataset.splits:
        raise UsageError(f"{dataset.name} has no split train, only {', '.join(dataset.splits)}")
    images = dataset.splits["train"][0]
    streamed = isinstance(images, stream.Stream)
    mean, std = images.pixel_statistics() if streamed else pixel_statistics(images)
    return About(images.shape[1:], mean, std, dataset.class_names)


def fit(config: dict, state, images, about: About):
    """`state`, where the network's start depends on the training images fitted to a fixed sample of them."""
    if config["model"] not in models.FIT or config["init_from"]:
        return state
    height, width = images.shape[1:3]
    count = max(1, PATCH_PIXELS // (height * width))
    sample = images[stream.sample(len(images), count)]
    fitted = models.FIT[config["model"]](state.batch_stats, augment.normalize(sample, about.mean, about.std))
    return state._replace(batch_stats=fitted)


def read_picture(file: str, run: dict) -> np.ndarray:
    """The picture file as the run's network saw the test pictures, uint8 [H, W, C]: the middle square of streamed
    pictures, the whole of others. Raises DataError."""
    height, width, channels = run["image_shape"]
    size, kind = run["flags"]["image_size"], run["flags"]["augment"]
    if size is None and max(height, width) <= pictures.LARGEST:
        return decode.read_picture(file, channels=channels, size=(height, width))
    return stream.middle_square(decode.read_picture(file, channels=channels), stream.view(size, kind))


def shown(images, labels):
    """The test pictures that the report looks for mistakes among: all, or of a stream as many as fit in memory."""
    if not isinstance(images, stream.Stream):
        return images, labels
    rows = stream.sample(len(images), stream.SAMPLE)
    return images[rows], labels[rows]


def eval_split(dataset: Dataset) -> str:
    """The split that a run is scored on: test, else val or, as tfds has it, validation."""
    for split in ("test", "val", "validation"):
        if split in dataset.splits:
            return split
    raise UsageError(f"{dataset.name} has no split test, val or validation, only {', '.join(dataset.splits)}")


def prepare(config: dict, about: About):
    """(train, eval, input shape): train(images, keys) and eval(images) make the network's input from uint8 images."""
    normalize = functools.partial(augment.normalize, mean=about.mean, std=about.std)
    height, width, channels = about.image_shape
    kind, views = config["augment"], config["tta"]
    for name in ("shift", "cutout"):
        require(
            0 <= config[name] < min(height, width), f"--{name}={config[name]}: accepted are 0 to {height - 1} pixels"
        )
    crop = {"crop24": 24, "crop": config["image_size"] or stream.SIZE}.get(kind)
    if crop:
        require(min(height, width) >= crop, f"--augment={kind} needs {crop}x{crop} pixels, not {height}x{width}")
        see = functools.partial(augment.ten_views if views == "ten_view" else augment.center_crop, size=crop)
    else:
        require(views != "ten_view", "--tta=ten_view needs a network on crops: --augment=crop24 or crop")
        see = None

    def train(images, keys):
        if kind == "digits":
            return normalize(augment.digits(images, keys))
        images = normalize(images)  # Before shifts and cutout: the zeros that they bring in are the mean.
        if kind == "flip_shift":
            reflect = config["shift_mode"] == "reflect"
            return augment.flip_shift(images, keys, shift=config["shift"], reflect=reflect, cutout=config["cutout"])
        if kind == "resized_crop":  # The stream has cut and resized: the mirror image is left.
            return augment.flip_shift(images, keys, shift=0)
        return augment.flip_crop(images, keys, size=crop) if crop else images

    def evaluation(images):
        images = see(normalize(images)) if see else normalize(images)
        return augment.flip_views(images) if views == "flip" else images

    return train, evaluation, (crop, crop, channels) if crop else about.image_shape


def early(config: dict, input_shape, steps: int):
    """(steps, (height, width)) of the smaller images that a run begins with."""
    size, share, shortest = config["early_size"], config["early_share"], min(input_shape[:2])
    require(0 < share <= 1, f"--early_share={share}: accepted are values in (0, 1]")
    if size is None:
        return 0, None
    require(0 < size <= shortest, f"--early_size={size}: accepted are 1 to {shortest} pixels")
    return round(share * steps), tuple(round(side * size / shortest) for side in input_shape[:2])


def check_early(config: dict, setup: Setup) -> None:
    """Raises UsageError where the network's weights do not fit the smaller images that a run begins with."""
    _, small = early(config, setup.input_shape, 1)
    if small is None:
        return
    size = f"--early_size={config['early_size']}"
    shapes = (*small, setup.input_shape[2]), setup.input_shape
    try:
        weights = [[layer.parameters for layer in table.layers(setup.model, shape)] for shape in shapes]
    except ValueError as error:
        raise UsageError(f"{size}: {error}") from None
    require(weights[0] == weights[1], f"{size}: the weights of --model={config['model']} depend on the image size")


def setup(config: dict, about: About, *, devices: int, steps: int) -> Setup:
    """The network and its task, for a new run or for one that is read again."""
    axis = parallel.axis_of(devices)
    model = network(config, len(about.class_names), axis)
    try:
        drops = [float(drop) for drop in config["drops"]]
    except ValueError:
        raise UsageError(f"--drops={','.join(config['drops'])}: numbers with commas are accepted") from None
    require(all(0 < drop < 1 for drop in drops), f"--drops={','.join(config['drops'])}: must lie between 0 and 1")
    rate = optimizers.schedule(
        config["schedule"],
        learning_rate=config["learning_rate"],
        steps=steps,
        warmup_steps=config["warmup_steps"],
        drops=drops,
    )
    author = config["parameter_groups"] == "author"
    known = ", ".join(models.AUTHOR_GROUPS)
    require(not author or config["model"] in models.AUTHOR_GROUPS, f"--parameter_groups=author is for --model={known}")
    optimizer = optimizers.create(
        config["optimizer"],
        rate,
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        weight_decay=config["weight_decay"],
        groups=models.AUTHOR_GROUPS[config["model"]] if author else (),
    )
    train_prepare, eval_prepare, input_shape = prepare(config, about)
    task = classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=input_shape,
        class_names=about.class_names,
        train_prepare=train_prepare,
        eval_prepare=eval_prepare,
        axis=axis,
        smoothing=config["label_smoothing"],
        early=early(config, input_shape, steps),
    )
    return Setup(about, input_shape, model, task, rate)


def read_again(run: dict) -> Setup:
    """The setup of run.json, on one device."""
    about = About(tuple(run["image_shape"]), tuple(run["mean"]), tuple(run["std"]), tuple(run["class_names"]))
    return setup(run["flags"], about, devices=1, steps=run["steps"])
