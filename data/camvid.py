"""CamVid (Brostow, Fauqueur & Cipolla 2009) as SegNet's authors published it: SPLIT.txt lists a picture and its
annotation a line, which lie in SPLIT/ and SPLITannot/.

An annotation is an 8-bit picture of class numbers; the last one is void. The lists hold absolute paths of their
authors' machines: the last two components alone count, inside the data set's folder.
"""

import math
import os
import pathlib
import re

import numpy as np
from PIL import Image

from data.dataset import DataError, Dataset
from data.decode import FAILURES, read_image, whole
from data.image_files import each

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
VOID = len(CLASSES)
# The weights in the authors' network files. They can't be computed from the labels that they published: with the median
# frequency over the pictures that a class is in, SignSymbol's would be 3.8.
PUBLISHED_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
# A picture and an annotation; not two pairs in one line, where a line break was lost.
_PATH = r"\S(?:(?!\.(?:png|jpe?g)[\s/\\]).)*"
LINE = re.compile(rf"({_PATH}\.(?:png|jpe?g))\s+({_PATH}\.png)", re.IGNORECASE)


def listing(data_dir: str | None, split: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """[(picture, annotation)] of each split, or of `split` alone if it is there. Raises DataError, naming the line or
    the file, for a folder of another form or a partner that is missing."""
    splits: dict[str, list[tuple[str, str]]] = {}
    lines = _lines(data_dir)
    for root, name, where, line in [line for line in lines if line[1] == split] or lines:
        splits.setdefault(name, []).append(_pair(root, where, line))
    return splits


def _lines(data_dir: str | None) -> list[tuple[pathlib.Path, str, str, str]]:
    """(folder, split, place in messages, text) of the lists' lines. Raises DataError where there are none."""
    if not data_dir:
        raise DataError("--dataset=camvid needs --data_dir=FOLDER, which holds SPLIT.txt, SPLIT/ and SPLITannot/")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: there is no such folder")
    found = []
    for path in sorted(root.glob("*.txt")):
        if not stays_inside(path, root):
            raise DataError(f"{path} leads out of {root}")
        lines = [(i, line.strip()) for i, line in enumerate(path.read_text(errors="replace").splitlines(), 1)]
        lines = [(i, line) for i, line in lines if line]
        if (root / path.stem).is_dir() or (lines and LINE.fullmatch(lines[0][1])):  # Else another text than a list.
            found += [(root, path.stem, f"{path}, line {i}", line) for i, line in lines]
    if not found:
        raise DataError(f"--data_dir={data_dir} holds no list SPLIT.txt of pictures in SPLIT/ and SPLITannot/")
    return found


def _pair(root: pathlib.Path, where: str, line: str) -> tuple[str, str]:
    match = LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: {line!r} is not a picture and its annotation")
    return _inside(root, match[1]), _inside(root, match[2])


def problems(data_dir: str) -> list[str]:
    """Each pair of files that `load` would stop at; it may also ask for one size."""

    def check(line) -> str:
        try:
            _read(_pair(*line), None)
        except DataError as error:
            return str(error)
        return ""

    lines = [(root, where, text) for root, _, where, text in _lines(data_dir)]
    return [found for found in each(lambda i: check(lines[i]), len(lines), title="checking") if found]


def stays_inside(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether the path, its links followed, lies below `root`. Raises DataError where they can't be followed."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError, OSError) as error:  # A NUL in the name, links in a circle.
        raise DataError(f"{path}: {error}") from None


def _inside(root: pathlib.Path, path: str) -> str:
    """The last two components of the path, below `root`. Raises DataError where no file is there, or one elsewhere."""
    *_, folder, name = "", *path.replace("\\", "/").split("/")
    found = root / folder / name
    if ".." in (folder, name) or not stays_inside(found, root):
        raise DataError(f"{path} leads out of {root}")
    if not found.is_file():
        raise DataError(f"{found} is missing: its partner stands alone")
    return str(found)


def read_annotation(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Class numbers uint8 [H, W], void is 11; resized to `size` (H, W) by the nearest pixel. Raises DataError."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise DataError(f"{path}: an annotation is an 8-bit picture of class numbers, not {image.mode}")
            values = np.asarray(image, np.uint8)
    except DataError:
        raise
    except FAILURES as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if values.max(initial=0) > VOID:
        raise DataError(f"{path} holds the label {values.max()}, expected 0 to {VOID}")
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST)) if size else values


def _read(pair: tuple[str, str], size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    image, label = read_image(pair[0], channels=3), read_annotation(pair[1])
    if image.shape[:2] != label.shape:
        shapes = f"{image.shape[0]}x{image.shape[1]} and {label.shape[0]}x{label.shape[1]}"
        raise DataError(f"{pair[0]} and its annotation differ in size: {shapes}")
    if size and image.shape[:2] != size:
        return read_image(pair[0], channels=3, crop=whole(size)), read_annotation(pair[1], size)
    return image, label


def load(data_dir: str | None, *, size: tuple[int, int] | None = None, split: str | None = None) -> Dataset:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each split, or of `split` alone if it is there, resized
    to `size` (H, W). Raises DataError for a folder of another form, for a file that can't be read, and without a size
    for pictures of several sizes."""
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    first: tuple[int, ...] = ()
    lists = listing(data_dir, split)
    if size:
        need = 4 * math.prod(size) * sum(map(len, lists.values()))  # Bytes: three channels and a label each pixel.
        if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
            asked = f"--image_size={size[0]}x{size[1]}"
            raise DataError(f"{asked}: the pictures would take {need / 1e9:,.0f} GB of memory")
    for name, pairs in lists.items():

        def read(i, pairs=pairs):
            try:
                return _read(pairs[i], size)
            except DataError as error:
                return error

        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for found in each(read, len(pairs), title=f"decoding {name}"):
            if isinstance(found, DataError):
                raise found
            first = first or found[0].shape
            if found[0].shape != first:
                shape, other = (f"{x[0]}x{x[1]}" for x in (found[0].shape, first))
                raise DataError(
                    f"{pairs[len(images)][0]} is {shape}, the first {other}: --image_size=HEIGHTxWIDTH resizes all"
                )
            images.append(found[0])
            labels.append(found[1])
        splits[name] = np.stack(images), np.stack(labels)
    return Dataset("camvid", splits, CLASSES)


def computed_weights(labels: np.ndarray, classes: int = VOID) -> tuple[float, ...]:
    """The median of the classes' frequencies over each one's own, of labels [N, H, W]; a class's frequency is its share
    of the pixels of the pictures that it is in (Eigen & Fergus 2015, section 6.3). 0 for a class that is nowhere."""
    counts_NC = np.stack([np.bincount(label.ravel(), minlength=classes)[:classes] for label in labels]).astype(float)
    pixels = labels[0].size * (counts_NC > 0).sum(0)
    frequency = counts_NC.sum(0) / np.maximum(pixels, 1)
    there = frequency > 0
    if not there.any():
        raise DataError("the training pictures hold no pixel of a class, only void")
    weights = np.where(there, np.median(frequency[there]) / np.where(there, frequency, 1.0), 0.0)
    return tuple(float(weight) for weight in weights)
