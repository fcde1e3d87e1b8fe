"""The registry of data sets: `load("mnist5k")`. Nothing here imports the rest of the project."""

import difflib

from data import mnist5k
from data.dataset import DataError as DataError
from data.dataset import Dataset

REGISTRY = {"mnist5k": mnist5k.load}


def load(name: str) -> Dataset:
    """The data set `name`. Raises ValueError for an unknown name, DataError where its files are missing or damaged."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(REGISTRY))}{hint}")
    return REGISTRY[name]()
