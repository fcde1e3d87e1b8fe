"""Random noise images in place of a missing data set, for dry runs of a recipe."""

from typing import Any

import numpy as np

from data.dataset import Dataset
from data.stream import Stream, View

LARGE, SMALL = (1_281_167, 1000), (50_000, 10)  # (images, classes) of ImageNet and CIFAR-10.


def load(view: View | None, *, other: str | None = "val", channels: int = 3) -> Dataset:
    """Returns a data set of the size of ImageNet, streamed with `view`, or, if `view` is None, of the size of CIFAR-10,
    in memory. The second split, after train, is called `other`; None: there is no second split."""
    random = np.random.default_rng(0)
    count, classes = LARGE if view else SMALL
    splits: dict[str, tuple[Any, np.ndarray]] = {}
    for split, length in (("train", count), *(((other, count // 20),) if other else ())):
        labels = np.arange(length, dtype=np.int32) % classes
        if view:
            noise = random.integers(0, 256, (view.side, 2 * view.side, channels), dtype=np.uint8)
            read = lambda example, crop, noise=noise: noise[:, example % view.side :][:, : view.side]  # noqa: E731
            splits[split] = Stream(read, np.arange(length), channels=channels, view=view), labels
        else:
            splits[split] = random.integers(0, 256, (length, 32, 32, channels), dtype=np.uint8), labels
    return Dataset("generated", splits, tuple(f"{i:04d}" for i in range(classes)))
