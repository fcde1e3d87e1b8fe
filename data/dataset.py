"""The type of a data set, and statistics and binary tasks of data sets."""

import hashlib
from typing import Any, NamedTuple

import numpy as np


class DataError(ValueError):
    """A data set is missing or damaged; the message names the file and the remedy."""


class UnreadableError(DataError):
    """A file that can't be read at the moment, for lack of permission or a failing disk: it may hold a good image."""


class ArgumentError(ValueError):
    """A name of no data set, or an argument that does not apply to it."""


class SizesDiffer(DataError):
    """Small images differ in size, and no target size is given."""


class Dataset(NamedTuple):
    """`splits` maps names to images uint8 [N, H, W, C] and labels int32 [N]. The images are an array or a
    data.stream.Stream, which can be indexed like one and decodes on access."""

    name: str
    splits: dict[str, tuple[Any, np.ndarray]]
    class_names: tuple[str, ...]


def digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each split's labels, and of its images where these are held in memory, else of their files' names:
    whether two data sets are the same, wherever their folders lie."""
    found = {}
    for split, (images, labels) in dataset.splits.items():
        digest = hashlib.sha256(f"{labels.dtype} {labels.shape} {tuple(images.shape)}".encode())
        in_memory = isinstance(images, np.ndarray)
        if not in_memory:
            for name in images.names():
                digest.update(name.encode(errors="surrogateescape") + b"\0")
        for part in (labels, images) if in_memory else (labels,):
            for start in range(0, len(part), 1000):  # In parts: a broadcast array is far larger than its memory.
                digest.update(np.ascontiguousarray(part[start : start + 1000]).tobytes())
        found[split] = digest.hexdigest()
    return found


def _where(rows: np.ndarray, images: Any) -> Any:
    """The images where `rows`, bool [N], is true; of a stream nothing is decoded."""
    return images[rows] if isinstance(images, np.ndarray) else images.keep(rows)


def binary_task(dataset: Dataset, positive: str, negative: str | None = None) -> Dataset:
    """The class `positive` (label 1) against the class `negative` or, if that is None, all others (label 0).

    Raises ArgumentError if the data set does not have the class.
    """
    for name in filter(None, (positive, negative)):
        if name not in dataset.class_names:
            raise ArgumentError(f"{dataset.name} has no class {name!r}; it has: {', '.join(dataset.class_names)}")
    if positive == negative:
        raise ArgumentError(f"the positive and the negative class are both {positive!r}")
    splits = {}
    for split, (images, labels) in dataset.splits.items():
        hits = labels == dataset.class_names.index(positive)
        rows = np.ones_like(hits) if negative is None else hits | (labels == dataset.class_names.index(negative))
        if not rows.any():
            raise DataError(f"{dataset.name}: the split {split} has no images of {positive} and {negative or 'others'}")
        splits[split] = _where(rows, images), hits[rows].astype(np.int32)
    return Dataset(dataset.name, splits, (negative or f"not {positive}", positive))


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Moves a `fraction` of the training images, the same share of each class, into a new split val: always the same
    images of a data set; 0 moves none. Images whose labels are of their pixels, [N, H, W], count as of one class.
    Raises ArgumentError where that leaves one of the splits empty, or val is there already."""
    if not fraction:
        return dataset
    given = f"--val_fraction={fraction:g}"
    if "train" not in dataset.splits:
        raise ArgumentError(f"{given}: {dataset.name} has no split train, only {', '.join(dataset.splits)}")
    for name in ("val", "validation"):
        if name in dataset.splits:
            raise ArgumentError(f"{given}: {dataset.name} has a split {name} already")
    images, labels = dataset.splits["train"]
    classes = labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)
    random, held = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label in np.unique(classes):
        of_class = random.permutation(np.flatnonzero(classes == label))
        held[of_class[: min(round(fraction * len(of_class)), len(of_class) - 1)]] = True
    if not held.any():
        raise ArgumentError(f"{given}: no class of {dataset.name} has that many images; a larger fraction is needed")
    splits = dict(dataset.splits)
    for name, rows in (("train", ~held), ("val", held)):
        splits[name] = _where(rows, images), labels[rows]
    return dataset._replace(splits=splits)


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
