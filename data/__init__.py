"""The registry of data sets: `load("mnist5k")`. Nothing here imports the rest of the project."""

import difflib
import functools
from collections.abc import Callable

from data import cifar10, folder, from_tfds, mnist5k, stream
from data.dataset import DataError as DataError
from data.dataset import Dataset

REGISTRY: dict[str, Callable[..., Dataset]] = {
    "cifar10": lambda data_dir, *, skip_corrupt, view, always: cifar10.load(data_dir, skip_corrupt=skip_corrupt),
    "folder": folder.load,
    "mnist5k": lambda data_dir, *, skip_corrupt, view, always: mnist5k.load(),
}


def find(name: str) -> Callable[..., Dataset]:
    """The function that loads the data set `name`. Raises ValueError for an unknown one."""
    if name.startswith("tfds:"):
        from_tfds.parse(name)
        return functools.partial(from_tfds.load, name)
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(REGISTRY))}, tfds:NAME{hint}")
    return REGISTRY[name]


def load(
    name: str,
    data_dir: str | None = None,
    *,
    skip_corrupt: bool = False,
    image_size: int | None = None,
    augment: str = "none",
) -> Dataset:
    """The data set `name`, from `data_dir` where it is not embedded. Pictures in files are streamed where they are
    large or `image_size` is given, see data.stream.view.

    Raises ValueError for an unknown name, DataError where its files are missing or damaged.
    """
    view = stream.view(image_size, augment)
    return find(name)(data_dir, skip_corrupt=skip_corrupt, view=view, always=image_size is not None)
