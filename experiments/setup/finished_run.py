"""Whether a run of classify is complete, from its workdir alone: without JAX's start and without the data set."""

import contextlib
import dataclasses
import pathlib
from typing import Any, NamedTuple

from experiments.cli import options
from experiments.cli.config import ClassifyConfig, OptimizerConfig
from train.workdir import Workdir, WorkdirError

SUMMARY = {"accuracy", "fingerprint", "split", "step"}  # What a complete run's summary has.
DATA = ("class_names", "image_shape", "splits", "mean", "std", "data_digests")  # What run.json says of the data set.
# Flags, beside those of the network, with which the data set stays the same.
OTHERS = {"workdir", "seed", "model", *(field.name for field in dataclasses.fields(OptimizerConfig))}


class Finished(NamedTuple):
    config: ClassifyConfig
    data: dict[str, Any]
    summary: dict[str, Any]


def read(arguments: list[str]) -> Finished | None:
    """The complete run that classify has made of exactly these flags; None for anything else, which classify itself
    resumes or refuses."""
    try:
        config = options.from_arguments(ClassifyConfig, arguments)
    except (OSError, ValueError):
        return None
    if not all(pathlib.Path(config.workdir, name).exists() for name in ("run.json", "summary.json")):
        return None
    try:
        with contextlib.closing(Workdir(config.workdir)) as workdir:  # Which no other run holds.
            run, summary = workdir.read_json("run.json") or {}, workdir.read_json("summary.json") or {}
        stored = options.from_json(ClassifyConfig, dict(run["flags"]))
    except (WorkdirError, OSError, KeyError, TypeError, ValueError):
        return None
    same = dataclasses.replace(stored, workdir=config.workdir) == config and run.get("task") == "classification"
    data = {name: run.get(name) for name in DATA}
    return Finished(config, data, summary) if same and summary.keys() >= SUMMARY and data["data_digests"] else None


def on_same_data(one: Finished, other: Finished) -> bool:
    """Whether both runs' flags give the same data set, and both were made with it."""
    free = OTHERS | {name for name, spec in options.specs(ClassifyConfig).items() if spec.network}
    bound = [field.name for field in dataclasses.fields(ClassifyConfig) if field.name not in free]
    return one.data == other.data and all(getattr(one.config, name) == getattr(other.config, name) for name in bound)
