"""Splits of encoded pictures, from files or from a store: small ones of one size in memory, others as streams."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data import cache
from data.dataset import DataError, SizesDiffer
from data.decode import Crop, whole
from data.stream import Stream, View

LARGEST = 64  # Pixels a side that are held in memory.
ADVICE = "--image_size=N crops and resizes pictures of any size"
SKIP = "--skip_corrupt leaves such pictures out"


class ImageSplit(NamedTuple):
    """One split as its module describes it: what is costly is a function, called only where it is needed."""

    name: str
    length: int
    channels: int
    where: Callable[[int], str]  # example -> its name in messages
    # (example, what to cut out or None) -> uint8 [h, w, channels]; raises DataError with the picture's name
    read: Callable[[int, Crop | None], np.ndarray]
    size: Callable[[int], tuple[int, int] | None]  # example -> (h, w) from its header; None if that can't be read
    labels: Callable[[], np.ndarray]  # int32 [length]
    key: Callable[[bool], str]  # skip_corrupt -> what the files in `cache` were made from
    cache: pathlib.Path  # how their names begin


def load(
    splits: dict[str, ImageSplit],
    *,
    skip_corrupt: bool,
    view: View,
    always: bool = False,
    size: tuple[int, int] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Images and labels of each split: arrays if every picture has LARGEST pixels a side or less, else, or `always`,
    streams of `view`; with `size` (h, w) arrays of whole pictures resized to it. Raises DataError for small pictures of
    several sizes: they rarely are meant to become 224."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, split in splits.items():
        if size:
            read = functools.partial(_resized, split.read, whole(size))
            cache = split.cache.with_name(f"{split.cache.name}.{size[0]}x{size[1]}")
            split = split._replace(read=read, cache=cache, size=lambda example: size)
        arrays = None if always else _arrays(split, skip_corrupt)
        if arrays is None:
            return {name: _stream(one, skip_corrupt, view) for name, one in splits.items()}
        found[name] = arrays
    sizes = {split: images.shape[1:3] for split, (images, _) in found.items()}
    if len(set(sizes.values())) > 1:
        raise SizesDiffer(f"the pictures' sizes differ between splits: {sizes}; {ADVICE}")
    return found


def _resized(read, crop: Crop, example: int, _) -> np.ndarray:
    return read(example, crop)


def _arrays(split: ImageSplit, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """The split in memory, from its cache where that is of the same pictures; None where a picture is large."""

    def large(example):
        size = split.size(example)
        return size is not None and max(size) > LARGEST

    if large(0):  # Before the key, which takes a look at every file.
        return None
    path, key = split.cache.with_name(f"{split.cache.name}.npz"), split.key(skip_corrupt)
    kept = cache.read(path, key, "images", "labels")
    if kept is None:
        if any(large(example) for example in range(split.length)):
            return None
        images, labels = in_memory(split, skip_corrupt)
        cache.write(path, key, what="the pictures are decoded", images=images, labels=labels)
        return images, labels
    _say_left_out(split, len(kept["labels"]))
    return kept["images"], kept["labels"]


def _stream(split: ImageSplit, skip_corrupt: bool, view: View) -> tuple[Stream, np.ndarray]:
    examples, labels = np.arange(split.length), split.labels()
    if skip_corrupt:
        good = _readable(split)
        examples, labels = examples[good], labels[good]

    def read(example, crop):
        try:
            return split.read(example, crop)
        except DataError as error:
            raise DataError(f"{error}; {'its file has changed' if skip_corrupt else SKIP}") from None

    return Stream(read, examples, channels=split.channels, view=view), labels


def _readable(split: ImageSplit) -> np.ndarray:
    """Which pictures can be decoded, bool [length]. All are tried once, before training: the order of the examples must
    not hang on what was met so far, and the evaluation has to know its count."""
    path, key = split.cache.with_name(f"{split.cache.name}.readable.npz"), split.key(True)
    kept = cache.read(path, key, "good")
    if kept is not None:
        _say_left_out(split, kept["good"].sum())
        return kept["good"]
    good = np.array([image is not None for _, image in _decoded(split, True, doing="checking")])
    cache.write(path, key, what="the pictures are checked", good=good)
    _say_left_out(split, good.sum())
    return good


def in_memory(split: ImageSplit, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C] and labels [N]. A picture that can't be decoded is named; the first raises DataError,
    or with `skip_corrupt` all are left out and counted. DataError too for one of another size than the first."""
    images: list[np.ndarray] = []
    good = np.zeros(split.length, bool)
    for example, image in _decoded(split, skip_corrupt, doing="decoding"):
        if image is None:
            continue
        if images and image.shape != images[0].shape:
            size, expected = (f"{shape[0]}x{shape[1]}" for shape in (image.shape, images[0].shape))
            raise SizesDiffer(f"{split.where(example)} is {size}, expected {expected} like the others; {ADVICE}")
        images.append(image)
        good[example] = True
    _say_left_out(split, good.sum())
    return np.stack(images), split.labels()[good]


def _decoded(split: ImageSplit, skip_corrupt: bool, *, doing: str) -> Iterator[tuple[int, np.ndarray | None]]:
    """Each example and its picture, in order; None for one that was left out, with its name on standard error."""

    def read(example):
        try:
            return split.read(example, None)
        except DataError as error:
            return error

    for example, image in enumerate(each(read, split.length, title=f"{doing} {split.name}")):
        if isinstance(image, DataError):
            if not skip_corrupt:
                raise DataError(f"{image}; {SKIP}")
            print(f"left out: {image}", file=sys.stderr)
            image = None
        yield example, image


def each(function: Callable[[int], Any], count: int, *, title: str) -> Iterator[Any]:
    """function(0), function(1) and so on, in order, by threads, with a bar on a terminal."""
    import grain  # Late: most runs read what was kept.
    from tqdm import tqdm

    options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=64)
    found = grain.MapDataset.range(count).map(function).to_iter_dataset(options)
    yield from tqdm(found, total=count, desc=title, disable=not sys.stderr.isatty())


def _say_left_out(split: ImageSplit, good: int) -> None:
    """The count of the pictures left out, on standard error; raises DataError if none is left."""
    if good < split.length:
        print(f"{split.name}: {split.length - good} of {split.length} pictures left out", file=sys.stderr)
    if not good:
        raise DataError(f"{split.cache.parent}: no picture of the split {split.name} can be read")
