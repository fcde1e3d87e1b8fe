"""Creates the data set, networks and task of a generate config."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import data
import models
from data import generated, stream
from data.dataset import Dataset, hold_out, pixel_statistics
from experiments.cli.app import require
from experiments.cli.config import GenerateConfig
from experiments.setup import fid_classifier
from experiments.setup.experiment import (
    Experiment,
    GenerationInfo,
    check_batch_norm,
    generated_split,
    held_out_fractions,
    network_dtype,
    schedule_and_optimizer,
    train_split,
)
from models import dcgan
from train.messages import say
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.signals import Stop
from train.tasks import gan, gan_scores

ITEMS = 1000  # Images used for a score: from the evaluated split, and samples and training images per draw.
BYTES = 4 << 30  # Maximum size of a split in memory.
BORDER = 8  # Images smaller than the networks' size by at most 1 / BORDER of it are padded; others are resized.


def _squares(images: np.ndarray, side: int) -> np.ndarray:
    """Center square crops of uint8 images [N, H, W, C], resized to `side`."""
    short = min(images.shape[1:3])
    top, left = ((size - short) // 2 for size in images.shape[1:3])
    images = images[:, top : top + short, left : left + short]
    if short == side:
        return images
    shape = (side, side, images.shape[-1])
    resize = jax.jit(jax.vmap(lambda x: jax.image.resize(x.astype(jnp.float32), shape, "linear")))
    parts = [np.asarray(resize(images[i : i + 500])) for i in range(0, len(images), 500)]
    return np.clip(np.round(np.concatenate(parts)), 0, 255).astype(np.uint8)


def _kept(dataset: Dataset, asked: int | None) -> Dataset:
    """The data set in memory as squares of the networks' size or slightly smaller, with a fixed sample of at most ITEMS
    images of each split except train."""
    splits = {}
    for split, (images, labels) in dataset.splits.items():
        rows = np.arange(len(labels)) if split == "train" else stream.sample(len(labels), ITEMS)
        if len(rows) < 2:  # A single image has no covariance.
            raise data.DataError(f"{dataset.name}: {len(rows)} image in the split {split}; scores need 2 or more")
        size = len(rows) * math.prod(images.shape[1:])
        if size > BYTES:
            raise data.DataError(f"{dataset.name}: {len(rows)} images of {split} take {size >> 30} GiB; the limit is 4")
        short = min(images.shape[1:3])
        side = asked or (32 if short <= 32 else 64)
        padded = side - side // BORDER <= short <= side
        splits[split] = _squares(images[rows], short if padded else side), labels[rows]
    return dataset._replace(splits=splits)


@functools.cache
def _load(name: str, data_dir: str | None, asked: int | None, skip_corrupt: bool, held: tuple[float, float]) -> Dataset:
    def load(**view):
        return hold_out(data.load(name, data_dir, skip_corrupt=skip_corrupt, **view), *held)

    try:
        dataset = load()
        in_memory = not isinstance(train_split(dataset)[0], stream.Stream)
    except data.SizesDiffer:
        if asked is None:
            raise
        in_memory = False
    if not in_memory:  # Decode the full center squares directly to the final size.
        dataset = load(image_size=round((asked or 64) * stream.SHARE), augment="crop")
    return _kept(dataset, asked)


@functools.cache
def _generated(asked: int | None, other: str | None, held: tuple[float, float]) -> Dataset:
    """Random images instead of the data set."""
    dataset = generated.load(None, other=other)
    splits = {split: (images[:ITEMS], labels[:ITEMS]) for split, (images, labels) in dataset.splits.items()}
    dataset = dataset._replace(splits=splits)
    return _kept(hold_out(dataset, *held), asked)


def load_dataset(config: GenerateConfig) -> Dataset:
    """Loads the data set into memory: all training images, and at most ITEMS images of each other split."""
    size = config.image_size
    require(size in (None, *dcgan.SIZES), f"--image_size={size}: must be 32 or 64")
    require(config.eval_split != "train", "--eval_split=train: samples are compared with images not used for training")
    if config.dry_run_data:
        return _generated(size, generated_split(config), held_out_fractions(config))
    return _load(config.dataset, config.data_dir, size, config.skip_corrupt, held_out_fractions(config))


def dataset_info(dataset: Dataset) -> GenerationInfo:
    """Computes a data set's metadata from its training split."""
    images, _ = train_split(dataset)
    return GenerationInfo(tuple(images.shape[1:]), *pixel_statistics(images), dataset.class_names)


def create_scorer(
    config: GenerateConfig, info: GenerationInfo, dataset: Dataset, split: str, *, stop: Stop | None = None
) -> tuple[gan.Scorer, GenerationInfo]:
    """Returns (the scorer for evaluations on `split`, the info with its classifier's fingerprint). Trains the
    classifier if it is not cached; raises Interrupted after a signal.

    The scorer's floor is the Fréchet distance between training images and those of `split` in the classifier's feature
    space, averaged over draws.
    """
    images, labels = dataset.splits["train"]
    tests, _ = dataset.splits[split]
    classifier = fid_classifier.load(images, labels, len(info.class_names), stop=stop, trial=config.dry_run)
    if info.classifier not in ((), (classifier.fingerprint,)):
        say("the classifier was retrained: scores differ slightly from those of the stored run")
    step = data_parallel.parallelize(lambda images: classifier.features(images)[0], 1, donate=False)

    def gaussian(images):
        found = np.concatenate([np.asarray(step(images[i : i + 250]), np.float64) for i in range(0, len(images), 250)])
        return found.mean(0), np.atleast_2d(np.cov(found.T))

    real = gaussian(tests)
    draws = [np.random.default_rng(i).permutation(len(images))[: len(tests)] for i in range(gan.DRAWS)]
    floor = np.mean([gan_scores.frechet_distance(gaussian(images[rows]), real) for rows in draws])
    info = dataclasses.replace(info, classifier=(classifier.fingerprint,))
    return gan.Scorer(classifier.features, images, labels, float(floor)), info


def latents(config: GenerateConfig):
    """The function from keys [B] to latent vectors [B, L]."""
    return functools.partial(dcgan.latents, authors=config.authors)


def form(config: GenerateConfig, info: GenerationInfo, size: int, *, as_uint8: bool = True) -> gan.Form:
    """The conversion between images uint8 [B, H, W, C] and the networks' images [B, size, size, C] in -1 .. 1, which
    are padded with black. Without `as_uint8`, it converts to images in 0 .. 1."""
    before = (size - info.image_shape[0]) // 2
    after = size - info.image_shape[0] - before
    edges = ((0, 0), (before, after), (before, after), (0, 0))

    def to_network(images):
        return jnp.pad(images.astype(jnp.float32) / 127.5 - 1, edges, constant_values=-1)

    def to_image(made):
        ends = (made.shape[0], size - after, size - after, made.shape[3])  # A slice also for a symbolic batch size.
        inside = lax.slice(made, (0, before, before, 0), ends)
        if not as_uint8:
            return jnp.clip((inside + 1) / 2, 0, 1)
        return jnp.clip(jnp.round((inside + 1) * 127.5), 0, 255).astype(jnp.uint8)

    return gan.Form(to_network, to_image, latents(config))


def create_experiment(
    config: GenerateConfig,
    info: GenerationInfo,
    *,
    devices: int,
    steps: int,
    scorer: gan.Scorer | None = None,
    checked: bool = True,
) -> Experiment:
    """Creates the networks and their task for a run on `devices`. Without a `scorer` the task can't be evaluated. With
    `checked=False`, for stored runs, skips the check that the batch is large enough for batch norm."""
    axis = axis_of(devices)
    learning_rate, optimizer = schedule_and_optimizer(config, steps, model=config.model)
    size = next((size for size in dcgan.SIZES if info.image_shape[0] <= size), dcgan.SIZES[-1])
    input_shape = (size, size, info.image_shape[2])
    model = models.create(
        config.model,
        len(info.class_names),
        size=size,
        channels=input_shape[2],
        authors=config.authors,
        conditional=config.conditional,
        axis_name=axis,
        sync_bn=config.sync_bn,
    )
    if checked:
        check_batch_norm(config, model, input_shape, devices)
    task = gan.create(
        model=model,
        optimizer=optimizer,
        image_shape=input_shape,
        form=form(config, info, size),
        scorer=scorer,
        ema=config.ema,
        axis=axis,
        dtype=network_dtype(config),
    )
    return Experiment(info, input_shape, model, task, learning_rate)
