"""Images that are too large, or differ too much in size, for one array: decoded on demand with Grain.

The example at each position of the training stream depends only on the seed and the position, so only the step has to
be saved: Grain's map-style data set is indexed by position, and reading starts at the position of the step. Decoding
uses threads instead of worker processes, because Pillow releases the GIL while it decodes and resizes, forking a
process with JAX threads can hang, and Grain 0.2.18 leaks workers and their shared memory if a run is killed.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data.decode import Crop

SIZE = 224  # Default side of the network input in pixels.
SHARE = 7 / 8  # Fraction of the shorter side that the central square covers: 224 of 256 pixels.
SAMPLE = 2000  # Number of training images for the pixel statistics.
END = 2**62  # Length of the training stream; no run reaches it.


class View(NamedTuple):
    """How an image of any size is converted to a square of `side` pixels. `fit` is crop: by resizing the central square
    that covers `share` of the shorter side; pad: by resizing the whole image and filling the rest of the square with
    the image's mean color; or squash: by resizing the whole image, regardless of its aspect ratio. In training and if
    `random`, by a random resized crop, for squash of the squashed image."""

    side: int = SIZE
    share: float = SHARE
    random: bool = False
    fit: str = "crop"


def view(image_size: int | None, augment: str, fit: str = "crop") -> View:
    """The view for a network input of `image_size` pixels. For "crop" (Krizhevsky, Sutskever & Hinton 2012), the stream
    yields the whole central square (or the whole image, as `fit` says), 256 pixels for an input of 224, and the crop is
    made on the device."""
    size = image_size or SIZE
    if augment == "crop":
        return View(round(size / SHARE), 1.0, fit=fit)
    return View(size, random=augment == "resized_crop", fit=fit)


def middle_box(height: int, width: int, *, share: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the central square, in pixels. Resizing only this box gives the same pixels as
    resizing the whole image and cropping, without a huge array if the image is long and thin."""
    side = share * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    height: int, width: int, *, random: np.random.Generator, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels of a random crop, with a uniform fraction of the area in `scale` and
    an aspect ratio width / height in `ratio` (Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    The paper does not specify the distribution of the aspect ratio; here it is log-uniform, so that wide and tall crops
    are equally likely. After ten crops that don't fit, the largest central crop is used. Both match torchvision.
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = np.exp(random.uniform(*np.log(ratio)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def middle(view: View) -> Crop:
    """The crop for evaluation. For pad, the box is a square around the whole image."""
    size = view.side, view.side

    def crop(height, width):
        if view.fit == "squash":
            return (0, 0, width, height), size
        if view.fit == "pad":
            side = max(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            return (left, top, left + side, top + side), size
        return middle_box(height, width, share=view.share), size

    return crop


def random_crop(view: View, seed: tuple[int, ...]) -> Crop:
    """A random resized crop for training; for squash, of the image resized to a square."""

    def crop(height, width):
        random, size = np.random.default_rng(seed), (view.side, view.side)
        if view.fit != "squash":
            return random_box(height, width, random=random), size
        side = max(height, width)
        left, top, right, bottom = random_box(side, side, random=random)
        x, y = width / side, height / side
        return (left * x, top * y, right * x, bottom * y), size

    return crop


def usable_cores() -> int:
    """The number of cores that this process may use, which taskset or a batch system may limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sample(total: int, count: int) -> np.ndarray:
    """A fixed sample of at most `count` of `total` rows, in order."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


class Stream:
    """A lazy array uint8 [N, H, W, C] of the central squares: it has a shape, can be indexed, and decodes on access.

    `read(example, crop)` returns a square crop of one image, uint8 [side, side, C], or raises DataError, which stops
    the iteration.
    """

    def __init__(
        self,
        read: Callable[[int, Crop], np.ndarray],
        examples: np.ndarray,
        *,
        channels: int,
        view: View,
        where: Callable[[int], str] = str,
    ):
        """`where(example)` returns the name of an image: its file, or its position in a store."""
        self.read, self.examples, self.view, self.where = read, examples, view, where
        self.shape = (len(examples), view.side, view.side, channels)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, which) -> np.ndarray:
        rows = np.arange(len(self))[which]
        if rows.ndim == 0:
            return self._middle(rows)
        return next(self.chunks(len(rows), rows=rows), np.zeros((0, *self.shape[1:]), np.uint8))

    def keep(self, mask: np.ndarray) -> "Stream":
        """The images where `mask`, bool [N], is true; nothing is decoded."""
        return Stream(self.read, self.examples[mask], channels=self.shape[-1], view=self.view, where=self.where)

    def names(self) -> Iterator[str]:
        """The file names of the images, without their folders."""
        return (os.path.basename(self.where(int(example))) for example in self.examples)

    def chunks(self, size: int, *, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The central squares of all images or of `rows`, in order, `size` at a time; the last chunk may be smaller."""
        rows = np.arange(len(self)) if rows is None else rows
        return self._run(lambda position: self._middle(rows[position]), 0, len(rows), size)

    def train_batches(
        self,
        labels: np.ndarray,
        row: Callable[[int], int],
        position: Callable[[int], int],
        *,
        batch_size: int,
        seed: int,
        start: int,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches {"image": [B, H, W, C], "label": [B]} from step `start` on, without end. The i-th example is
        at position `position(i)` of the order of the run, and `row(position)` is its row."""

        def example(i):
            place = position(i)
            picked = row(place)
            # The 1 distinguishes this seed from the order's (seed, epoch).
            crop = random_crop(self.view, (seed, place, 1)) if self.view.random else middle(self.view)
            return {"image": self.read(self.examples[picked], crop), "label": labels[picked]}

        return self._run(example, start * batch_size, END, batch_size)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel on the scale 0 to 255, over the central squares of a fixed sample.

        A pass over a million images would take longer than many runs, and normalization does not need it: with 2,000
        images, the standard error of the mean is about 1/45 of the standard deviation between images. The sample does
        not depend on the seed, so that the runs of a sweep, or a run initialized from another's weights, get the same
        input.
        """
        counts, values = np.zeros((self.shape[-1], 256), np.int64), np.arange(256.0)
        for part in self.chunks(64, rows=sample(len(self), SAMPLE)):
            for channel, histogram in enumerate(counts):  # Integer counts are exact and need no float copy.
                histogram += np.bincount(part[..., channel].ravel(), minlength=256)
        mean = counts @ values / counts.sum(1)
        std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))
        return tuple(float(m) for m in mean), tuple(float(max(s, 1e-3)) for s in std)

    def _middle(self, row) -> np.ndarray:
        return self.read(self.examples[row], middle(self.view))

    def _run(self, function, start: int, stop: int, size: int) -> Iterator:
        """Yields function(position) for start <= position < stop in batches of `size`, prefetching two batches."""
        import grain  # Imported late: most runs hold their images in memory.

        options = grain.ReadOptions(num_threads=usable_cores(), prefetch_buffer_size=2 * size)
        positions = grain.MapDataset.range(start, stop)
        return iter(positions.map(function).to_iter_dataset(options).batch(size)) if size else iter(())
