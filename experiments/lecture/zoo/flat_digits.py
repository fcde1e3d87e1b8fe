"""The digits as vectors of pixels, for networks that do not use the image shape."""

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans

import data


class FlatDigits(NamedTuple):
    """mnist5k: float32 pixels [N, 784] in 0 .. 1 and labels [N] of the training and the test split."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def flat_digits(examples: int | None = None) -> FlatDigits:
    """Loads mnist5k; with `examples`, about that many training and test digits each, balanced over classes."""
    found = []
    for images, labels in data.load("mnist5k").splits.values():
        rows = slice(None, None, max(1, len(labels) // examples) if examples else 1)
        found += [np.asarray(images[rows].reshape(-1, 784), np.float32) / 255, labels[rows]]
    return FlatDigits(*found)


def one_hot(labels) -> np.ndarray:
    """One-hot targets [N, 10] of a readout."""
    return np.eye(10, dtype=np.float32)[labels]


def accuracy(scores, labels) -> float:
    """The fraction of examples whose label has the largest of the scores [N, 10]."""
    return float((np.asarray(scores).argmax(1) == labels).mean())


def k_means_centres(pixels, count: int, *, steps: int, seed: int) -> np.ndarray:
    """The centers [count, 784] after at most `steps` steps of k-means, initialized with random digits."""
    return KMeans(count, init="random", n_init=1, max_iter=steps, random_state=seed).fit(pixels).cluster_centers_


def as_hex(images) -> list[str]:
    """Encodes images [N, 784] in 0 .. 1 as hexadecimal bytes, which are compact in JSON."""
    return [row.tobytes().hex() for row in np.round(255 * np.clip(np.asarray(images), 0, 1)).astype(np.uint8)]


def mosaic(images: list[str], columns: int) -> np.ndarray:
    """Tiles images encoded by `as_hex` in rows of `columns`, [H, W]; their number must be a multiple of `columns`."""
    grid = np.array([list(bytes.fromhex(image)) for image in images]).reshape(-1, columns, 28, 28)
    return grid.transpose(0, 2, 1, 3).reshape(-1, 28 * columns)
