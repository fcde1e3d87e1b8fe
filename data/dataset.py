"""The data set type, data set statistics, and binary tasks."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

ALL = "all"  # The only split of a folder of class folders.


class DataError(ValueError):
    """A data set is missing or damaged; the message names the file and how to fix it."""


class UnreadableError(DataError):
    """A file can't be read at the moment, because of permissions or a failing disk; it may contain a valid image."""


class ArgumentError(ValueError):
    """An unknown data set, or an argument that the data set does not support."""


class SizesDiffer(DataError):
    """Small images differ in size, and no target size is given."""


class Dataset(NamedTuple):
    """`splits` maps names to images uint8 [N, H, W, C] and labels int32 [N]. The images are an array or a
    data.stream.Stream, which can be indexed like one and decodes on access."""

    name: str
    splits: dict[str, tuple[Any, np.ndarray]]
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, int, int], ...] = ()  # RGB, for figures of labels [N, H, W]; () if unknown
    class_values: tuple[int, ...] = ()  # Pixel value of each class in annotations; () if 0, 1, ...
    files: Mapping[str, np.ndarray] = MappingProxyType({})  # Names [N] of images in memory, by split, if known


def default_dir(name: str) -> pathlib.Path:
    """The folder that `prepare` writes to and training reads from if --data_dir is not given. Raises DataError for the
    data set `name` if no home folder is known."""
    home = os.path.expanduser("~")
    if home == "~":  # HOME is not set, and the user has no entry in passwd.
        raise DataError(f"{name}: cannot determine the home folder; specify --data_dir=FOLDER")
    return pathlib.Path(home, "nutshell_data")


def data_folder(data_dir: str | None, dataset: str, layout: str) -> pathlib.Path:
    """The folder `data_dir`. Raises DataError, with the `layout` of the data set, if it is not given or missing."""
    if not data_dir:
        raise DataError(f"--dataset={dataset} requires --data_dir=FOLDER{layout}")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: no such folder")
    return root


def digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each split's labels, and of its images if they are in memory, otherwise of their file names.
    Identifies a data set independently of its folder."""
    found = {}
    for split, (images, labels) in dataset.splits.items():
        digest = hashlib.sha256(f"{labels.dtype} {labels.shape} {tuple(images.shape)}".encode())
        in_memory = isinstance(images, np.ndarray)
        if not in_memory:
            for name in images.names():
                digest.update(name.encode(errors="surrogateescape") + b"\0")
        for part in (labels, images) if in_memory else (labels,):
            for start in range(0, len(part), 1000):  # In chunks: a copy of a broadcast array would be far larger.
                digest.update(np.ascontiguousarray(part[start : start + 1000]).tobytes())
        found[split] = digest.hexdigest()
    return found


def _where(rows: np.ndarray, images: Any) -> Any:
    """The images where `rows`, bool [N], is true; the images of a stream are not decoded."""
    return images[rows] if isinstance(images, np.ndarray) else images.keep(rows)


def file_names(dataset: Dataset, split: str) -> list[str] | None:
    """The names of a split's image files, without their folders; None if its images are not in files."""
    images, _ = dataset.splits[split]
    names = dataset.files.get(split) if isinstance(images, np.ndarray) else images.names()
    return None if names is None else list(map(os.path.basename, names))


def binary_task(dataset: Dataset, positive: str, negative: str | None = None) -> Dataset:
    """The class `positive` (label 1) against the class `negative` or, if it is None, all other classes (label 0).

    Raises ArgumentError if the data set does not have the class.
    """
    for name in filter(None, (positive, negative)):
        if name not in dataset.class_names:
            raise ArgumentError(f"{dataset.name} has no class {name!r}; it has: {', '.join(dataset.class_names)}")
    if positive == negative:
        raise ArgumentError(f"the positive and the negative class are both {positive!r}")
    splits, files = {}, {}
    for split, (images, labels) in dataset.splits.items():
        hits = labels == dataset.class_names.index(positive)
        rows = np.ones_like(hits) if negative is None else hits | (labels == dataset.class_names.index(negative))
        if not rows.any():
            raise DataError(f"{dataset.name}: the split {split} has no images of {positive} and {negative or 'others'}")
        splits[split] = _where(rows, images), hits[rows].astype(np.int32)
        if split in dataset.files:
            files[split] = dataset.files[split][rows]
    return Dataset(dataset.name, splits, (negative or f"not {positive}", positive), files=files)


def hold_out(dataset: Dataset, fraction: float, test_fraction: float = 0.0) -> Dataset:
    """Moves a `fraction` of the training images, the same fraction of each class, into a new split val, and a
    `test_fraction` of them into a new split test; the rest is the split train. The choice is deterministic, and one
    fraction does not affect the choice for the other unless a class has too few images for both; 0 moves none. Images
    with per-pixel labels [N, H, W] are treated as one class. Raises ArgumentError if one of the splits would be empty,
    or if val or test already exists."""
    fractions = {name: value for name, value in (("val", fraction), ("test", test_fraction)) if value}
    if not fractions:
        return dataset
    given = " ".join(f"--{name}_fraction={value:g}" for name, value in fractions.items())
    source = ALL if ALL in dataset.splits and "train" not in dataset.splits else "train"
    if source not in dataset.splits:
        raise ArgumentError(f"{given}: {dataset.name} has no split train, only {', '.join(dataset.splits)}")
    for new in fractions:
        for name in ("val", "validation") if new == "val" else ("test",):
            if name in dataset.splits:
                flag = f"--{new}_fraction={fractions[new]:g}"
                raise ArgumentError(f"{flag}: {dataset.name} already has a split {name}")
    images, labels = dataset.splits[source]
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    random, held = np.random.default_rng(0), {name: np.zeros(len(labels), bool) for name in fractions}
    for label in np.unique(classes):
        of_class = random.permutation(np.flatnonzero(classes == label))
        left = len(of_class) - 1  # Each class keeps at least one training image.
        for name, value in fractions.items():
            count = min(round(value * len(of_class)), left)
            left -= count
            held[name][of_class[:count] if name == "val" else of_class[len(of_class) - count :]] = True
    for name, rows in held.items():
        if not rows.any():
            flag = f"--{name}_fraction={fractions[name]:g}"
            why = f"{flag} selects no images of {dataset.name}"
            if np.bincount(classes).max() <= len(fractions):
                raise ArgumentError(f"{why}: each class needs an image for each split, and one for training")
            raise ArgumentError(f"{why}; use a larger fraction")
    splits = {name: split for name, split in dataset.splits.items() if name != source or name == "train"}
    files = {name: names for name, names in dataset.files.items() if name != source}
    for name, rows in {"train": ~np.logical_or.reduce(list(held.values())), **held}.items():
        splits[name] = _where(rows, images), labels[rows]
        if source in dataset.files:
            files[name] = dataset.files[source][rows]
    return dataset._replace(splits=splits, files=files)


def _moments(images) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of the channels over the pixels of uint8 images [N, H, W, C]."""
    channels = images.shape[-1]
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), 0
    for start in range(0, len(images), 64):  # A float copy of all images would take gigabytes.
        pixels = np.asarray(images[start : start + 64]).reshape(-1, channels).astype(np.float64)
        total, products, count = total + pixels.sum(0), products + pixels.T @ pixels, count + len(pixels)
    mean = total / count
    return mean, products / count - np.outer(mean, mean)


def pixel_covariance(images) -> tuple[tuple[float, ...], ...]:
    """Covariance [C][C] of the channels over the pixels of uint8 images [N, H, W, C], on the scale 0 to 255."""
    return tuple(tuple(float(x) for x in row) for row in _moments(images)[1])


def pixel_statistics(images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, H, W, C], on the scale 0 to 255."""
    mean, covariance = _moments(images)
    variance = np.maximum(np.diag(covariance), 1e-6)
    return tuple(float(m) for m in mean), tuple(float(s) for s in np.sqrt(variance))
