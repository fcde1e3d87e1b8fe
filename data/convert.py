"""Converts the images of a data set in memory to another number of channels or another size."""

import math
from typing import Any

import numpy as np
from PIL import Image

from data.dataset import DataError, Dataset

BYTES = 4 << 30  # Maximum size of a resized split.
PART = 1000  # Images converted at a time, because the intermediate integers take four times the memory.


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 images [..., 1 or 3] with 1 or 3 channels, as Pillow converts an image: gray to color by repetition, color
    to gray by the luminance of ITU-R 601-2."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    red, green, blue = (images[..., i : i + 1].astype(np.uint32) for i in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One uint8 image [H, W, 1 or 3] resized to `size` (height, width), bilinearly as in data.decode."""
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, -1)


def fit(dataset: Dataset, *, shape: tuple[int, int, int] | None = None, channels: int | None = None) -> Dataset:
    """The data set with images in memory converted to `shape` (h, w, channels), or to `channels` only. Streams are
    unchanged. Raises DataError if a resized split would take more than 4 GiB."""
    wanted, size = (shape[2], shape[:2]) if shape else (channels, None)

    def converted(images: Any) -> Any:
        if not isinstance(images, np.ndarray):
            return images
        c, s = wanted or images.shape[-1], size or images.shape[1:3]
        if images.shape[1:] == (*s, c):
            return images
        if s != images.shape[1:3] and len(images) * math.prod(s) * c > BYTES:
            what = f"{len(images):,} images of {s[0]}x{s[1]} pixels"
            raise DataError(f"{dataset.name}: {what} would take more than {BYTES >> 30} GiB of memory")
        found = np.empty((len(images), *s, c), np.uint8)
        for start in range(0, len(images), PART):
            part = to_channels(np.asarray(images[start : start + PART]), c)
            found[start : start + PART] = part if s == images.shape[1:3] else [resized(image, s) for image in part]
        return found

    return dataset._replace(splits={name: (converted(x), y) for name, (x, y) in dataset.splits.items()})
