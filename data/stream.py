"""Pictures too large, or of too many sizes, to be held as one array: decoded when a batch asks for them, through grain.

What comes at a position of the training stream is a function of the seed and the position alone, so nothing but the
step has to be saved: grain's map-style data set is indexed by position, and reading starts where the step says. Threads
decode, not worker processes: Pillow gives the interpreter's lock back while it decodes and resizes, a process forked
beside jax's threads can hang, and grain 0.2.18 leaves its workers and their shared memory behind where a run is killed.
"""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from data.decode import Crop

SIZE = 224  # Pixels a side of a network's input where nothing else is asked for.
SHARE = 7 / 8  # Of the shorter side, that the middle square covers: 224 pixels of 256.
SAMPLE = 2000  # Training pictures that the pixel statistics are taken from.
END = 2**62  # Of the training stream: no run gets there.


class View(NamedTuple):
    """How a picture of any size becomes a square: of `side` pixels, whose side is `share` of the picture's shorter one;
    in training a random resized crop instead where `random` says so."""

    side: int = SIZE
    share: float = SHARE
    random: bool = False


def view(image_size: int | None, augment: str) -> View:
    """The view for a network's input of `image_size` pixels. With "crop" (Krizhevsky, Sutskever & Hinton 2012) the
    stream gives the whole middle square, 256 pixels for an input of 224, and the device cuts the input out of it."""
    size = image_size or SIZE
    return View(round(size / SHARE), 1.0) if augment == "crop" else View(size, random=augment == "resized_crop")


def middle_box(height: int, width: int, *, share: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the middle square, in pixels. Resizing it alone gives the pixels that resizing the
    whole picture and cutting the middle out would give, without a huge array where a picture is long and thin."""
    side = share * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    height: int, width: int, *, random: np.random.Generator, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in whole pixels of a crop with an even share of the area in `scale` and an aspect
    width / height in `ratio` (Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    The paper leaves open how the aspect is spread: here its logarithm is even, so that wide and tall crops are equally
    likely. A crop that doesn't fit is drawn again, after ten the largest middle one is taken. Both as torchvision does.
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
    """What a test sees of a picture."""
    return lambda height, width: (middle_box(height, width, share=view.share), (view.side, view.side))


def sample(total: int, count: int) -> np.ndarray:
    """At most `count` of `total` rows in order, always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


class Stream:
    """Stands for the array uint8 [N, H, W, C] of the middle squares: it has a shape and can be indexed, and decodes
    what is asked for. `read(example, crop)` gives a square of one picture, uint8 [side, side, C], or raises DataError,
    which stops the reader.
    """

    def __init__(self, read: Callable[[int, Crop], np.ndarray], examples: np.ndarray, *, channels: int, view: View):
        self.read, self.examples, self.view = read, examples, view
        self.shape = (len(examples), view.side, view.side, channels)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, which) -> np.ndarray:
        rows = np.arange(len(self))[which]
        if rows.ndim == 0:
            return self._middle(rows)
        return next(self.chunks(len(rows), rows=rows), np.zeros((0, *self.shape[1:]), np.uint8))

    def keep(self, mask: np.ndarray) -> "Stream":
        """The pictures whose `mask`, bool [N], is true; nothing is decoded."""
        return Stream(self.read, self.examples[mask], channels=self.shape[-1], view=self.view)

    def chunks(self, size: int, *, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The middle squares of all pictures or of `rows`, in order, `size` at a time; the last part may be smaller."""
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
        """Endless batches {"image": [B, H, W, C], "label": [B]} from step `start` on: the i-th example stands at
        `position(i)` of the run's order, which is `row(position)`."""

        def example(i):
            place = position(i)
            picked = row(place)

            def random_crop(height, width):  # The third number keeps crops apart from the order, of (seed, epoch).
                return random_box(height, width, random=np.random.default_rng((seed, place, 1))), self.shape[1:3]

            crop = random_crop if self.view.random else middle(self.view)
            return {"image": self.read(self.examples[picked], crop), "label": labels[picked]}

        return self._run(example, start * batch_size, END, batch_size)

    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by channel on the scale 0 to 255, over the middle squares of a fixed sample.

        A pass over a million pictures would take longer than many a run, and normalisation doesn't need it: 2,000
        pictures give the mean to about a 45th of the spread between pictures. The sample doesn't depend on the run's
        seed, so that runs of a sweep, and a run that starts from another's weights, see the same input.
        """
        counts, values = np.zeros((self.shape[-1], 256), np.int64), np.arange(256.0)
        for part in self.chunks(64, rows=sample(len(self), SAMPLE)):
            for channel, histogram in enumerate(counts):  # Exact in whole numbers, and no float copy of the sample.
                histogram += np.bincount(part[..., channel].ravel(), minlength=256)
        mean = counts @ values / counts.sum(1)
        std = np.sqrt(np.maximum(counts @ values**2 / counts.sum(1) - mean**2, 0))
        return tuple(float(m) for m in mean), tuple(float(max(s, 1e-3)) for s in std)

    def _middle(self, row) -> np.ndarray:
        return self.read(self.examples[row], middle(self.view))

    def _run(self, function, start: int, stop: int, size: int) -> Iterator:
        """function(position) for start <= position < stop, in order, in batches of `size`; two batches ahead."""
        import grain  # Late: most runs hold their pictures in memory.

        options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=2 * size)
        positions = grain.MapDataset.range(start, stop)
        return iter(positions.map(function).to_iter_dataset(options).batch(size)) if size else iter(())
