"""The registry of data sets: `load("mnist5k")`. This package does not import the rest of the project."""

import difflib
import functools
from collections.abc import Callable

from data import cifar10, convert, folder, from_tfds, idx, mnist5k, stream
from data.dataset import ArgumentError as ArgumentError
from data.dataset import DataError as DataError
from data.dataset import Dataset
from data.dataset import SizesDiffer as SizesDiffer


def built_in(name: str, load_dataset: Callable[[], Dataset]) -> Callable[..., Dataset]:
    """The registry's entry of a data set that needs no files. It raises ArgumentError if --data_dir is given."""

    def load_without_files(data_dir: str | None, **_) -> Dataset:
        if data_dir is not None:
            raise ArgumentError(f"--data_dir={data_dir} is not supported by --dataset={name}, which is built in")
        return load_dataset()

    return load_without_files


REGISTRY: dict[str, Callable[..., Dataset]] = {
    "cifar10": lambda data_dir, **_: cifar10.load(data_dir),
    "fashion_mnist": lambda data_dir, **_: idx.load("fashion_mnist", data_dir),
    "folder": folder.load,
    "mnist": lambda data_dir, **_: idx.load("mnist", data_dir),
    "mnist5k": built_in("mnist5k", mnist5k.load),
}


def find(name: str) -> Callable[..., Dataset]:
    """The function that loads the data set `name`. Raises ArgumentError if it is unknown."""
    if name.startswith("tfds:"):
        from_tfds.parse(name)
        return functools.partial(from_tfds.load, name)
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ArgumentError(f"unknown dataset {name!r}; {hint}known: {', '.join(sorted(REGISTRY))}, tfds:NAME")
    return REGISTRY[name]


def load(
    name: str,
    data_dir: str | None = None,
    *,
    skip_corrupt: bool = False,
    image_size: int | None = None,
    augment: str = "none",
    fit: str = "crop",
    shape: tuple[int, int, int] | None = None,
    channels: int | None = None,
    least_classes: int = 2,
    default_size: int | None = None,
) -> Dataset:
    """Loads the data set `name`, from `data_dir` unless it is built in. Images in files are streamed if they are large
    or if `image_size` is given (see data.stream.view). With `shape` (h, w, channels), whole images are converted to it
    and held in memory, unless `image_size` is given too; with `channels` (1 or 3), only their channels are converted.
    With `default_size`, it is the side of streamed images without `image_size`, and small images that differ in size
    are streamed, too.

    Raises ArgumentError for an unknown name or an unsupported `data_dir`, and DataError if files are missing or damaged
    or contain fewer than `least_classes`, 1 or 2.
    """
    view = stream.view(image_size or default_size, augment, fit)
    values = {"skip_corrupt": skip_corrupt, "view": view, "shape": shape, "channels": channels}
    try:
        dataset = find(name)(data_dir, always=image_size is not None, **values)
    except SizesDiffer:
        if default_size is None:
            raise
        dataset = find(name)(data_dir, always=True, **values)
    if len(dataset.class_names) < least_classes:
        raise DataError(f"{name} has only one class, {dataset.class_names[0]}; at least two are required")
    return convert.fit(dataset, shape=shape, channels=channels)
