"""Creates the data set, network and task of a segment config."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import models
from data import annotations, augment, camvid, convert, digit_scenes, masks
from data.dataset import Dataset, hold_out, pixel_statistics
from experiments.cli.app import UsageError, require
from experiments.cli.config import SegmentConfig
from experiments.setup import evaluation_data, fine_tuning
from experiments.setup.experiment import (
    Experiment,
    SegmentationInfo,
    check_batch_norm,
    held_out_fractions,
    network_dtype,
    schedule_and_optimizer,
    train_split,
)
from experiments.setup.saved_run import SavedRun
from train.messages import say
from train.parallel.devices import axis_of
from train.tasks import segmentation

STATISTICS = 500  # Number of training scenes for pixel statistics and computed class weights.
DEFAULT_WEIGHTS = {"digit_scenes": "scenes", "camvid": "published", "masks": "computed"}


def size_of(text: str | None, flag: str) -> tuple[int, int] | None:
    """Parses HEIGHTxWIDTH into (height, width). Raises UsageError for other text."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text or "")
    require(text is None or match is not None, f"--{flag}={text}: must be HEIGHTxWIDTH, such as 180x240, up to 99999")
    return (int(match[1]), int(match[2])) if match else None


@functools.cache
def _load_files(
    name: str,
    data_dir: str | None,
    size: tuple[int, int] | None,
    split: str | None,
    class_names: tuple[str, ...],
) -> Dataset:
    if name == "camvid":
        return camvid.load(data_dir, size=size, split=split)
    return masks.load(data_dir, size=size, split=split, class_names=class_names)


@functools.cache
def _load_scenes(val_fraction: float) -> Dataset:
    return digit_scenes.load(val_fraction)


def generated(size: tuple[int, int] | None) -> Dataset:
    """Random images and labels, with CamVid's classes and its number of images in each split."""
    random, shape = np.random.default_rng(0), size or (360, 480)
    splits = {}
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        labels = np.broadcast_to(random.integers(0, camvid.VOID + 1, shape, dtype=np.uint8), (count, *shape))
        images = np.broadcast_to(random.integers(0, 256, (*shape, 3), dtype=np.uint8), (count, *shape, 3))
        splits[split] = images, labels
    return Dataset("generated", splits, camvid.CLASSES)


def load_dataset(
    config: SegmentConfig,
    *,
    split: str | None = None,
    class_names: tuple[str, ...] = (),
    channels: int | None = None,
) -> Dataset:
    """Loads the data set, with images converted to `channels` (1 or 3) if given; the digits of which digit_scenes
    composes its training scenes stay gray. With `split`, only that split of image files is loaded, if it exists.
    `class_names` are those of a stored run, see masks.load."""
    size = size_of(config.image_size, "image_size")
    scenes = config.dataset == "digit_scenes"
    for name, value in (("image_size", config.image_size), ("crop", config.crop), ("data_dir", config.data_dir)):
        require(not (scenes and value), f"--{name}={value} is not supported by --dataset=digit_scenes")
    require(config.flip or not scenes, "--noflip is not supported by --dataset=digit_scenes")
    held = f"--test_fraction={config.test_fraction:g}: digit_scenes already has a split test"
    require(not (scenes and config.test_fraction), held)
    require(not (scenes and config.dry_run_data), "--dry_run_data is not supported by --dataset=digit_scenes")
    if scenes and "train" in (split, config.eval_split):
        flag = "split" if split else "eval_split"
        accepted = "test, or val for runs with --val_fraction"
        raise UsageError(f"--{flag}=train: digit_scenes generates new training scenes in each step; must be {accepted}")
    if scenes:
        dataset = _load_scenes(config.val_fraction)
        found = convert.fit(dataset, channels=channels)
        return found._replace(splits=found.splits | {"train": dataset.splits["train"]})
    only = None if any(held_out_fractions(config)) else split  # Images are held out of train.
    if config.dry_run_data:
        dataset = generated(size)
    else:
        dataset = _load_files(config.dataset, config.data_dir, size, only, class_names)
    return hold_out(convert.fit(dataset, channels=channels), *held_out_fractions(config))


def _composed(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """A fixed sample of training scenes."""
    keys = jax.random.split(jax.random.key(1), STATISTICS)
    images, labels = jax.jit(digit_scenes.scenes)(keys, *dataset.splits["train"])
    return np.asarray(images), np.asarray(labels)


def dataset_info(config: SegmentConfig, dataset: Dataset) -> SegmentationInfo:
    """Computes a data set's metadata from its training split. With --init_from, the mean and standard deviation are
    those that its weights were trained with."""
    train, scenes = train_split(dataset), dataset.name == "digit_scenes"
    images, labels = _composed(dataset) if scenes else train
    shape = dataset.splits["test"][0].shape[1:] if scenes else images.shape[1:]
    kind = config.class_weights or DEFAULT_WEIGHTS[config.dataset]
    supported = "--class_weights=published is supported by --dataset=camvid only"
    require(kind != "published" or config.dataset == "camvid", supported)
    classes = dataset.class_names
    weights = {
        "none": lambda: (1.0,) * len(classes),
        "scenes": lambda: digit_scenes.WEIGHTS,
        "published": lambda: camvid.PUBLISHED_WEIGHTS,
        "computed": lambda: annotations.computed_weights(labels, len(classes)),
    }[kind]()
    if kind == "computed":
        say("class weights: " + ", ".join(f"{n} {w:.4f}" for n, w in zip(classes, weights, strict=True)))
    mean, std = fine_tuning.constants(config) or pixel_statistics(images)
    colours, values = dataset.class_colours, dataset.class_values
    return SegmentationInfo(tuple(shape), mean, std, classes, weights, colours, values)


def preparations(config: SegmentConfig, info: SegmentationInfo):
    """Returns (train, eval): train(images, labels, keys) -> (inputs, labels) and eval(images) -> inputs."""
    raw = models.spec(config.model).raw_pixels

    def scaled(images):
        return images.astype(jnp.float32) if raw else augment.normalize(images, info.mean, info.std)

    if config.dataset == "digit_scenes":
        digits, names = _load_scenes(config.val_fraction).splits["train"]

        def compose(images, labels, keys):
            images, labels = digit_scenes.scenes(keys, digits, names)
            return scaled(jnp.broadcast_to(images, (*images.shape[:-1], info.image_shape[-1]))), labels

        return compose, scaled
    crop = size_of(config.crop, "crop") or (info.image_shape[0], info.image_shape[1])
    require(
        crop[0] <= info.image_shape[0] and crop[1] <= info.image_shape[1],
        f"--crop={config.crop}: must be at most {info.image_shape[0]}x{info.image_shape[1]}",
    )

    def cut(images, labels, keys):
        images, labels = augment.flip_crop_pair(images, labels, keys, size=crop, flip=config.flip)
        return scaled(images), labels

    return cut, scaled


def network(config: SegmentConfig, info: SegmentationInfo, *, axis: str | None = None, sync_bn: bool = True):
    """Creates the model; without an axis it runs on a single device."""
    decoder = {"decoder": config.decoder} if config.decoder else {}
    return models.create(config.model, len(info.class_names), axis_name=axis, sync_bn=sync_bn, **decoder)


def create_experiment(
    config: SegmentConfig, info: SegmentationInfo, *, devices: int, steps: int, checked: bool = True
) -> Experiment:
    """Creates the network and its task for a run on `devices`. With `checked=False`, for stored runs, skips the check
    that the batch is large enough for batch norm."""
    axis, dtype = axis_of(devices), network_dtype(config)
    train, evaluation = preparations(config, info)
    model = network(config, info, axis=axis, sync_bn=config.sync_bn)
    backbone = fine_tuning.backbone(config, model, info.image_shape)
    learning_rate, optimizer = schedule_and_optimizer(config, steps, model=config.model, groups=backbone.groups)
    if checked:
        check_batch_norm(config, model, info.image_shape, devices)
    statistics = None
    if config.exact_batch_norm:
        statistics = precise_bn(config, info, devices=devices, dtype=dtype, train=train, evaluation=evaluation)
    task = segmentation.create(
        model=backbone.module(model),
        optimizer=backbone.optimizer(optimizer),
        image_shape=info.image_shape,
        class_names=info.class_names,
        class_weights=info.class_weights,
        train_prepare=train,
        eval_prepare=evaluation,
        axis=axis,
        prepare_eval=statistics,
        dtype=dtype,
    )
    return Experiment(info, info.image_shape, model, backbone.task(task), learning_rate)


def precise_bn(config: SegmentConfig, info: SegmentationInfo, *, devices: int, dtype: str | None, train, evaluation):
    """Precise BN: returns a function that sets a state's batch statistics to those over the training images without
    augmentation (over 1,000 scenes of digit_scenes). Batches have the size over which a training step normalizes; the
    last batch overlaps the previous one, so that all have the same size."""
    scenes = config.dataset == "digit_scenes"

    def prepare(images, labels, keys):
        return train(images, labels, keys) if scenes else (evaluation(images), labels)

    def batches():
        images, labels = load_dataset(config, channels=info.image_shape[-1]).splits["train"]
        whole = config.batch_size // (1 if config.sync_bn else devices)
        size = min(2 if config.dry_run else max(1, whole), len(images))
        count = size if config.dry_run else 1000 if scenes else len(images)
        keys = jax.random.split(jax.random.key(2), count)
        for start in range(0, count, size):
            end = min(start + size, count)
            part = slice(end - size, end)
            yield {"image": images[part], "label": labels[part], "key": keys[part]}

    model = network(config, info)
    return segmentation.precise_batch_norm(model=model, prepare=prepare, batches=batches, dtype=dtype)


def for_evaluation(run: SavedRun, *, dataset: str | None, data_dir: str | None) -> SegmentConfig:
    """The run's config, adapted for evaluation on the given data, or on its own if both are None."""
    config = evaluation_data.on_own_data(run, dataset=dataset, data_dir=data_dir)
    if config.dataset == "digit_scenes":
        return config
    return dataclasses.replace(config, image_size="x".join(map(str, run.info.image_shape[:2])))
