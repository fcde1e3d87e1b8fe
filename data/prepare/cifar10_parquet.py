"""Reads CIFAR-10 from the Parquet files of the Hugging Face Hub, https://huggingface.co/datasets/uoft-cs/cifar10.

The folder plain_text has train-00000-of-00001.parquet and test-00000-of-00001.parquet with the columns img (a PNG file
in the field bytes) and label. The pixels are those of the official archive; the order of the images may differ.
"""

import pathlib

import numpy as np

from data import cifar10, decode, image_files
from data.dataset import DataError

SUFFIX = ".parquet"
RECORDS = {"train": 5, "test": 1}  # Images in each split, in files of the official archive.
SHAPE = (32, 32, 3)


def find(sources: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """The Parquet files of each split among the given files and below the given folders. A split's files start with its
    name or are in a folder of its name. Raises DataError if a split has none."""
    files = [file for path in sources for file in (sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path])]
    found: dict[str, list[pathlib.Path]] = {split: [] for split in RECORDS}
    for file in files:
        split = next((split for split in found if file.name.startswith(split) or file.parent.name == split), None)
        if split and file.is_file():
            found[split].append(file)
    lacking = [split for split, paths in found.items() if not paths]
    if lacking:
        given = ",".join(map(str, sources))
        names = " and ".join(f"{split}-00000-of-00001{SUFFIX}" for split in lacking)
        raise DataError(f"--source={given} has no {names}")
    return found


def read(sources: list[pathlib.Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The splits from the files that `find` returns: images uint8 [N, 32, 32, 3] and labels int32 [N]. Raises DataError
    if pyarrow is not installed, or if a file is damaged or not of CIFAR-10."""
    splits = {}
    for split, paths in find(sources).items():
        parts = [_read_file(path) for path in paths]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        counts = np.bincount(labels, minlength=len(cifar10.CLASSES))
        expected = RECORDS[split] * cifar10.RECORDS // len(cifar10.CLASSES)
        for name, count in zip(cifar10.CLASSES, counts, strict=True):
            if count != expected:
                listed = ", ".join(map(str, paths))
                raise DataError(f"{listed}: {count:,} {split} images of the class {name}, expected {expected:,}")
        splits[split] = images, labels
    return splits


def _read_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    encoded, labels = _columns(path)

    def read(row: int) -> np.ndarray:
        place = f"{path}, row {row}"
        if not isinstance(encoded[row], bytes):
            raise DataError(f"{place}: no image")
        image = decode.read_image(place, channels=SHAPE[2], content=encoded[row])
        if image.shape != SHAPE:
            raise DataError(f"{place}: an image of {image.shape[0]}x{image.shape[1]} pixels, expected 32x32")
        return image

    return np.stack([*image_files.each(read, len(encoded), title=path.name)]), labels


def _columns(path: pathlib.Path) -> tuple[list, np.ndarray]:
    """The encoded images and the labels int32 [N] of a file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        line = "Parquet files are read with the package pyarrow, which is not installed: run `pip install pyarrow`"
        raise DataError(line) from None
    try:
        table = parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # From the operating system.
            raise
        raise DataError(f"{path} can't be read as a Parquet file: {' '.join(str(error).split())}") from None
    if not {"img", "label"} <= set(table.column_names):
        raise DataError(f"{path} has the columns {', '.join(table.column_names)}, expected img and label")
    images, kind = table.column("img"), table.schema.field("img").type
    if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{path}: the column img is of the type {kind}, expected a struct with the field bytes")
    kind = table.schema.field("label").type
    if not pyarrow.types.is_integer(kind):
        raise DataError(f"{path}: the column label is of the type {kind}, expected integers")
    labels = [-1 if label is None else label for label in table.column("label").to_pylist()]
    if not labels:
        raise DataError(f"{path} has no rows")
    for label in (min(labels), max(labels)):
        if not 0 <= label < len(cifar10.CLASSES):
            raise DataError(f"{path} contains the label {label}, expected 0 to 9")
    return [(image or {}).get("bytes") for image in images.to_pylist()], np.array(labels, np.int32)
