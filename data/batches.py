"""Batches whose order is a pure function of (seed, epoch) and whose position is the step: nothing else to save."""

import functools
from collections.abc import Iterator

import numpy as np

from data.stream import Stream


@functools.lru_cache(maxsize=2)
def order(seed: int, epoch: int, *, examples: int) -> np.ndarray:
    """The permutation [examples] of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def rows(seed: int, step: int, *, batch_size: int, examples: int) -> np.ndarray:
    """The examples [batch_size] of one step. The epochs follow each other without a gap: each example comes once in
    each, and a batch may hold the end of one and the start of the next."""
    positions = step * batch_size + np.arange(batch_size)
    epochs = positions // examples
    picked = [order(seed, int(e), examples=examples)[positions[epochs == e] % examples] for e in np.unique(epochs)]
    return np.concatenate(picked)


def train_batches(images, labels, *, batch_size: int, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches {"image": [B, H, W, C], "label": [B]} from step `start` on."""
    if isinstance(images, Stream):

        def row(position):
            return int(rows(seed, position, batch_size=1, examples=len(labels))[0])

        yield from images.train_batches(labels, row, batch_size=batch_size, seed=seed, start=start)
    step = start
    while True:
        picked = rows(seed, step, batch_size=batch_size, examples=len(labels))
        yield {"image": images[picked], "label": labels[picked]}
        step += 1


def eval_batches(images, labels, *, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order; the last batch is filled up with zeros, and "mask" [B] is 0.0 there."""
    starts = range(0, len(labels), batch_size)
    if isinstance(images, Stream):
        parts = images.chunks(batch_size)  # They are decoded while the device is at work on the one before.
    else:
        parts = (images[start : start + batch_size] for start in starts)
    for start, image in zip(starts, parts, strict=True):
        label = labels[start : start + batch_size]
        missing = batch_size - len(label)
        yield {
            "image": np.pad(image, ((0, missing), *((0, 0),) * (image.ndim - 1))),
            "label": np.pad(label, ((0, missing),)),
            "mask": (np.arange(batch_size) < len(label)).astype(np.float32),
        }
