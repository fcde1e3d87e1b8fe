"""The run of --init_from: the images that its network takes, and which of its weights a new run takes. Without
--init_from, the functions change nothing."""

import dataclasses
from typing import Any

import models
from data import stream
from data.dataset import Dataset
from experiments.cli.app import require
from experiments.cli.config import ClassifyConfig, SegmentConfig
from experiments.cli.validation import in_files
from experiments.setup import classification, evaluation_data, fine_tuning, preprocessing, saved_run, stored_network
from experiments.setup.experiment import Experiment, selects
from experiments.setup.fine_tuning import Leaf
from experiments.setup.saved_run import SavedRun
from models import summary
from models.errors import ModelError
from train.messages import say
from train.state import State

SHOWN = 8  # The message about the weights names at most this many layers or arrays of each kind.


def _read(config) -> SavedRun:
    return saved_run.read(config.init_from, flag="init_from")


def input_shape(run: SavedRun) -> tuple[int, ...]:
    """[H, W, C] of the input of a classifier's network."""
    return preprocessing.make_prepare(run.config, run.info)[2]


def depends_on_size(run: SavedRun) -> bool:
    """Whether a classifier's weights depend on the size of its images."""
    model, (height, width, channels) = classification.network(run.config, len(run.info.class_names)), input_shape(run)
    try:
        larger = fine_tuning.shapes(model, (2 * height, 2 * width, channels))
    except ModelError:
        return True
    return larger != fine_tuning.shapes(model, (height, width, channels))


def load_dataset(config: ClassifyConfig) -> tuple[ClassifyConfig, Dataset]:
    """Returns the config and its data set, with images in the form of the source's. If images are cropped from files,
    because they are large, differ in size, or flags crop them, the source's image size is set as the config's
    --image_size. A resumed run has its images in the form of its first start, and does not need the source. Raises
    UsageError if the source's network differs, or if its weights do not fit a given --image_size."""
    if not config.init_from:
        return config, classification.load_dataset(config)
    size, default = config.image_size, None
    if own := fine_tuning.own_run(config):
        config = dataclasses.replace(config, image_size=own.config.image_size if size is None else size)
        return config, classification.load_dataset(config, **image_form(config))
    stored_network.init_from_parts(config)
    run = _read(config)
    if in_files(config.dataset):
        height, width, _ = input_shape(run)
        if size is not None:
            fits = (size, size) == (height, width) or not depends_on_size(run)
            depend = f"the weights in {config.init_from} depend on the image size, {height}x{width} pixels"
            require(fits, f"--image_size={size}: {depend}; omit --image_size")
        else:
            default = max(height, width)
            crops = config.fit != "crop" or config.augment in ("crop", "resized_crop")
            if not evaluation_data.in_memory(run) or (crops and height == width):
                size = default
        config = dataclasses.replace(config, image_size=size)
    dataset = classification.load_dataset(config, **image_form(config), default_size=default)
    if default and any(isinstance(images, stream.Stream) for images, _ in dataset.splits.values()):
        config = dataclasses.replace(config, image_size=default)
    return config, dataset


def image_form(config: ClassifyConfig | SegmentConfig) -> dict[str, Any]:
    """Arguments of load_dataset that convert images to those of the source: its number of channels and, if a
    classifier's weights depend on it, its image size. For a resumed run, they convert images to its own. Raises
    UsageError if the source's network differs."""
    if not config.init_from:
        return {}
    if own := fine_tuning.own_run(config):
        whole = isinstance(config, ClassifyConfig) and config.image_size is None and evaluation_data.in_memory(own)
        return {"shape": own.info.image_shape} if whole else {"channels": own.info.image_shape[2]}
    stored_network.init_from_parts(config)
    run = _read(config)
    if run.config.model != config.model:  # Only the encoder is taken.
        given = f"--freeze={config.freeze} --backbone_rate={config.backbone_rate:g}"
        plain = config.freeze == "none" and config.backbone_rate == 1
        require(plain, f"{given}: {config.init_from} must have the same network, but has --model={run.config.model}")
    if isinstance(config, ClassifyConfig) and config.image_size is None and depends_on_size(run):
        # crop24 crops the images on the device.
        return {"shape": run.info.image_shape if config.augment == "crop24" else input_shape(run)}
    return {"channels": run.info.image_shape[2]}


def check(config: ClassifyConfig | SegmentConfig, experiment: Experiment) -> None:
    """Raises UsageError if nothing would be taken from the source; a resumed run has its weights."""
    if not fine_tuning.own_run(config):
        new_leaves(config, experiment)


def new_leaves(config: ClassifyConfig | SegmentConfig, experiment: Experiment) -> frozenset[Leaf]:
    """The variables that are not taken from the source: the head if the classes differ. Raises UsageError if nothing
    would be taken."""
    if not config.init_from:
        return frozenset()
    run, names = _read(config), experiment.info.class_names
    same = names == run.info.class_names or run.info.class_names == evaluation_data.unnamed(len(names))
    if same or run.config.model != config.model:  # Of another model, only the encoder is taken.
        return frozenset()
    flag = f"--init_from={config.init_from} has other classes"
    return fine_tuning.head(experiment.model, experiment.input_shape, name=config.model, flag=flag)


def init_from(config, state: State, experiment: Experiment, split: str) -> State:
    """The state with the source's weights. Prints which were taken, and a warning if the run is evaluated on images
    that the source may have been trained on."""
    if not config.init_from:
        return state
    run, new = _read(config), new_leaves(config, experiment)
    paths = frozenset(f".{leaf[0]}" + "".join(f"[{key!r}]" for key in leaf[1:]) for leaf in new)
    state, step = stored_network.weights_at_step(config, state, new=paths)
    say(f"--init_from={config.init_from} (step {step:,}): {_taken(config, experiment, run, new)}")
    if overlaps(config, run.config, split):
        flags = "train_batches" if getattr(config, "train_batches", None) else "val_fraction"
        if config.test_fraction > run.config.test_fraction:
            flags, split = "test_fraction", "test"
        given, there = (getattr(one, flags) for one in (config, run.config))
        both = f"--{flags}={given}, but {config.init_from} was trained with --{flags}={there or 'none'}"
        say(f"warning: {both}: it may have been trained on images of {split}, whose scores are then too high")
    return state


def _taken(config, experiment: Experiment, run: SavedRun, new: frozenset[Leaf]) -> str:
    """Which variables a run takes, by layer in the order of the forward pass, which are new, and the form of its
    images."""
    order = [layer.name.split("/")[0] for layer in summary.layers(experiment.model, experiment.input_shape)]
    leaves = fine_tuning.shapes(experiment.model, experiment.input_shape).keys() - new
    if prefixes := models.spec(config.model).encoders.get(run.config.model):
        leaves = {leaf for leaf in leaves if leaf[1].startswith(prefixes)}
    layers = sorted({leaf[1] for leaf in leaves}, key=lambda name: (order.index(name) if name in order else -1, name))
    named = ", ".join(layers) if len(layers) <= SHOWN else f"{layers[0]} to {layers[-1]}, {len(layers)} layers"
    parts = [f"took {len(leaves)} arrays ({named})"]
    if new:
        arrays = sorted("/".join(leaf[1:]) for leaf in new)
        listed = ", ".join(arrays) if len(arrays) <= SHOWN else f"{len(arrays)} arrays"
        ours, theirs = len(experiment.info.class_names), len(run.info.class_names)
        classes = f"{ours} other classes" if ours == theirs else f"{ours} classes instead of {theirs}"
        parts.append(f"new: {listed} ({classes})")
    shape = "x".join(map(str, experiment.info.image_shape))
    return "; ".join([*parts, f"images: {shape}, normalized as in that run"])


def overlaps(config, there, split: str) -> bool:
    """Whether images of `split` or of test, held out by the config, may be training images of the run with the config
    `there` on the same data set."""
    files = config.dataset in ("folder", "masks")
    same = config.dataset == there.dataset and (config.data_dir == there.data_dir or not files)
    if same and config.test_fraction > there.test_fraction:
        return True
    if not same or not selects(split):
        return False
    # hold_out draws the same images for a larger fraction, and more.
    batches = getattr(config, "train_batches", None)
    return config.val_fraction > there.val_fraction or bool(batches and batches != there.train_batches)
