"""CamVid (Brostow, Fauqueur & Cipolla 2009) as published by the authors of SegNet: each line of SPLIT.txt lists an
image in SPLIT/ and its annotation in SPLITannot/.

An annotation is an image of class indices; the last class is void. The lists contain absolute paths on the authors'
machines; only the last two components are used, relative to the data set's folder.
"""

import pathlib
import re

from data import annotations
from data.annotations import Classes, stays_inside
from data.dataset import DataError, Dataset, data_folder
from data.folder import read_names
from data.image_files import each

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
VOID = len(CLASSES)
INDICES = annotations.table({i: i for i in range(VOID + 1)}, annotations.INDICES)
# Colors of the classes, for figures.
COLOURS = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128)),
    *((64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
ENCODING = Classes(CLASSES, INDICES, f"0 to {VOID}", colours=COLOURS)
# The weights in the authors' network files. They can't be reproduced from the published labels: median frequency
# balancing over the images that contain a class gives 3.8 for SignSymbol.
PUBLISHED_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
# An image and an annotation; does not match two pairs on one line.
_PATH = r"\S(?:(?!\.(?:png|jpe?g)[\s/\\]).)*"
LINE = re.compile(rf"({_PATH}\.(?:png|jpe?g))\s+({_PATH}\.png)", re.IGNORECASE)


def load(data_dir: str | None, *, size: tuple[int, int] | None = None, split: str | None = None) -> Dataset:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each split, or only of `split` if it exists, resized to
    `size` (H, W). Raises DataError if the layout is wrong, a file can't be read, or sizes differ and `size` is None."""
    return annotations.load("camvid", listing(data_dir, split), ENCODING, size)


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
    root = data_folder(data_dir, "camvid", ", which contains SPLIT.txt, SPLIT/ and SPLITannot/")
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
            annotations.read_pair(_pair(*line), ENCODING, None)
        except DataError as error:
            return str(error)
        return ""

    lines = [(root, where, text) for root, _, where, text in _lines(data_dir)]
    return [found for found in each(lambda i: check(lines[i]), len(lines), title="checking") if found]


def _inside(root: pathlib.Path, path: str) -> str:
    """`root` joined with the last two components of `path`. Raises DataError if the file is missing or elsewhere."""
    *_, folder, name = "", *path.replace("\\", "/").split("/")
    found = root / folder / name
    if ".." in (folder, name) or not stays_inside(found, root):
        raise DataError(f"{path} is outside {root}")
    if not found.is_file():
        raise DataError(f"{found} does not exist but is listed in SPLIT.txt")
    return str(found)
