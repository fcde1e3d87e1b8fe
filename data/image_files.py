"""Splits of encoded images from files or a store: in memory if small and of equal size, otherwise streamed."""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from data import cache
from data.dataset import DataError, SizesDiffer, UnreadableError
from data.decode import Crop, whole
from data.stream import Stream, View, usable_cores

LARGEST = 64  # Maximum side in pixels of images that are held in memory.
ADVICE = "--image_size=N crops and resizes images of any size"
SKIP = "--skip_corrupt skips such images"


class ImageSplit(NamedTuple):
    """Describes a split. Expensive properties are functions, called only if needed."""

    name: str
    length: int
    channels: int
    where: Callable[[int], str]  # example -> its name in messages
    # (example, crop or None) -> uint8 [h, w, channels]; raises DataError with the image's name
    read: Callable[[int, Crop | None], np.ndarray]
    size: Callable[[int], tuple[int, int] | None]  # example -> (h, w) from the header; None if unreadable
    labels: Callable[[], np.ndarray]  # int32 [length]
    key: Callable[[bool], str]  # skip_corrupt -> cache key, which identifies the source files
    cache: pathlib.Path  # prefix of the cache files


def load(
    splits: dict[str, ImageSplit],
    *,
    skip_corrupt: bool,
    view: View,
    always: bool = False,
    size: tuple[int, int] | None = None,
) -> tuple[dict[str, tuple[Any, Any]], dict[str, np.ndarray]]:
    """(images and labels of each split, names of the images in memory). The images are arrays if none is larger than
    LARGEST pixels per side; otherwise, or with `always`, streams of `view`; with `size` (h, w), arrays of whole images
    resized to it. Raises DataError if small images differ in size, since resizing them to 224 is rarely intended."""
    found: dict[str, tuple[Any, Any]] = {}
    files: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        if size:
            read = functools.partial(_resized, split.read, whole(size))
            cache = split.cache.with_name(f"{split.cache.name}.{size[0]}x{size[1]}")
            split = split._replace(read=read, cache=cache, size=lambda example: size)
        arrays = None if always else _arrays(split, skip_corrupt)
        if arrays is None:
            return {name: _stream(one, skip_corrupt, view) for name, one in splits.items()}, {}
        images, labels, good = arrays
        found[name] = images, labels
        files[name] = np.array([os.path.basename(split.where(int(example))) for example in np.flatnonzero(good)])
    sizes = {split: images.shape[1:3] for split, (images, _) in found.items()}
    if len(set(sizes.values())) > 1:
        raise SizesDiffer(f"the image sizes differ between splits: {sizes}; {ADVICE}")
    return found, files


def _resized(read, crop: Crop, example: int, _) -> np.ndarray:
    return read(example, crop)


def _arrays(split: ImageSplit, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(images, labels, which examples they are, bool [length]) of the split in memory, from its cache if the cache is
    valid; None if an image is large."""

    def large(example):
        size = split.size(example)
        return size is not None and max(size) > LARGEST

    if large(0):  # Before computing the key, which stats every file.
        return None
    path, key = split.cache.with_name(f"{split.cache.name}.npz"), split.key(skip_corrupt)
    # Only --skip_corrupt stores `good`: other caches are also those of older versions.
    kept = cache.read(path, key, "images", "labels", *["good"] * skip_corrupt)
    if kept is None:
        if any(large(example) for example in range(split.length)):
            return None
        images, labels, good = in_memory(split, skip_corrupt)
        stored = {"good": good} if skip_corrupt else {}
        cache.write(path, key, what="decoding the images", images=images, labels=labels, **stored)
        return images, labels, good
    _report_skipped(split, len(kept["labels"]))
    return kept["images"], kept["labels"], kept.get("good", np.ones(split.length, bool))


def _stream(split: ImageSplit, skip_corrupt: bool, view: View) -> tuple[Stream, np.ndarray]:
    examples, labels = np.arange(split.length), split.labels()
    if skip_corrupt:
        good = _readable(split)
        examples, labels = examples[good], labels[good]

    def read(example, crop):
        try:
            return split.read(example, crop)
        except UnreadableError:
            raise
        except DataError as error:
            hint = "the file has changed since it was checked" if skip_corrupt else SKIP
            raise DataError(f"{error}; {hint}") from None

    return Stream(read, examples, channels=split.channels, view=view, where=split.where), labels


def _readable(split: ImageSplit) -> np.ndarray:
    """True for images that can be decoded, bool [length]. All images are checked before training, because the order of
    the examples must not depend on the images read so far, and because evaluation needs the number of examples."""
    path, key = split.cache.with_name(f"{split.cache.name}.readable.npz"), split.key(True)
    kept = cache.read(path, key, "good")
    if kept is not None:
        _report_skipped(split, kept["good"].sum())
        return kept["good"]
    good = np.array([image is not None for _, image in _decoded(split, True, doing="checking")])
    cache.write(path, key, what="checking the images", good=good)
    _report_skipped(split, good.sum())
    return good


def in_memory(split: ImageSplit, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [N, H, W, C], labels [N] and which examples they are, bool [length]. An image that can't be decoded
    raises DataError with its name; with `skip_corrupt`, all such images are reported and skipped. Also raises DataError
    if images differ in size."""
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
    _report_skipped(split, good.sum())
    return np.stack(images), split.labels()[good], good


def _decoded(split: ImageSplit, skip_corrupt: bool, *, doing: str) -> Iterator[tuple[int, np.ndarray | None]]:
    """Each example and its image, in order; None if it was skipped, with a message on standard error."""

    def read(example):
        try:
            return split.read(example, None)
        except DataError as error:
            return error

    for example, image in enumerate(each(read, split.length, title=f"{doing} {split.name}")):
        if isinstance(image, DataError):
            if isinstance(image, UnreadableError):
                raise image
            if not skip_corrupt:
                raise DataError(f"{image}; {SKIP}")
            print(f"skipped: {image}", file=sys.stderr)
            image = None
        yield example, image


def each(function: Callable[[int], Any], count: int, *, title: str) -> Iterator[Any]:
    """Yields function(0), function(1), ... in order, computed by threads, with a progress bar on a terminal."""
    import grain  # Imported late: most runs read from the cache.
    from tqdm import tqdm

    options = grain.ReadOptions(num_threads=usable_cores(), prefetch_buffer_size=64)
    found = grain.MapDataset.range(count).map(function).to_iter_dataset(options)
    yield from tqdm(found, total=count, desc=title, disable=not sys.stderr.isatty())


def _report_skipped(split: ImageSplit, good: int) -> None:
    """Prints the number of skipped images on standard error; raises DataError if no image is left."""
    if good < split.length:
        print(f"{split.name}: {split.length - good} of {split.length} images skipped", file=sys.stderr)
    if not good:
        raise DataError(f"{split.cache.parent}: no image of the split {split.name} can be read")
