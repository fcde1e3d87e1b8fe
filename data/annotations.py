"""Images with annotations, which give each pixel a class: the encoding of classes, decoding, and loading into memory.

The layouts of files are in data.camvid and data.masks.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.dataset import DataError, Dataset
from data.decode import ORIENTATION, SHORT_GREYS, TURNS, image_size, named_failures, read_image, whole
from data.image_files import each

INDICES, COLOURS = 2**16, 2**24  # Number of possible pixel values: class indices of up to 16 bits, and RGB colors.
FEW = 3  # An annotation with more unknown values than this is probably smoothed.
SMOOTHED = "it was probably smoothed, or compressed with loss, which mixes the values of neighboring pixels"
FEW_COLOURS = 8  # Up to this number, an error message lists the colors of an annotation.
LOSSLESS = "an annotation must be a PNG file; formats with lossy compression, such as JPEG, change the values of pixels"
Splits = Mapping[str, Sequence[tuple[str, str]]]  # Split -> the paths of its images and their annotations.


class Classes(NamedTuple):
    """The classes of a data set and their encoding in its annotations."""

    names: tuple[str, ...]  # of the labels 0, 1, ...; without void, whose label is greater
    labels: np.ndarray  # int16 [INDICES] or [COLOURS]: pixel value -> label, or -1 for an invalid value
    accepted: str  # The valid values, for messages.
    advice: str = ""  # For messages about an annotation that does not contain class indices.
    colours: tuple[tuple[int, int, int], ...] = ()  # RGB color of each class; () if unknown
    values: tuple[int, ...] = ()  # Class index of each label, if they differ.


def table(labels: dict[int, int], size: int) -> np.ndarray:
    """`Classes.labels` for pixel value -> label."""
    found = np.full(size, -1, np.int16)
    found[list(labels)] = list(labels.values())
    return found


def code(red, green, blue):
    """The number that represents a color."""
    return red << 16 | green << 8 | blue


def pixel_values(path: str, *, coloured: bool = False, advice: str = "") -> np.ndarray:
    """The pixels [H, W] of an annotation, a PNG file: class indices, which are gray values or the indices of a palette,
    or the codes of colors. Applies EXIF rotation, as for images. Raises DataError, ending with `advice` if there are no
    class indices."""
    with named_failures(path), Image.open(path) as opened:
        if opened.format != "PNG":
            raise DataError(f"{path} is a file in the format {opened.format}; {LOSSLESS}")
        raw = opened.tile[0].args if opened.tile else None
        opened.load()
        turn = TURNS.get(opened.getexif().get(ORIENTATION))
        image = opened if turn is None else opened.transpose(turn)
        if coloured:
            return _colour_codes(path, image)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I;16"):
            raise DataError(_no_indices(path, image, advice))
        values = np.asarray(image)
        # Pillow scales gray values of 2 and 4 bits to 8 bits.
        values = values // SHORT_GREYS[raw] if raw in SHORT_GREYS else values
        return values.astype(np.uint16 if values.dtype.itemsize > 1 else np.uint8)


def _no_indices(path: str, image: Image.Image, advice: str) -> str:
    """The error message for an annotation of another mode; with `advice`, it lists the colors if they are few."""
    colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist()
    listed = ", ".join(" ".join(map(str, colour)) for colour in colours)
    few = f"; its colors are {listed}" if advice and len(colours) <= FEW_COLOURS else ""
    kind = "an annotation is an image of class indices, with 1 to 8 bits per pixel"
    return f"{path}: {kind}, not {image.mode}{advice}{few}"


def _colour_codes(path: str, image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        raise DataError(f"{path}: gray values of 16 bits; an annotation in colors has 8 bits per channel")
    pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    clear = pixels[..., 3] < 255
    if clear.any():
        raise DataError(f"{path} has a transparent pixel in {_place(clear)}; fill such pixels with a color of a class")
    return code(*np.moveaxis(pixels[..., :3], -1, 0))


def _place(rows: np.ndarray) -> str:
    row, column = np.argwhere(rows)[0]
    return f"row {row}, column {column} (from 0)"


def read_annotation(path: str, classes: Classes) -> np.ndarray:
    """Labels uint8 [H, W]. Raises DataError, with the file's name and the value, if the file can't be read or contains
    a value that encodes no class."""
    coloured = len(classes.labels) == COLOURS
    values = pixel_values(path, coloured=coloured, advice=classes.advice)
    labels = classes.labels[values]
    wrong = labels < 0
    if not wrong.any():
        return labels.astype(np.uint8)
    value, place, kinds = int(values[wrong][0]), _place(wrong), len(np.unique(values[wrong]))
    why = f"; {SMOOTHED}" if kinds > FEW else ""
    if coloured:
        red, green, blue = value >> 16, value >> 8 & 255, value & 255
        if red == green == blue < len(classes.names):
            why = "; if annotations contain class indices, remove the colors from classes.txt"
        raise DataError(f"{path}: the color {red} {green} {blue} in {place} is not {classes.accepted}{why}")
    raise DataError(f"{path} contains the label {value}, expected {classes.accepted}, in {place}{why}")


def read_pair(pair: tuple[str, str], classes: Classes, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """The image uint8 [H, W, 3] and its labels uint8 [H, W], resized to `size` (H, W): the image bilinearly, the labels
    to the nearest pixel. Raises DataError if a file can't be read or they differ in size."""
    label = read_annotation(pair[1], classes)

    def resized(height, width):
        if (height, width) != label.shape:
            shapes = f"{height}x{width} and {label.shape[0]}x{label.shape[1]}"
            turned = image_size(pair[0]) == label.shape  # The size in the file's header.
            why = "; the image is rotated by its EXIF orientation, its annotation is not" if turned else ""
            raise DataError(f"{pair[0]} and its annotation differ in size: {shapes}{why}")
        return whole(size or label.shape)(height, width)

    image = read_image(pair[0], channels=3, crop=resized)
    if size and label.shape != size:
        label = np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))
    return image, label


def load(name: str, splits: Splits, classes: Classes, size: tuple[int, int] | None = None) -> Dataset:
    """The data set `name`: images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of the pairs of each split, resized to
    `size` (H, W). Raises DataError if a file can't be read, memory is insufficient, or sizes differ and `size` is
    None."""
    count = sum(map(len, splits.values()))
    if size:
        _check_memory(size, count, f"--image_size={size[0]}x{size[1]}: the images would take", "")
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    first: tuple[int, ...] = ()
    for split, pairs in splits.items():

        def read(i, pairs=pairs):
            try:
                return read_pair(pairs[i], classes, size)
            except DataError as error:
                return error

        for i, found in enumerate(each(read, len(pairs), title=f"decoding {split}")):
            if isinstance(found, DataError):
                raise found
            image, label = found
            if not first:
                first = image.shape
                pixels = f"{count:,} images of {first[0]}x{first[1]} pixels would take"
                _check_memory(label.shape, count, pixels, "; use --image_size=HEIGHTxWIDTH to resize them")
            if image.shape != first:
                shape, other = (f"{x[0]}x{x[1]}" for x in (image.shape, first))
                advice = "use --image_size=HEIGHTxWIDTH to resize all images"
                raise DataError(f"{pairs[i][0]} is {shape}, but the first image is {other}; {advice}")
            if i == 0:
                arrays[split] = np.empty((len(pairs), *first), np.uint8), np.empty((len(pairs), *first[:2]), np.uint8)
            arrays[split][0][i], arrays[split][1][i] = image, label
    return Dataset(name, arrays, classes.names, classes.colours, classes.values)


def _check_memory(size: tuple[int, ...], count: int, images: str, advice: str) -> None:
    need = 4 * math.prod(size) * count  # Bytes: three channels and a label per pixel.
    if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise DataError(f"{images} {need / 1e9:,.0f} GB of memory{advice}")


def stays_inside(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether the path, with links resolved, is below `root`. Raises DataError if it can't be resolved."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (ValueError, RuntimeError, OSError) as error:  # A NUL character in the name, or circular links.
        raise DataError(f"{path}: {error}") from None


def computed_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
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
