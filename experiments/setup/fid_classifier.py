"""The classifier whose features score generated images: the project's cnn, trained once per data set and cached."""

import contextlib
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import models
from data import augment, cache
from data.dataset import pixel_statistics
from experiments.cli.compilation_cache import cache_folder
from experiments.setup import small_training
from models.layers import relu
from train import leaves, optimizers
from train.messages import say
from train.signals import Interrupted, Stop
from train.tasks import classification

BATCH, SEED = 64, 0
EPOCHS, MANY = 16, 10_000  # The demo's number of epochs; with more than MANY images, 3 epochs.


class Classifier(NamedTuple):
    features: Callable[..., Any]  # uint8 [B, H, W, C] -> (penultimate features [B, 64], logits [B, K])
    fingerprint: str


def _task(images: np.ndarray, classes: int, steps: int):
    """Returns (task, network, function from images to the network's input), trained with the demo's recipe."""
    mean, std = pixel_statistics(images)
    gray = images.shape[-1] == 1

    def normalize(images):
        return augment.normalize(images, mean, std)

    def train(images, keys):
        return normalize(augment.digits(images, keys)) if gray else augment.flip_shift(normalize(images), keys)

    rate = optimizers.schedule("one_cycle", learning_rate=0.1, steps=steps)
    model = models.create("cnn", classes)
    task = classification.create(
        model=model,
        optimizer=optimizers.create("sgd", rate, momentum=0.9, nesterov=True, weight_decay=0.0005),
        image_shape=images.shape[1:],
        class_names=tuple(map(str, range(classes))),
        train_prepare=train,
        eval_prepare=normalize,
        axis=None,
    )
    return task, model, normalize


def load(
    images: np.ndarray, labels: np.ndarray, classes: int, *, stop: Stop | None = None, trial: bool = False
) -> Classifier:
    """Returns the classifier for training images uint8 [N, H, W, C] and labels [N], from the user's cache or newly
    trained; a `trial` trains for only two steps. Raises Interrupted after a signal."""
    batch = min(BATCH, len(labels))
    steps = 2 if trial else (EPOCHS if len(labels) <= MANY else 3) * len(labels) // batch
    task, model, normalize = _task(images, classes, steps)
    digest = hashlib.sha256(f"{jax.__version__} {classes} {images.shape} {steps} {batch} {SEED}".encode())
    digest.update(np.ascontiguousarray(images).tobytes() + np.asarray(labels, np.int32).tobytes())
    path = None
    with contextlib.suppress(OSError):  # Without a home folder the classifier is not cached.
        path = cache_folder().with_name("classifiers") / f"{digest.hexdigest()}.npz"
    like = jax.eval_shape(task.init, jax.random.key(SEED))
    found = _read(path, like) if path else None
    if found is None:
        say(f"training the classifier that scores samples: {steps} steps, once per data set")
        found = _train(task, images, labels, batch=batch, steps=steps, stop=stop)
        if path:
            _write(path, found)
    variables = {"params": found.params, "batch_stats": found.batch_stats}

    def features(images):
        logits, kept = model.apply(
            variables,
            normalize(images),
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: module.name == "bn_dense",
        )
        return relu(kept["intermediates"]["bn_dense"]["__call__"][0]), logits

    return Classifier(features, leaves.fingerprint(found.params, found.batch_stats))


def _train(task, images, labels, *, batch: int, steps: int, stop: Stop | None):
    def watch(step, state):
        del step, state
        if stop is not None and stop.number:
            raise Interrupted(stop.number, 0)

    return small_training.train(task, images, labels, batch_size=batch, steps=steps, seed=SEED, every=10, watch=watch)


def _read(path: pathlib.Path, like):
    """Reads the cached state; None if the file is missing, damaged or from a different classifier."""
    shapes = _kept(leaves.shapes(like))
    found = cache.read(path, path.stem, *shapes)
    if found is None or {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in found.items()} != shapes:
        return None
    return leaves.from_host(found, like)


def _write(path: pathlib.Path, state) -> None:
    """Stores the state in the cache; a failure is reported as a warning."""
    with contextlib.suppress(OSError):  # If this fails, cache.write fails too and warns.
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    cache.write(path, path.stem, what="training the classifier", **_kept(leaves.to_host(state)))


def _kept(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in tree.items() if name.startswith((".params", ".batch"))}
