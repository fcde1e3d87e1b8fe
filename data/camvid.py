"""CamVid (Brostow, Fauqueur & Cipolla 2009) as published by the authors of SegNet: each line of SPLIT.txt lists an
image in SPLIT/ and its annotation in SPLITannot/.

An annotation is an 8-bit image of class indices; the last class is void. The lists contain absolute paths on the
authors' machines; only the last two components are used, relative to the data set's folder.
"""

import math
import os
import pathlib
import re

import numpy as np
from PIL import Image

from data.dataset import DataError, Dataset
from data.decode import named_failures, read_image, whole
from data.folder import read_names
from data.image_files import each

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
VOID = len(CLASSES)
# The weights in the authors' network files. They can't be reproduced from the published labels: median frequency
# balancing over the images that contain a class gives 3.8 for SignSymbol.
PUBLISHED_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
# An image and an annotation; does not match two pairs on one line.
_PATH = r"\S(?:(?!\.(?:png|jpe?g)[\s/\\]).)*"
LINE = re.compile(rf"({_PATH}\.(?:png|jpe?g))\s+({_PATH}\.png)", re.IGNORECASE)


def listing(data_dir: str | None, split: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """The pairs (image, annotation) of each split, or only of `split` if it exists. Raises DataError, naming the line
    or the file, if the layout is wrong or a file is missing."""
    splits: dict[str, list[tuple[str, str]]] = {}
    lines = _lines(data_dir)
    for root, name, where, line in [line for line in lines if line[1] == split] or lines:
        splits.setdefault(name, []).append(_pair(root, where, line))
    return splits


def _lines(data_dir: str | None) -> list[tuple[pathlib.Path, str, str, str]]:
    """(folder, split, location for messages, text) of each line of the lists. Raises DataError if there are none."""
    if not data_dir:
        raise DataError("--dataset=camvid requires --data_dir=FOLDER, which contains SPLIT.txt, SPLIT/ and SPLITannot/")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: no such folder")
    found = []
    for path in sorted(root.glob("*.txt")):
        if not stays_inside(path, root):
            raise DataError(f"{path} is outside {root}")
        lines = [(i, line.strip()) for i, line in enumerate(read_names(path).splitlines(), 1)]
        lines = [(i, line) for i, line in lines if line]
        if (root / path.stem).is_dir() or (lines and LINE.fullmatch(lines[0][1])):  # Otherwise not a list.
            found += [(root, path.stem, f"{path}, line {i}", line) for i, line in lines]
    if not found:
        raise DataError(f"--data_dir={data_dir} contains no list SPLIT.txt of images in SPLIT/ and SPLITannot/")
    return found


def _pair(root: pathlib.Path, where: str, line: str) -> tuple[str, str]:
    match = LINE.fullmatch(line)
    if match is None:
        raise DataError(f"{where}: {line!r} is not an image and its annotation")
    return _inside(root, match[1]), _inside(root, match[2])


def problems(data_dir: str) -> list[str]:
    """The error messages of `load` for all pairs of files, except for differing image sizes."""

    def check(line) -> str:
        try:
            _read(_pair(*line), None)
        except DataError as error:
            return str(error)
        return ""

    lines = [(root, where, text) for root, _, where, text in _lines(data_dir)]
    return [found for found in each(lambda i: check(lines[i]), len(lines), title="checking") if found]


def stays_inside(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether the path, with links resolved, is below `root`. Raises DataError if it can't be resolved."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError, OSError) as error:  # A NUL character in the name, or circular links.
        raise DataError(f"{path}: {error}") from None


def _inside(root: pathlib.Path, path: str) -> str:
    """`root` joined with the last two components of `path`. Raises DataError if the file is missing or elsewhere."""
    *_, folder, name = "", *path.replace("\\", "/").split("/")
    found = root / folder / name
    if ".." in (folder, name) or not stays_inside(found, root):
        raise DataError(f"{path} is outside {root}")
    if not found.is_file():
        raise DataError(f"{found} does not exist but is listed in SPLIT.txt")
    return str(found)


def read_annotation(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Class indices uint8 [H, W], 11 for void, resized to `size` (H, W) with nearest-neighbor interpolation. Raises
    DataError if the file can't be read as an annotation."""
    with named_failures(path), Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise DataError(f"{path}: an annotation is an 8-bit image of class indices, not {image.mode}")
        values = np.asarray(image, np.uint8)
    if values.max(initial=0) > VOID:
        raise DataError(f"{path} contains the label {values.max()}, expected 0 to {VOID}")
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
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each split, or only of `split` if it exists, resized to
    `size` (H, W). Raises DataError if the layout is wrong, a file can't be read, or sizes differ and `size` is None."""
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    first: tuple[int, ...] = ()
    lists = listing(data_dir, split)
    if size:
        need = 4 * math.prod(size) * sum(map(len, lists.values()))  # Bytes: three channels and a label per pixel.
        if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
            asked = f"--image_size={size[0]}x{size[1]}"
            raise DataError(f"{asked}: the images would take {need / 1e9:,.0f} GB of memory")
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
                advice = "use --image_size=HEIGHTxWIDTH to resize all images"
                raise DataError(f"{pairs[len(images)][0]} is {shape}, but the first image is {other}; {advice}")
            images.append(found[0])
            labels.append(found[1])
        splits[name] = np.stack(images), np.stack(labels)
    return Dataset("camvid", splits, CLASSES)


def computed_weights(labels: np.ndarray, classes: int = VOID) -> tuple[float, ...]:
    """Median frequency balancing for labels [N, H, W] (Eigen & Fergus 2015, section 6.3): the median class frequency
    divided by the frequency of each class. The frequency of a class is its fraction of the pixels in the images that
    contain it. The weight of a class that does not occur is 0."""
    counts_NC = np.stack([np.bincount(label.ravel(), minlength=classes)[:classes] for label in labels]).astype(float)
    pixels = labels[0].size * (counts_NC > 0).sum(0)
    frequency = counts_NC.sum(0) / np.maximum(pixels, 1)
    there = frequency > 0
    if not there.any():
        raise DataError("the training images contain only void")
    weights = np.where(there, np.median(frequency[there]) / np.where(there, frequency, 1.0), 0.0)
    return tuple(float(weight) for weight in weights)
