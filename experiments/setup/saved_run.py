"""Reads and validates the run.json of a workdir."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from experiments.cli import options
from experiments.cli.config import ClassifyConfig, GenerateConfig, ReconstructConfig, SegmentConfig
from experiments.setup.experiment import ClassificationInfo, DatasetInfo, GenerationInfo, SegmentationInfo
from train.workdir import WorkdirError

TASKS: dict[str, tuple[type, type[DatasetInfo]]] = {
    "classification": (ClassifyConfig, ClassificationInfo),
    "segmentation": (SegmentConfig, SegmentationInfo),
    "generation": (GenerateConfig, GenerationInfo),
    "reconstruction": (ReconstructConfig, DatasetInfo),
}
# The command that trains each task.
COMMANDS = {
    "classification": "classify",
    "segmentation": "segment",
    "generation": "generate",
    "reconstruction": "reconstruct",
}


class SavedRun(NamedTuple):
    workdir: pathlib.Path
    task: str  # a key of TASKS
    config: Any  # that task's config
    info: Any  # that task's DatasetInfo
    steps: int
    eval_split: str | None  # The split it was evaluated on; None for imported weights.
    data_digests: dict[str, str]  # data.dataset.digests of its data set; {} if not recorded.


def are_numbers(value: Any) -> bool:
    """Whether the value is a list or tuple of numbers."""
    numbers = isinstance(value, list | tuple) and not any(isinstance(item, bool) for item in value)
    return numbers and all(isinstance(item, int | float) for item in value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def eval_split(run: dict, config: Any) -> str | None:
    """The split that the run is evaluated on. A run.json of an older version does not record it; the default was test
    if it exists."""
    if "eval_split" in run:
        return run["eval_split"]
    splits = run.get("splits", {})
    return config.eval_split or next((name for name in ("test", "val", "validation") if name in splits), None)


def read(workdir: str, *, flag: str = "workdir") -> SavedRun:
    """Reads the run of a workdir; `flag` is the flag that named it, for messages. Raises WorkdirError if there is no
    run or its flags, such as those of another version, can't be read."""
    path = pathlib.Path(workdir, "run.json")
    try:
        run = json.loads(path.read_text())
        config_class, info_class = TASKS[run["task"]]
        fields = {field.name for field in dataclasses.fields(info_class)} & run.keys()
        info = info_class(**{name: _tuples(run[name]) for name in fields})
        sound = len(info.image_shape) == 3 and all(int(n) > 0 for n in info.image_shape)
        sound = sound and all(len(part) > 0 and are_numbers(part) for part in (info.mean, info.std))
        if not sound or not info.class_names or not all(isinstance(name, str) for name in info.class_names):
            raise ValueError("metadata of the data set is missing")
        steps, flags = int(run["steps"]), dict(run["flags"])
    except (OSError, ValueError, KeyError, TypeError):
        raise WorkdirError(f"--{flag}={workdir} does not contain a run: no readable run.json") from None
    try:
        config = options.from_json(config_class, flags)
    except ValueError as error:
        raise WorkdirError(f"{path}: {error}") from None
    digests = run.get("data_digests")
    digests = digests if isinstance(digests, dict) else {}
    place = pathlib.Path(workdir).absolute()
    return SavedRun(place, run["task"], config, info, steps, eval_split(run, config), digests)
