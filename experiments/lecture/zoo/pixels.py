"""Code shared by the zoo's networks that output images: data, training, images in results."""

from typing import NamedTuple

import numpy as np
import optax
from numpy.typing import ArrayLike

import data
from experiments.setup import small_training
from train.tasks import reconstruction

BATCH_SIZE = 100
SHAPE = (28, 28, 1)


class Digits(NamedTuple):
    """Digits as uint8 [N, 28, 28, 1] and their labels [N]."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def digits() -> Digits:
    """The training and test digits of mnist5k."""
    splits = data.load("mnist5k").splits
    return Digits(*splits["train"], *splits["test"])


def flat(images: np.ndarray) -> np.ndarray:
    """Flattens uint8 [N, H, W, C] to rows of pixels in 0 .. 1, [N, H * W * C]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def one_of_each(labels: np.ndarray) -> np.ndarray:
    """The index of the first example of each class."""
    return np.array([int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)])


def fit(task, images: np.ndarray, labels: np.ndarray, *, steps: int, seed: int):
    """Trains a task for `steps` steps and returns its state."""
    return small_training.train(task, images, labels, batch_size=BATCH_SIZE, steps=steps, seed=seed)


def annealed_adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a cosine schedule from `rate` to zero."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def evaluated(task, state, images: np.ndarray) -> dict[str, float]:
    """Evaluates a reconstruction task on images and returns its metrics."""
    import jax

    rows = np.arange(len(images))
    batch = {"image": images, "row": rows, "mask": np.ones(len(images), np.float32)}
    return task.compute_metrics(jax.jit(task.eval_step)(state, batch))


def errors(output: ArrayLike, images: ArrayLike) -> dict[str, float]:
    """The mean squared error per pixel and the mean PSNR in dB of rows of pixels, as defined in `reconstruction`."""
    squares = np.square(np.asarray(output) - np.asarray(images)).reshape(len(np.asarray(images)), -1).mean(1)
    return {"squared_error": float(squares.mean()), "psnr": float(np.mean(reconstruction.psnr(squares)))}


def as_lists(images: ArrayLike, *, signed: bool = False) -> list:
    """Converts images [N, ...] of 28x28 pixels in 0 .. 1 to lists of integers in 0 .. 255; if `signed`, each image is
    divided by its largest magnitude and scaled to -127 .. 127."""
    pixels = np.asarray(images, np.float64).reshape(-1, *SHAPE[:2])
    if signed:
        largest = np.abs(pixels).max((1, 2), keepdims=True)
        return np.round(127 * pixels / np.where(largest > 0, largest, 1)).astype(int).tolist()
    return np.round(255 * np.clip(pixels, 0, 1)).astype(int).tolist()
