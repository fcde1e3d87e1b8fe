"""The registry of data sets: `load("mnist5k")`. Nothing here imports the rest of the project."""

import difflib
from collections.abc import Callable

from data import cifar10, folder, mnist5k
from data.dataset import DataError as DataError
from data.dataset import Dataset

REGISTRY: dict[str, Callable[..., Dataset]] = {
    "cifar10": cifar10.load,
    "folder": folder.load,
    "mnist5k": lambda data_dir, skip_corrupt: mnist5k.load(),
}


def load(name: str, data_dir: str | None = None, *, skip_corrupt: bool = False) -> Dataset:
    """The data set `name`, from `data_dir` where it is not embedded. Raises ValueError for an unknown name,
    DataError where its files are missing or damaged."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(REGISTRY))}{hint}")
    return REGISTRY[name](data_dir, skip_corrupt=skip_corrupt)
