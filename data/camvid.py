"""CamVid (Brostow, Fauqueur & Cipolla 2009) as SegNet's authors published it: SPLIT.txt lists a picture and its
annotation a line, which lie in SPLIT/ and SPLITannot/.

An annotation is an 8-bit picture of class numbers; the last one is void. The lists hold absolute paths of their
authors' machines: the last two components alone count, inside the data set's folder.
"""

import pathlib
import re

import numpy as np
from PIL import Image

from data.dataset import DataError, Dataset
from data.decode import FAILURES, read_picture, whole
from data.pictures import each

CLASSES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
VOID = len(CLASSES)
# The weights in the authors' network files. They can't be computed from the labels that they published: with the median
# frequency over the pictures that a class is in, SignSymbol's would be 3.8.
PUBLISHED_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
LINE = re.compile(r"(\S.*?\.(?:png|jpe?g))\s+(\S.*\.png)", re.IGNORECASE)


def listing(data_dir: str | None) -> dict[str, list[tuple[str, str]]]:
    """[(picture, annotation)] of each split. Raises DataError, naming the line or the file, for a folder of another
    form or a partner that is missing."""
    if not data_dir:
        raise DataError("--dataset=camvid needs --data_dir=FOLDER, which holds SPLIT.txt, SPLIT/ and SPLITannot/")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: there is no such folder")
    splits = {}
    for path in sorted(root.glob("*.txt")):
        if not (root / path.stem).is_dir():
            continue  # Another text than a list.
        pairs = []
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            match = LINE.fullmatch(line.strip())
            if line.strip() and match is None:
                raise DataError(f"{path}, line {number}: {line.strip()!r} is not a picture and its annotation")
            if match:
                pairs.append((_inside(root, match[1]), _inside(root, match[2])))
        if pairs:
            splits[path.stem] = pairs
    if not splits:
        raise DataError(f"--data_dir={data_dir} holds no list SPLIT.txt of pictures in SPLIT/ and SPLITannot/")
    return splits


def _inside(root: pathlib.Path, path: str) -> str:
    """The last two components of the path, below `root`. Raises DataError where no file is there, or one elsewhere."""
    *_, folder, name = "", *path.replace("\\", "/").split("/")
    found = root / folder / name
    if ".." in (folder, name) or not found.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path} leads out of {root}")
    if not found.is_file():
        raise DataError(f"{found} is missing: its partner stands alone")
    return str(found)


def read_annotation(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Class numbers uint8 [H, W], void is 11; resized to `size` (H, W) by the nearest pixel. Raises DataError."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise DataError(f"{path}: an annotation is an 8-bit picture of class numbers, not {picture.mode}")
            values = np.asarray(picture, np.uint8)
    except DataError:
        raise
    except FAILURES as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if values.max(initial=0) > VOID:
        raise DataError(f"{path} holds the label {values.max()}, expected 0 to {VOID}")
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST)) if size else values


def load(data_dir: str | None, *, size: tuple[int, int] | None = None) -> Dataset:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each split, resized to `size` (H, W). Raises DataError
    for a folder of another form, for a file that can't be read, and without a size for pictures of several sizes."""
    splits = {}
    for split, pairs in listing(data_dir).items():

        def read(i, pairs=pairs):
            try:
                picture = read_picture(pairs[i][0], channels=3)
                label = read_annotation(pairs[i][1])
                if picture.shape[:2] != label.shape:
                    shapes = f"{picture.shape[0]}x{picture.shape[1]} and {label.shape[0]}x{label.shape[1]}"
                    raise DataError(f"{pairs[i][0]} and its annotation differ in size: {shapes}")
                if size and picture.shape[:2] != size:
                    picture = read_picture(pairs[i][0], channels=3, crop=whole(size))
                    label = read_annotation(pairs[i][1], size)
                return picture, label
            except DataError as error:
                return error

        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for found in each(read, len(pairs), title=f"decoding {split}"):
            if isinstance(found, DataError):
                raise found
            if images and found[0].shape != images[0].shape:
                shape, first = (f"{x.shape[0]}x{x.shape[1]}" for x in (found[0], images[0]))
                raise DataError(
                    f"{pairs[len(images)][0]} is {shape}, the first {first}: --image_size=HEIGHTxWIDTH resizes all"
                )
            images.append(found[0])
            labels.append(found[1])
        splits[split] = np.stack(images), np.stack(labels)
    return Dataset("camvid", splits, CLASSES)


def computed_weights(labels: np.ndarray, classes: int = VOID) -> tuple[float, ...]:
    """The median of the classes' frequencies over each one's own, of labels [N, H, W]; a class's frequency is its share
    of the pixels of the pictures that it is in (Eigen & Fergus 2015, section 6.3). 0 for a class that is nowhere."""
    counts_NC = np.stack([np.bincount(label.ravel(), minlength=classes)[:classes] for label in labels]).astype(float)
    pixels = labels[0].size * (counts_NC > 0).sum(0)
    frequency = counts_NC.sum(0) / np.maximum(pixels, 1)
    there = frequency > 0
    weights = np.where(there, np.median(frequency[there]) / np.where(there, frequency, 1.0), 0.0)
    return tuple(float(weight) for weight in weights)
