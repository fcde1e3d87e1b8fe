"""CIFAR-10 (Krizhevsky 2009), read from the prepared store that experiments.prepare writes."""

import pathlib
import re

import numpy as np

from data.dataset import ArgumentError, DataError, Dataset, default_dir

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDS = 10_000  # Images in each file of the archive.


def train_on(dataset: Dataset, batches: str) -> Dataset:
    """Restricts the train split to the archive's files `batches`, such as "1-4" or "1"; the other files become the
    split val, as in the tuning of cuda-convnet. Raises ArgumentError for an invalid range or another data set."""
    match = re.fullmatch(r"([1-5])(?:-([1-5]))?", batches, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ArgumentError(f"--train_batches={batches}: must be a number from 1 to 5 or a range such as 1-4")
    if dataset.name != "cifar10":
        raise ArgumentError(f"--train_batches is supported by --dataset=cifar10, not by {dataset.name}")
    images, labels = dataset.splits["train"]
    batch = np.arange(len(labels)) // RECORDS + 1
    inside = (batch >= first) & (batch <= last)
    splits = {**dataset.splits, "train": (images[inside], labels[inside])}
    if not inside.all():
        splits["val"] = images[~inside], labels[~inside]
    return dataset._replace(splits=splits)


def load(data_dir: str | None) -> Dataset:
    """Loads the prepared store into memory. If there is none, raises DataError with the command that prepares it."""
    from data import store

    folder = pathlib.Path(data_dir) if data_dir else default_dir("cifar10")
    if not store.exists(folder, "cifar10"):
        option = f" --data_dir={data_dir}" if data_dir else ""
        command = f"python -m experiments.prepare --dataset=cifar10{option}"
        raise DataError(f"cifar10 is not prepared in {folder}: run `{command}` (add --source=FILE for a local copy)")
    return Dataset("cifar10", store.read(folder, "cifar10"), CLASSES)
