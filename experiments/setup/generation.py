"""From generate's flags to a data set, the networks and a task."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import data
import models
from data import generated, stream
from data.dataset import Dataset, pixel_statistics
from experiments.cli import validation
from experiments.cli.flags import require
from experiments.reporting import generation_report
from experiments.setup import classification, fid_classifier
from models import dcgan
from train import loop
from train.parallel.devices import axis_of
from train.task import Task
from train.tasks import gan, gan_scores

ITEMS = 1000  # Test pictures, and samples and training pictures of a draw, that are compared.
BYTES = 4 << 30  # Of all pictures in memory.
BORDER = 8  # Pictures smaller than the networks' by up to 1 / BORDER are padded; others are resized.


class About(NamedTuple):
    """What a run's networks were made for; kept in run.json and in each checkpoint."""

    image_shape: tuple[int, ...]  # [H, W, C] of the pictures
    mean: tuple[float, ...]  # by channel, on the scale 0 to 255
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    classifier: tuple[str, ...] = ()  # The fingerprint of the one that samples are scored with, once it is there.


def _squares(images: np.ndarray, side: int) -> np.ndarray:
    """The middle squares of uint8 images [N, H, W, C], resized to `side`."""
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
    """The data set in memory, in squares of the networks' size or a little smaller; of each split but train at most
    ITEMS pictures, always the same."""
    splits = {}
    for split, (images, labels) in dataset.splits.items():
        rows = np.arange(len(labels)) if split == "train" else stream.sample(len(labels), ITEMS)
        if len(rows) < 2:  # A single picture has no covariance.
            raise data.DataError(f"{dataset.name}: {len(rows)} picture in the split {split}; scores need 2 or more")
        size = len(rows) * math.prod(images.shape[1:])
        if size > BYTES:
            raise data.DataError(f"{dataset.name}: {len(rows)} pictures of {split} take {size >> 30} GiB, more than 4")
        short = min(images.shape[1:3])
        side = asked or (32 if short <= 32 else 64)
        padded = side - side // BORDER <= short <= side
        splits[split] = _squares(images[rows], short if padded else side), labels[rows]
    return dataset._replace(splits=splits)


@functools.cache
def _load(name: str, data_dir: str | None, asked: int | None, skip_corrupt: bool) -> Dataset:
    load = functools.partial(data.load, name, data_dir, skip_corrupt=skip_corrupt)
    try:
        dataset = load()
        whole = not isinstance(validation.train_split(dataset)[0], stream.Stream)
    except data.SizesDiffer:
        if asked is None:
            raise
        whole = False
    if not whole:  # The whole middle squares, at once in the right size.
        dataset = load(image_size=round((asked or 64) * stream.SHARE), augment="crop")
    return _kept(dataset, asked)


@functools.cache
def _generated(asked: int | None) -> Dataset:
    """Noise in the place of the pictures."""
    dataset = generated.load(None)
    splits = {split: (images[:ITEMS], labels[:ITEMS]) for split, (images, labels) in dataset.splits.items()}
    return _kept(dataset._replace(splits=splits), asked)


def load_dataset(config: dict) -> Dataset:
    """The data set of the flags."""
    size = config["image_size"]
    require(size in (None, *dcgan.SIZES), f"--image_size={size}: accepted are 32 and 64")
    require(0 <= config["ema"] < 1, f"--ema={config['ema']}: accepted are values in [0, 1)")
    require(config["eval_split"] != "train", "--eval_split=train: samples are compared with pictures not trained on")
    if config["dry_run_data"]:
        return _generated(size)
    with validation.usage_errors():
        return _load(config["dataset"], config["data_dir"], size, config["skip_corrupt"])


def describe(config: dict, dataset: Dataset) -> About:
    """The constants of a data set, from its training split."""
    images, _ = validation.train_split(dataset)
    return About(images.shape[1:], *pixel_statistics(images), dataset.class_names)


def _scorer(config: dict, about: About, *, stop) -> tuple[gan.Scorer, About]:
    """The classifier, and how far training pictures are from the test pictures by its features: the mean over draws."""
    dataset = load_dataset(config)
    images, labels = dataset.splits["train"]
    tests = dataset.splits[classification.eval_split(dataset, config["eval_split"])][0]
    classifier = fid_classifier.load(images, labels, len(about.class_names), stop=stop, trial=config["dry_run"])
    if about.classifier not in ((), (classifier.fingerprint,)):
        loop.say("the classifier was trained anew: scores differ a little from those of the run before")
    step = jax.jit(lambda images: classifier.features(images)[0])

    def gaussian(images):
        found = np.concatenate([np.asarray(step(images[i : i + 250]), np.float64) for i in range(0, len(images), 250)])
        return found.mean(0), np.atleast_2d(np.cov(found.T))

    real = gaussian(tests)
    draws = [np.random.default_rng(i).permutation(len(images))[: len(tests)] for i in range(gan.DRAWS)]
    floor = np.mean([gan_scores.frechet_distance(gaussian(images[rows]), real) for rows in draws])
    about = about._replace(classifier=(classifier.fingerprint,))
    return gan.Scorer(classifier.features, images, labels, float(floor)), about


def form(config: dict, about: About, size: int) -> gan.Form:
    """Between pictures uint8 [B, H, W, C] and the networks' [B, size, size, C] in -1 .. 1, black around them."""
    before = (size - about.image_shape[0]) // 2
    after = size - about.image_shape[0] - before
    edges = ((0, 0), (before, after), (before, after), (0, 0))

    def to_network(images):
        return jnp.pad(images.astype(jnp.float32) / 127.5 - 1, edges, constant_values=-1)

    def to_picture(made):
        inside = made[:, before : size - after, before : size - after]
        return jnp.clip(jnp.round((inside + 1) * 127.5), 0, 255).astype(jnp.uint8)

    return gan.Form(to_network, to_picture, functools.partial(dcgan.latents, authors=config["authors"]))


class Generation(NamedTuple):
    """As build.Setup, with where latent vectors come from."""

    about: Any
    input_shape: tuple[int, ...]
    model: Any
    task: Task
    learning_rate: Any
    latents: Any


def setup(config: dict, about: About, *, devices: int, steps: int, scored: bool = True, stop=None) -> Generation:
    """The networks and their task, for a new run or for one that is read again; `scored` with what evaluations need, of
    which the classifier may have to be trained. Raises Interrupted where `stop` says so meanwhile."""
    axis = axis_of(devices)
    rate, optimizer = classification.gradient_descent(config, steps)
    size = next((size for size in dcgan.SIZES if about.image_shape[0] <= size), dcgan.SIZES[-1])
    input_shape = (size, size, about.image_shape[2])
    model = models.create(
        config["model"],
        len(about.class_names),
        size=size,
        channels=input_shape[2],
        authors=config["authors"],
        conditional=config["conditional"],
        axis_name=axis,
        sync_bn=config["sync_bn"],
    )
    made, shown = form(config, about, size), None
    if config["workdir"] and not config["dry_run"]:
        shown = functools.partial(
            generation_report.remember,
            config["workdir"],
            latents=made.latents,
            classes=len(about.class_names),
            conditional=config["conditional"],
        )
    judge, about = _scorer(config, about, stop=stop) if scored else (None, about)
    task = gan.create(
        model=model,
        optimizer=optimizer,
        image_shape=input_shape,
        form=made,
        scorer=judge,
        ema=config["ema"],
        axis=axis,
        shown=shown,
        dtype=validation.lower_precision(config),
    )
    return Generation(about, input_shape, model, task, rate, made.latents)


def read_again(run: dict, *, scored: bool) -> Generation:
    """The setup of run.json, on one device."""
    about = About(*(tuple(run.get(name, ())) for name in About._fields))
    return setup(run["flags"], about, devices=1, steps=run["steps"], scored=scored)
