"""What the training commands create from their config: data set metadata, network, optimizer and task."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

import models
from data.dataset import ALL, Dataset
from experiments.cli.app import UsageError, require
from experiments.cli.config import BatchNormConfig, TrainingConfig
from models import summary
from train import optimizers
from train.task import Task

HOLD_OUT = "add --val_fraction=0.1, --test_fraction=0.2 or both"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Metadata of the data set that a network is trained on; stored in run.json and in each checkpoint."""

    image_shape: tuple[int, ...]  # [H, W, C] of the images, before any crop
    mean: tuple[float, ...]  # by channel, on the scale 0 to 255
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ClassificationInfo(DatasetInfo):
    covariance: tuple[tuple[float, ...], ...] = ()  # of the channels, for --colour_noise; empty without it


@dataclasses.dataclass(frozen=True)
class SegmentationInfo(DatasetInfo):
    class_weights: tuple[float, ...] = ()
    class_colours: tuple[tuple[int, int, int], ...] = ()  # RGB; () if the data set has none
    class_values: tuple[int, ...] = ()  # Pixel value of each class in annotations; () if 0, 1, ...


@dataclasses.dataclass(frozen=True)
class GenerationInfo(DatasetInfo):
    classifier: tuple[str, ...] = ()  # The fingerprint of the FID classifier, once known.


class Experiment(NamedTuple):
    info: DatasetInfo
    input_shape: tuple[int, ...]  # [H, W, C] of the network's input
    model: nn.Module
    task: Task
    learning_rate: Callable[[int], Any]  # step -> rate


def train_split(dataset: Dataset) -> tuple[Any, Any]:
    """(images, labels) of the training split."""
    if ALL in dataset.splits and "train" not in dataset.splits:
        how = f"{HOLD_OUT}, or move the images to train/CLASS/ and test/CLASS/"
        raise UsageError(f"--dataset={dataset.name} has class folders, but no splits train and test: {how}")
    if "train" not in dataset.splits:
        hint = "; the folder of the training images must be named train" if dataset.name in ("folder", "masks") else ""
        raise UsageError(f"--dataset={dataset.name} has no split train, only {', '.join(dataset.splits)}{hint}")
    return dataset.splits["train"]


def eval_split(dataset: Dataset, given: str | None = None) -> str:
    """The split that a run is evaluated on: `given`, else val, else validation (the name in tfds), else test."""
    known = ", ".join(dataset.splits)
    require(
        not given or given in dataset.splits, f"--eval_split={given}: {dataset.name} has no such split, only {known}"
    )
    return given or _first(dataset, ("val", "validation", "test"), hint=f"; {HOLD_OUT}")


def scoring_split(dataset: Dataset, *, hint: str = "") -> str:
    """The split that a finished run is scored on: test, else val or validation, else all images of a folder that has
    class folders without splits. Raises UsageError, with the `hint`, if there is none."""
    return _first(dataset, ("test", "val", "validation", ALL), hint=hint)


def held_out_fractions(config: TrainingConfig) -> tuple[float, float]:
    """The fractions of the training images that are held out as val and test."""
    return config.val_fraction, config.test_fraction


def generated_split(config: TrainingConfig) -> str | None:
    """The split of --dry_run_data besides train: one that is not held out of train, if there is one."""
    held = {"val": config.val_fraction, "test": config.test_fraction}
    return next((name for name, fraction in held.items() if not fraction), None)


def _first(dataset: Dataset, names: tuple[str, ...], *, hint: str = "") -> str:
    for split in names:
        if split in dataset.splits:
            return split
    known = ", ".join(dataset.splits)
    raise UsageError(f"--dataset={dataset.name} has no split test, val or validation, only {known}{hint}")


def selects(split: str | None) -> bool:
    """Whether checkpoints may be selected by their score on the split. Selection on test would bias its score."""
    return split not in (None, "train", "test")


def schedule_and_optimizer(config: TrainingConfig, steps: int, *, model: str, groups=()):
    """Returns (learning-rate schedule, optax optimizer) for a run of `steps` steps. `groups` are as in
    optimizers.create, unless --parameter_groups selects the author's."""
    schedule = optimizers.schedule(
        config.schedule,
        learning_rate=config.learning_rate,
        steps=steps,
        warmup_steps=config.warmup_steps,
        drops=config.drops,
        drop_factor=config.drop_factor,
    )
    groups = models.spec(model).author_groups if config.parameter_groups == "author" else groups
    known = ", ".join(name for name, spec in models.MODELS.items() if spec.author_groups)
    supported = config.parameter_groups == "none" or bool(groups)
    require(supported, f"--parameter_groups=author is not supported by --model={model}; supported by: {known}")
    optimizer = optimizers.create(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        groups=groups,
        clip_norm=config.clip_norm,
    )
    return schedule, optimizer


def check_batch_norm(config: BatchNormConfig, model: nn.Module, input_shape, devices: int) -> None:
    """Raises UsageError if a batch-norm layer would normalize a single value per channel, which gives 0 for any
    input."""
    if getattr(config, "freeze", "none") == "backbone":  # Batch norm uses running averages.
        return
    rows = config.batch_size // getattr(config, "accumulate", 1) // (1 if config.sync_bn else devices)
    if rows == 1:
        for name, values in summary.normalised_values(model, input_shape, rows).items():
            line = f"{name} would normalize a single value per channel to 0: batch norm needs a larger batch"
            flags = [f"--{flag}" for flag in ("batch_size", "accumulate", "sync_bn") if hasattr(config, flag)]
            require(values > 1, f"{line} ({', '.join(flags)}) or larger images")


def network_dtype(config: TrainingConfig) -> str | None:
    """The data type of the network's computation, or None for that of its parameters, float32."""
    return None if config.dtype == "float32" else config.dtype
