"""Checks dependencies between flags before anything is loaded. Bounds of single flags are in config.py; dependencies on
the data set or the network are checked where these are created."""

import dataclasses
import pathlib
import re

from experiments.cli import options
from experiments.cli.app import require
from experiments.cli.config import (
    ClassifyConfig,
    GenerateConfig,
    NetworkConfig,
    ReconstructConfig,
    SegmentConfig,
    TrainingConfig,
)

MOST_TRACED = 1000  # Steps. The trace is held in memory: 50,000 steps of a small mlp took more than 5 GB.


def _no_effect(config: TrainingConfig | NetworkConfig, names: tuple[str, ...], why: str) -> None:
    """Raises UsageError if one of the flags differs from its default although it has no effect."""
    for field in dataclasses.fields(config):
        if field.name in names:
            value = getattr(config, field.name)
            require(value == field.default, f"--{field.name}={options.given(value)} has no effect {why}")


def in_files(dataset: str) -> bool:
    """Whether the data set consists of image files, in folders or in a prepared store."""
    return dataset == "folder" or dataset.startswith("tfds:")


def check_skip_corrupt(skip_corrupt: bool, dataset: str) -> None:
    supported = f"--skip_corrupt is supported by --dataset=folder and tfds:NAME, not by {dataset}"
    require(in_files(dataset) or not skip_corrupt, supported)


def profiled_steps(given: str | None) -> range:
    """The steps A to B - 1 of --profile_steps=A:B; none without the flag. Raises UsageError if it is malformed or asks
    for a trace that could exhaust memory."""
    if given is None:
        return range(0)
    match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", given)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    require(len(steps) > 0, f"--profile_steps={given}: must be A:B with 0 <= A < B, such as 100:103")
    require(len(steps) <= MOST_TRACED, f"--profile_steps={given}: must be at most {MOST_TRACED:,} steps")
    return steps


def _check_workdir(config: TrainingConfig) -> None:
    """Raises UsageError if the run's figures would become images of the data set `folder`, which skips hidden folders
    only."""
    if getattr(config, "dataset", None) != "folder" or not config.data_dir:
        return
    workdir, data_dir = (pathlib.Path(path).resolve() for path in (config.workdir, config.data_dir))
    inside = workdir.is_relative_to(data_dir)
    hidden = inside and any(part.startswith(".") for part in workdir.relative_to(data_dir).parts)
    line = f"--workdir={config.workdir} is inside --data_dir={config.data_dir}, which would include the run's figures"
    require(hidden or not inside, f"{line}; choose a folder outside")


def check_training(config: TrainingConfig) -> None:
    """Checks the flags that all training commands share."""
    devices, batch_size = config.devices, config.batch_size
    require(
        devices is None or devices <= batch_size,
        f"--devices={devices}: must be between 1 and the batch size, {batch_size}",
    )
    held = config.val_fraction + config.test_fraction
    both = f"--val_fraction={config.val_fraction:g} --test_fraction={config.test_fraction:g}"
    require(held < 1, f"{both}: their sum must be less than 1, because the rest of the images is used for training")
    _check_workdir(config)
    require(not config.dry_run_data or config.dry_run, "--dry_run_data needs --dry_run")
    profiled_steps(config.profile_steps)
    require(not config.nesterov or config.momentum > 0, "--nesterov needs --momentum greater than 0")
    if config.optimizer != "sgd":
        _no_effect(config, ("nesterov",), f"with --optimizer={config.optimizer}")
    if config.optimizer == "muon":
        _no_effect(config, ("momentum",), "with --optimizer=muon")
    if config.schedule != "step":
        _no_effect(config, ("drops", "drop_factor"), f"with --schedule={config.schedule}")
    require(config.schedule != "step" or bool(config.drops), "--schedule=step needs --drops")
    if config.schedule == "one_cycle":
        _no_effect(config, ("warmup_steps",), "with --schedule=one_cycle, which has its own warmup")


def check_fine_tuning(config: ClassifyConfig | SegmentConfig) -> None:
    for name, value, neutral in (("freeze", config.freeze, "none"), ("backbone_rate", config.backbone_rate, 1.0)):
        require(value == neutral or bool(config.init_from), f"--{name}={value} needs --init_from=WORKDIR")
    if config.freeze == "backbone":
        _no_effect(config, ("backbone_rate", "remat"), "with --freeze=backbone, which trains only the head")
        unused = ("dropout", "dropout_after", "sync_bn", "exact_batch_norm")
        _no_effect(config, unused, "with --freeze=backbone, which runs the network in evaluation mode")
    if config.parameter_groups == "author":
        _refuse(config, "--parameter_groups=author", backbone_rate=1.0)


def check_segment(config: SegmentConfig) -> None:
    check_training(config)
    check_fine_tuning(config)


def check_generate(config: GenerateConfig) -> None:
    check_training(config)
    check_skip_corrupt(config.skip_corrupt, config.dataset)


def check_reconstruct(config: ReconstructConfig) -> None:
    check_training(config)
    check_skip_corrupt(config.skip_corrupt, config.dataset)
    for name, model in (("noise", "denoising"), ("penalty", "sparse")):
        if config.model != model:
            _no_effect(config, (name,), f"with --model={config.model}, only with {model}")


def check_network(config: NetworkConfig) -> None:
    """Checks dependencies between network options. Whether a model supports them is checked where it is created."""
    slope, activation = config.slope, config.activation
    require(slope is None or activation == "leaky_relu", f"--slope={slope} needs --activation=leaky_relu")
    if config.hidden == ():
        _no_effect(config, ("activation", "dropout"), "without hidden layers")
    if config.blocks == 1 and config.compression != 1:
        _no_effect(config, ("compression",), "with --blocks=1: there is no transition")
    require(not config.dropout_after or config.dropout != 0, "--dropout_after has no effect with --dropout=0")


def check_summary(config: NetworkConfig) -> None:
    check_network(config)
    without_weights = ("activation", "slope", "dropout", "dropout_after", "local_response_norm")
    _no_effect(config, without_weights, "on the layers that have weights")


def check_classify(config: ClassifyConfig) -> None:
    check_training(config)
    check_network(config)
    check_fine_tuning(config)
    check_skip_corrupt(config.skip_corrupt, config.dataset)
    require(config.negative is None or config.positive is not None, "--negative needs --positive")
    logistic = "--model=logistic is a binary task: give --positive=DIGIT (and --negative=DIGIT)"
    require(config.model != "logistic" or config.positive is not None, logistic)
    flips = not config.alternate_flip or config.augment == "flip_shift"
    require(flips, "--alternate_flip needs --augment=flip_shift")
    if config.augment != "flip_shift":
        _no_effect(config, ("shift", "shift_mode", "cutout"), f"with --augment={config.augment}")
    if config.shift == 0:
        _no_effect(config, ("shift_mode",), "with --shift=0")
    if config.augment == "resized_crop":
        pads = "--fit=pad is not supported by --augment=resized_crop, whose training images have no padding"
        require(config.fit != "pad", f"{pads}; use crop or squash, or --augment=crop")
    if config.early_size is None:
        _no_effect(config, ("early_share",), "without --early_size")
    passes, update = config.fc_passes, config.fc_update
    hybrid = config.parallelism == "hybrid"
    require(
        hybrid or (passes == 1 and update == "accumulate"),
        f"--fc_passes={passes} --fc_update={update} need --parallelism=hybrid",
    )
    if update == "each_pass":
        _refuse(config, "--fc_update=each_pass", clip_norm=0.0)  # The gradient of a pass is only a part of the sum.
        # Adam's corrections of its averages count steps, not passes.
        sgd = config.optimizer == "sgd"
        require(sgd, f"--optimizer={config.optimizer} is not supported by --fc_update=each_pass; must be sgd")
    require(passes > 1 or update == "accumulate", "--fc_update=each_pass needs --fc_passes greater than 1")
    if hybrid:
        # Muon orthogonalizes whole matrices; each device holds only some of their columns.
        require(config.optimizer != "muon", "--optimizer=muon is not supported by --parallelism=hybrid")
        _refuse(config, "--parallelism=hybrid", early_size=None, accumulate=1, remat=False, mixup=0.0, cutmix=0.0)
        _refuse(config, "--parallelism=hybrid", freeze="none", backbone_rate=1.0)
    if config.gradients == "backpropagation":
        plain = {"label_smoothing": 0.0, "early_size": None, "dtype": "float32", "remat": False, "parallelism": "data"}
        plain |= {"mixup": 0.0, "cutmix": 0.0, "freeze": "none"}
        _refuse(config, "--gradients=backpropagation", **plain)


def _refuse(config: ClassifyConfig | SegmentConfig, by: str, **supported) -> None:
    """Raises UsageError if a flag differs from its only supported value."""
    for name, value in supported.items():
        given = getattr(config, name)
        require(given == value, f"--{name}={given} is not supported by {by}")
