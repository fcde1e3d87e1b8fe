"""From segment's flags to a data set, a network and a task."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import augment, camvid, digit_scenes
from data.dataset import Dataset, pixel_statistics
from experiments.cli import validation
from experiments.cli.flags import UsageError, require
from experiments.setup import classification, preprocessing
from experiments.setup.classification import Setup
from train import loop
from train.parallel.devices import axis_of
from train.tasks import segmentation

STATISTICS = 500  # Training scenes that pixel statistics and computed weights are taken from.


class About(NamedTuple):
    """What a run's network was made for; kept in run.json and in each checkpoint."""

    image_shape: tuple[int, ...]  # [H, W, C]
    mean: tuple[float, ...]  # by channel, on the scale 0 to 255
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    class_weights: tuple[float, ...]


def size_of(text: str | None, flag: str) -> tuple[int, int] | None:
    """(height, width) of HEIGHTxWIDTH. Raises UsageError for other text."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text or "")
    require(text is None or match is not None, f"--{flag}={text}: accepted is HEIGHTxWIDTH, as 180x240")
    return (int(match[1]), int(match[2])) if match else None


@functools.cache
def _load(dataset: str, data_dir: str | None, size: tuple[int, int] | None, split: str | None = None) -> Dataset:
    return digit_scenes.load() if dataset == "digit_scenes" else camvid.load(data_dir, size=size, split=split)


def generated(size: tuple[int, int] | None) -> Dataset:
    """Noise in the place of CamVid, as many pictures."""
    random, shape = np.random.default_rng(0), size or (360, 480)
    splits = {}
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        labels = np.broadcast_to(random.integers(0, camvid.VOID + 1, shape, dtype=np.uint8), (count, *shape))
        images = np.broadcast_to(random.integers(0, 256, (*shape, 3), dtype=np.uint8), (count, *shape, 3))
        splits[split] = images, labels
    return Dataset("generated", splits, camvid.CLASSES)


def load_dataset(config: dict, *, split: str | None = None) -> Dataset:
    """The data set; with a `split`, of picture files that one alone if there is one."""
    size = size_of(config["image_size"], "image_size")
    scenes = config["dataset"] == "digit_scenes"
    for name in ("image_size", "crop", "data_dir"):
        require(not (scenes and config[name]), f"--{name}={config[name]} is not for --dataset=digit_scenes")
    require(config["flip"] or not scenes, "--noflip is for --dataset=camvid")
    if scenes and "train" in (split, config["eval_split"]):
        flag = "split" if split else "eval_split"
        raise UsageError(f"--{flag}=train: digit_scenes composes a step's scenes afresh; test is accepted")
    if config["dry_run_data"] and not scenes:
        return generated(size)
    return _load(config["dataset"], config["data_dir"], size, split)


def _composed(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Some training scenes, always the same."""
    keys = jax.random.split(jax.random.key(1), STATISTICS)
    images, labels = jax.jit(digit_scenes.scenes)(keys, *dataset.splits["train"])
    return np.asarray(images), np.asarray(labels)


def describe(config: dict, dataset: Dataset) -> About:
    """The constants of a data set, from its training split."""
    train, scenes = validation.train_split(dataset), dataset.name == "digit_scenes"
    images, labels = _composed(dataset) if scenes else train
    kind = config["class_weights"] or ("scenes" if scenes else "published")
    require(not (scenes and kind == "published"), "--class_weights=published is for --dataset=camvid")
    classes = dataset.class_names
    weights = {
        "none": lambda: (1.0,) * len(classes),
        "scenes": lambda: digit_scenes.WEIGHTS,
        "published": lambda: camvid.PUBLISHED_WEIGHTS,
        "computed": lambda: camvid.computed_weights(labels, len(classes)),
    }[kind]()
    if kind == "computed":
        loop.say("class weights: " + ", ".join(f"{n} {w:.4f}" for n, w in zip(classes, weights, strict=True)))
    return About(images.shape[1:], *pixel_statistics(images), classes, weights)


def preparations(config: dict, about: About):
    """(train, eval): train(images, labels, keys) -> (images, labels) and eval(images) make the network's input."""
    raw = models.spec(config["model"]).raw_pixels

    def scaled(images):
        return images.astype(jnp.float32) if raw else augment.normalize(images, about.mean, about.std)

    if config["dataset"] == "digit_scenes":
        digits, names = _load("digit_scenes", None, None).splits["train"]

        def compose(images, labels, keys):
            images, labels = digit_scenes.scenes(keys, digits, names)
            return scaled(images), labels

        return compose, scaled
    crop = size_of(config["crop"], "crop") or (about.image_shape[0], about.image_shape[1])
    require(
        crop[0] <= about.image_shape[0] and crop[1] <= about.image_shape[1],
        f"--crop={config['crop']}: accepted are up to {about.image_shape[0]}x{about.image_shape[1]}",
    )

    def cut(images, labels, keys):
        images, labels = augment.flip_crop_pair(images, labels, keys, size=crop, flip=config["flip"])
        return scaled(images), labels

    return cut, scaled


def network(config: dict, about: About, *, axis: str | None = None, sync_bn: bool = True):
    """The model; one that uses no other devices without an axis."""
    decoder = {"decoder": config["decoder"]} if config["decoder"] else {}
    return models.create(config["model"], len(about.class_names), axis_name=axis, sync_bn=sync_bn, **decoder)


def setup(config: dict, about: About, *, devices: int, steps: int) -> Setup:
    """The network and its task, for a new run or for one that is read again."""
    axis = axis_of(devices)
    rate, optimizer = classification.gradient_descent(config, steps)
    train, evaluation = preparations(config, about)
    model = network(config, about, axis=axis, sync_bn=config["sync_bn"])
    dtype, statistics = validation.lower_precision(config), None
    if config["exact_batch_norm"]:
        statistics = exact(config, about, devices=devices, dtype=dtype, train=train, evaluation=evaluation)
    task = segmentation.create(
        model=model,
        optimizer=optimizer,
        image_shape=about.image_shape,
        class_names=about.class_names,
        class_weights=about.class_weights,
        train_prepare=train,
        eval_prepare=evaluation,
        axis=axis,
        prepare_eval=statistics,
        dtype=dtype,
    )
    return Setup(about, about.image_shape, model, task, rate)


def exact(config: dict, about: About, *, devices: int, dtype: str | None, train, evaluation):
    """What puts batch statistics over the training pictures, as they are, into a state; of scenes over a thousand. A
    batch is as large as that over which a training step normalises; the last one begins earlier, so that all have one
    size."""
    scenes = config["dataset"] == "digit_scenes"

    def prepare(images, labels, keys):
        return train(images, labels, keys) if scenes else (evaluation(images), labels)

    def batches():
        images, labels = load_dataset(config).splits["train"]
        whole = config["batch_size"] // (1 if config["sync_bn"] else devices)
        size = min(2 if config["dry_run"] else max(1, whole), len(images))
        count = size if config["dry_run"] else 1000 if scenes else len(images)
        keys = jax.random.split(jax.random.key(2), count)
        for start in range(0, count, size):
            end = min(start + size, count)
            part = slice(end - size, end)
            yield {"image": images[part], "label": labels[part], "key": keys[part]}

    model = network(config, about)
    return segmentation.precise_batch_norm(model=model, prepare=prepare, batches=batches, dtype=dtype)


def for_evaluation(run: dict, *, dataset: str | None, data_dir: str | None) -> tuple[dict, Setup]:
    """(flags of the data to score, the run's setup): those given, or where both are None the run's own."""
    config = preprocessing.on_own_data(run, dataset=dataset, data_dir=data_dir)
    if config["dataset"] != "digit_scenes":
        config = config | {"image_size": "x".join(map(str, run["image_shape"][:2]))}
    return config, read_again(run)


def read_again(run: dict) -> Setup:
    """The setup of run.json, on one device."""
    about = About(*(tuple(run[name]) for name in About._fields))
    return setup(run["flags"], about, devices=1, steps=run["steps"])
