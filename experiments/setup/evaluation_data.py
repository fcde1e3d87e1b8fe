"""The data that a stored run is evaluated on, and the decoding of image files for it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data import decode, image_files, stream
from data.dataset import ArgumentError, DataError, Dataset, digests
from experiments.cli.app import UsageError, require
from experiments.cli.validation import in_files
from experiments.setup.experiment import held_out_fractions
from experiments.setup.saved_run import SavedRun
from train.messages import say


def in_memory(run: SavedRun) -> bool:
    """Whether the run held whole images in memory instead of cropping them on access."""
    small = max(run.info.image_shape[:2]) <= image_files.LARGEST
    return run.config.image_size is None and (small or not in_files(run.config.dataset))


def read_image(file: str, run: SavedRun) -> np.ndarray:
    """Reads an image file as uint8 [H, W, C], preprocessed like the run's test images: streamed images are center
    cropped to a square, others keep their full area; both are resized. Raises DataError."""
    height, width, channels = run.info.image_shape
    if run.task in ("segmentation", "reconstruction") or in_memory(run):
        return decode.read_image(file, channels=channels, crop=decode.whole((height, width)))
    view = stream.view(run.config.image_size, run.config.augment, run.config.fit)
    return decode.read_image(file, channels=channels, crop=stream.middle(view))


def on_own_data(run: SavedRun, *, dataset: str | None, data_dir: str | None) -> Any:
    """The run's config with the given folder of its data set. Raises UsageError for a different data set."""
    own = run.config.dataset
    require(dataset in (None, own), f"--dataset={dataset}: must be the run's own, {own}")
    return on_data(run.config, dataset=dataset, data_dir=data_dir)


def on_data(config: Any, *, dataset: str | None, data_dir: str | None) -> Any:
    """The config with the given data set or folder, if not None. A new data set also resets the folder. No images of
    new data are held out."""
    if dataset not in (None, config.dataset):
        config = dataclasses.replace(config, dataset=dataset, data_dir=None, val_fraction=0.0, test_fraction=0.0)
    if data_dir not in (None, config.data_dir):
        config = dataclasses.replace(config, data_dir=data_dir, val_fraction=0.0, test_fraction=0.0)
    return config


def load(run: SavedRun, config: Any, load_dataset: Callable[[Any], Dataset]) -> Dataset:
    """The data set that `load_dataset` returns for the config of `on_data`. If it is a copy of the run's own data, the
    splits that the run held out are held out of it."""
    val, test = held_out_fractions(run.config)
    if held_out_fractions(config) != (val, test):
        try:
            found = load_dataset(dataclasses.replace(config, val_fraction=val, test_fraction=test))
        except (ArgumentError, DataError, UsageError):  # Other data, such as one without training images.
            found = None
        if found is not None and digests(found) == run.data_digests:
            say("these are the run's own images, with the splits that it held out")
            return found
    return load_dataset(config)


def is_held_out_anew(run: SavedRun, dataset: Dataset, split: str) -> bool:
    """Whether the images that the run held out as the split differ from those of the data set, because its folder has
    changed. Images of another shape, for --tta=ten_view, are not compared."""
    images, labels = dataset.splits[split]
    fractions, recorded = dict(zip(("val", "test"), held_out_fractions(run.config), strict=True)), run.data_digests
    if not fractions.get(split) or split not in recorded or tuple(images.shape[1:]) != tuple(run.info.image_shape):
        return False
    return digests(dataset._replace(splits={split: (images, labels)}))[split] != recorded[split]


def for_evaluation(
    run: SavedRun, *, dataset: str | None, data_dir: str | None, tta: str | None
) -> tuple[SavedRun, tuple[int, int, int] | None]:
    """Adapts a run of classify to the given data set, folder and test-time augmentation; None keeps the run's own.

    Returns:
        (run with changed config and image shape, argument `shape` of classification.load_dataset).
    """
    old, shape = run.config, run.info.image_shape
    config = on_data(dataclasses.replace(old, tta=tta or old.tta), dataset=dataset, data_dir=data_dir)
    if config.dataset != old.dataset:
        config = dataclasses.replace(config, train_batches=None)
        if not in_files(config.dataset):  # Its images are held in memory: whole images are resized to `shape`.
            config = dataclasses.replace(config, image_size=None, augment="none", fit="crop")
    if config.tta == "ten_view" and not in_memory(run) and in_files(config.dataset):
        side = stream.view(old.image_size, "crop").side  # The views are crops of a larger square.
        config = dataclasses.replace(config, augment="crop")
        run = run._replace(info=dataclasses.replace(run.info, image_shape=(side, side, shape[2])))
    if (config.dataset, config.data_dir) == (old.dataset, old.data_dir) and not old.init_from:
        return run._replace(config=config), None
    if not in_memory(run) and in_files(config.dataset):  # Streamed, so that only the channels of `shape` matter.
        config = dataclasses.replace(config, image_size=old.image_size or stream.SIZE)
    return run._replace(config=config), shape


def with_classes(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The data set with the labels of a run's classes `names`, of which it may lack some. Raises UsageError if it has
    other classes."""
    if tuple(dataset.class_names) == tuple(names):
        return dataset
    both = f"{list(names)} in the run, {list(dataset.class_names)} in the data set"
    others = ", ".join(name for name in dataset.class_names if name not in names)
    require(not others, f"classes differ: {both}; not in the run: {others}")
    place = np.array([names.index(name) for name in dataset.class_names], np.int32)
    splits = {split: (images, place[labels]) for split, (images, labels) in dataset.splits.items()}
    return dataset._replace(splits=splits, class_names=names)


def unnamed(classes: int) -> tuple[str, ...]:
    """Placeholder names for classes without known names."""
    return tuple(f"{i:04d}" for i in range(classes))
