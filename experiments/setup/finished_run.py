"""Checks whether a run of classify is complete from its workdir only, without starting JAX or reading the data set."""

import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

from experiments.cli import options
from experiments.cli.config import ClassifyConfig, OptimizerConfig
from train.workdir import Workdir, WorkdirError

SUMMARY = {"accuracy", "fingerprint", "split", "step"}  # Keys of a complete run's summary.
DATA = ("class_names", "image_shape", "splits", "mean", "std", "data_digests")  # Keys of run.json about the data set.
# Flags that do not change the data set, besides those of the network.
OTHERS = {"workdir", "seed", "model", *(field.name for field in dataclasses.fields(OptimizerConfig))}


class Finished(NamedTuple):
    config: ClassifyConfig
    data: dict[str, Any]
    summary: dict[str, Any]


def read(arguments: list[str]) -> Finished | None:
    """Returns the complete run of classify with exactly these flags, or None; in that case classify itself resumes or
    rejects it."""
    try:
        config = options.from_arguments(ClassifyConfig, arguments)
    except (OSError, ValueError):
        return None
    if not all(pathlib.Path(config.workdir, name).exists() for name in ("run.json", "summary.json")):
        return None
    try:
        with contextlib.closing(Workdir(config.workdir)) as workdir:  # Locks the workdir.
            run, summary = workdir.read_json("run.json") or {}, workdir.read_json("summary.json") or {}
        stored = options.from_json(ClassifyConfig, dict(run["flags"]))
    except (WorkdirError, OSError, KeyError, TypeError, ValueError):
        return None
    same = dataclasses.replace(stored, workdir=config.workdir) == config and run.get("task") == "classification"
    data = {name: run.get(name) for name in DATA}
    return Finished(config, data, summary) if same and summary.keys() >= SUMMARY and data["data_digests"] else None


def on_same_data(one: Finished, other: Finished) -> bool:
    """Whether both runs' flags select the same data set and both recorded the same data."""
    free = OTHERS | {name for name, spec in options.specs(ClassifyConfig).items() if spec.network}
    bound = [field.name for field in dataclasses.fields(ClassifyConfig) if field.name not in free]
    return one.data == other.data and all(getattr(one.config, name) == getattr(other.config, name) for name in bound)
