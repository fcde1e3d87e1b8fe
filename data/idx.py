"""MNIST (LeCun, Cortes & Burges) and Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): 60,000 training and 10,000 test
images of 28x28 pixels, grayscale, in four files of the format idx, compressed with gzip or not.

An idx file consists of a magic number (two zero bytes, the type of the values, the number of dimensions), the
dimensions as big-endian 32-bit integers, and the values.
"""

import gzip
import hashlib
import math
import pathlib
import struct
import zlib
from collections.abc import Iterable

import numpy as np

from data.dataset import DataError, Dataset, default_dir

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
NAMES = (*FILES["train"], *FILES["test"])
CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": tuple(str(digit) for digit in range(10)),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
# MD5 of the official files after decompression, in the order of NAMES. Packages compress them again.
MD5: dict[str, tuple[str, ...]] = {
    "mnist": (
        *("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624"),
        *("2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
    ),
    "fashion_mnist": (
        *("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9"),
        *("8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
    ),
}
# Where the package dataset-fashion-mnist of Debian and Ubuntu installs the files.
SYSTEM = {"fashion_mnist": pathlib.Path("/usr/share/datasets/fashion-mnist")}
SIDE = 28  # Pixels.
GZIP, UNSIGNED_BYTES = b"\x1f\x8b", 8


def load(name: str, data_dir: str | None) -> Dataset:
    """Loads the data set `name` from the files in `data_dir`, by default from where `prepare` or the system's package
    puts them. Raises DataError, naming the file, if one is missing, damaged, or not of this data set."""
    folder = locate(name, data_dir)
    if folder is None:
        raise DataError(_missing(name, data_dir))
    return Dataset(name, read(name, find([folder])), CLASSES[name])


def locate(name: str, data_dir: str | None) -> pathlib.Path | None:
    """The folder that `load` reads from, the one with the most files; None if no file of the data set is found."""
    folder = max(_folders(name, data_dir), key=lambda folder: len(find([folder])))
    return folder if find([folder]) else None


def _folders(name: str, data_dir: str | None) -> list[pathlib.Path]:
    if data_dir:
        return [pathlib.Path(data_dir)]
    system = [SYSTEM[name]] if name in SYSTEM else []
    try:
        return [folder_of(name, None), *system]
    except DataError:  # No home folder is known.
        if system:
            return system
        raise


def folder_of(name: str, data_dir: str | None) -> pathlib.Path:
    """The folder that `prepare` writes the files to."""
    return pathlib.Path(data_dir) if data_dir else default_dir(name) / name


def _missing(name: str, data_dir: str | None) -> str:
    option = f" --data_dir={data_dir}" if data_dir else ""
    command = f"run `python -m experiments.prepare --dataset={name}{option}` (add --source=FOLDER for local copies)"
    if data_dir:
        lack = f"has none of the files {', '.join(NAMES)} (with or without .gz)"
        return f"{data_dir} {lack if pathlib.Path(data_dir).is_dir() else 'is not a folder'}: {command}"
    package = ", or install the package dataset-fashion-mnist (Debian, Ubuntu)" if name in SYSTEM else ""
    return f"{name} is not in {' or '.join(map(str, _folders(name, None)))}: {command}{package}"


def find(places: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """The files of NAMES in the given folders or among the given files. Accepts the suffix .gz, and names such as
    train-images.idx3-ubyte."""
    found: dict[str, pathlib.Path] = {}
    for place in places:
        folder = place.is_dir()
        for name in NAMES:
            for plain in (name, name.replace("-idx", ".idx")):
                for variant in (plain, f"{plain}.gz"):
                    path = place / variant if folder else place
                    if path.name == variant and path.is_file():
                        found.setdefault(name, path)
    return found


def read(name: str, files: dict[str, pathlib.Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The splits of the data set `name` from the files that `find` returned: images uint8 [N, 28, 28, 1] and labels
    int32 [N]. Raises DataError as `load` does."""
    lacking = [one for one in NAMES if one not in files]
    if lacking:
        folders = ", ".join(dict.fromkeys(str(path.parent) for path in files.values()))
        raise DataError(f"{folders} lacks {', '.join(lacking)} (with or without .gz)")
    splits = {}
    for split, (images_name, labels_name) in FILES.items():
        images = parse(content(files[images_name]), files[images_name], dimensions=3)
        text = content(files[labels_name])
        labels = parse(text, files[labels_name], dimensions=1)
        digest, place = hashlib.md5(text).hexdigest(), NAMES.index(labels_name)
        other = next((other for other in MD5 if other != name and MD5[other][place] == digest), None)
        if other:
            raise DataError(f"{files[labels_name]} is a file of {other}, not of {name}: use --dataset={other}")
        if len(images) != len(labels):
            counts = f"{len(images):,} images, but {files[labels_name]} has {len(labels):,} labels"
            raise DataError(f"{files[images_name]} has {counts}")
        splits[split] = images[..., None], labels.astype(np.int32)
    return splits


def content(path: pathlib.Path) -> bytes:
    """The content of a file, decompressed if necessary; browsers decompress some downloads without renaming them."""
    text = path.read_bytes()
    if not text.startswith(GZIP):
        return text
    try:
        return gzip.decompress(text)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be decompressed: {error}") from None


def parse(text: bytes, path: pathlib.Path, *, dimensions: int) -> np.ndarray:
    """The values of an idx file: images uint8 [N, 28, 28] if `dimensions` is 3, labels uint8 [N] if it is 1. Raises
    DataError, naming the file at `path`, for any other content."""
    kind = "images" if dimensions == 3 else "labels"
    magic, start = bytes([0, 0, UNSIGNED_BYTES, dimensions]), 4 + 4 * dimensions
    if text[:4] != magic:
        found = f"starts with the bytes {text[:4].hex(' ')}" if text else "is empty"
        raise DataError(f"{path} {found}, expected {magic.hex(' ')} for an idx file of {kind}")
    if len(text) < start:
        raise DataError(f"{path} is truncated: {len(text)} bytes, expected a header of {start}")
    shape = struct.unpack(f">{dimensions}I", text[4:start])
    if shape[1:] not in ((), (SIDE, SIDE)):
        raise DataError(f"{path} has images of {shape[1]}x{shape[2]} pixels, expected {SIDE}x{SIDE}")
    if not shape[0]:
        raise DataError(f"{path} has no {kind}")
    if len(text) - start != math.prod(shape):
        fault = "truncated" if len(text) - start < math.prod(shape) else "too long"
        counts = f"{len(text) - start:,} bytes after the header, expected {math.prod(shape):,} for {shape[0]:,} {kind}"
        raise DataError(f"{path} is {fault}: {counts}")
    values = np.frombuffer(text, np.uint8, offset=start).reshape(shape).copy()  # An array that can be written.
    if dimensions == 1 and values.max() > 9:
        raise DataError(f"{path} contains the label {values.max()}, expected 0 to 9")
    return values
