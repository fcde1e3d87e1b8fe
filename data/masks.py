"""Images in SPLIT/ and their annotations in SPLITannot/, PNG files of the same names, and the classes in classes.txt.

An annotation contains the index of a class at each pixel, as a gray value or a palette's index, or, if classes.txt
lists colors, a color. Pixels of the index 255 and of the class void are ignored. Hidden files are skipped. Names are
compared in Unicode's composed form (NFC), because macOS stores other forms.
"""

import os
import pathlib
import re
import sys

import numpy as np
from PIL import Image

from data import annotations
from data.annotations import COLOURS, INDICES, LOSSLESS, Classes, stays_inside
from data.dataset import DataError, Dataset, data_folder
from data.folder import SUFFIXES, composed, images_in, read_names
from data.image_files import each

FILE, ANNOTATIONS, VOID_NAME = "classes.txt", "annot", "void"
VOID = 255  # The index and the label of pixels that are ignored.
LAYOUT = f", which contains SPLIT/*.jpg or png, SPLIT{ANNOTATIONS}/*.png and {FILE}"
COLOURED = re.compile(r"(.*[^\s,])[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)")
COLOUR_FIRST = re.compile(r"\d+[\s,]+\d+[\s,]+\d+[\s,]+\D.*")
FORMS = f"list the classes in {FILE}, one per line, as NAME, or as NAME R G B if the annotations contain colors"
ADVICE = f"; to read colors, list the classes in {FILE} as NAME R G B"
DISTINCT = 16  # Least difference of two colors of a palette, in one of the channels, to be used in figures.


def load(
    data_dir: str | None,
    *,
    size: tuple[int, int] | None = None,
    split: str | None = None,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Images uint8 [N, H, W, 3] and labels uint8 [N, H, W] of each split, or only of `split` if it exists, resized to
    `size` (H, W); the label of ignored pixels is 255.

    Without a file classes.txt, the classes are the numbers 0, 1, ... in the annotations of train, or `class_names` of a
    trained network if these are numbers. Raises DataError if the layout is wrong, a file can't be read, an annotation
    contains another value, sizes differ and `size` is None, or fewer than two classes occur in train.
    """
    root = data_folder(data_dir, "masks", LAYOUT)
    splits = listing(root, split)
    path = root / FILE
    if path.is_file():
        if not stays_inside(path, root):
            raise DataError(f"{path} is outside {root}")
        classes = read_classes(path)
    elif class_names and class_names == _numbers(len(class_names)).names:
        classes = _numbers(len(class_names))
    else:
        classes = _counted(root, splits.get("train") or listing(root, "train").get("train", []))
    if not classes.colours and "train" in splits:
        values = classes.values or tuple(range(len(classes.names)))
        classes = classes._replace(colours=_palette(splits["train"][0][1], values))
    dataset = annotations.load("masks", splits, classes, size)
    if "train" in splits:
        _check_occurrence(root, dataset)
    return dataset


def listing(root: pathlib.Path, split: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """The pairs (image, annotation) of each split, or only of `split` if it exists, sorted by name. Raises DataError if
    there are none, or with the name of a file whose counterpart is missing. Folders of images without a counterpart are
    skipped, with a message on standard error."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    found = sorted(name for name in folders if f"{name}{ANNOTATIONS}" in folders)
    if not found:
        example = f"such as train/ and train{ANNOTATIONS}/"
        raise DataError(f"--data_dir={root} contains no folders SPLIT/ and SPLIT{ANNOTATIONS}/, {example}")
    used = {*found, *(f"{name}{ANNOTATIONS}" for name in found)}
    for name in sorted(folders - used):
        other = name.removesuffix(ANNOTATIONS) if name.endswith(ANNOTATIONS) else f"{name}{ANNOTATIONS}"
        if split is None and images_in(root / name):
            print(f"{root / name} is skipped: there is no folder {root / other}", file=sys.stderr)
    return {name: _pairs(root, name) for name in found if split not in found or name == split}


def _by_stem(folder: pathlib.Path) -> dict[str, str]:
    """Name without suffix, in the composed form -> file name, sorted."""
    found: dict[str, str] = {}
    for name in map(os.path.basename, images_in(folder)):
        stem = composed(os.path.splitext(name)[0])
        if stem in found:
            raise DataError(f"{folder} has two files of the name {stem}: {found[stem]!r} and {name!r}")
        found[stem] = name
    return dict(sorted(found.items()))


def _pairs(root: pathlib.Path, split: str) -> list[tuple[str, str]]:
    folders = root / split, root / f"{split}{ANNOTATIONS}"
    images, annotated = map(_by_stem, folders)
    if not images:
        raise DataError(f"{folders[0]} contains no images ({', '.join(SUFFIXES)})")
    for here, ours, there, theirs, what, suffix in (
        (folders[0], images, folders[1], annotated, "annotation", ".png"),
        (folders[1], annotated, folders[0], images, "image", ".jpg or png"),
    ):
        single = [stem for stem in ours if stem not in theirs]
        if single:
            more = f"; {len(single) - 1:,} more files have none" if len(single) > 1 else ""
            raise DataError(f"{here / ours[single[0]]} has no {what} {there / single[0]}{suffix}{more}")
    pairs = [(folders[0] / name, folders[1] / annotated[stem]) for stem, name in images.items()]
    for path in (*folders, *(path for pair in pairs for path in pair)):
        if path.is_symlink() and not stays_inside(path, root):
            raise DataError(f"{path} is outside {root}")
        if path.parent == folders[1] and path.suffix.lower() != ".png":
            raise DataError(f"{path}: {LOSSLESS}")
    return [(str(image), str(annotation)) for image, annotation in pairs]


def read_classes(path: pathlib.Path) -> Classes:
    """The classes of a file with lines NAME or NAME R G B; blank lines and lines that start with # are not counted.
    Raises DataError, naming the line, for repeated names or colors, colors on some lines only, or a number of classes
    that is not between 2 and 255."""
    names: list[str] = []  # Without void.
    labels: dict[int, int] = {}  # Pixel value -> label.
    colours: list[tuple[int, int, int]] = []
    lines = _entries(path)
    for index, (where, name, colour) in enumerate(lines):
        value = annotations.code(*colour) if colour else index
        if name in names:
            raise DataError(f"{where} repeats the name of another class")
        if value in labels:
            raise DataError(f"{where} repeats the color of another class")
        if name.casefold() == VOID_NAME:
            labels[value] = VOID
            continue
        if len(names) == VOID or (colour is None and index >= VOID):
            raise DataError(f"{where} is one class too many: at most {VOID} are supported, with indices below {VOID}")
        labels[value] = len(names)
        names.append(name)
        colours += [colour] if colour else []
    if len(names) < 2:
        listed = ", ".join(names) or "none"
        raise DataError(f"{path} must list at least two classes besides {VOID_NAME}; it lists {listed}")
    if colours:
        table = annotations.table(labels, COLOURS)
        return Classes(tuple(names), table, f"listed in {path}", colours=tuple(colours))
    values = tuple(value for value, label in labels.items() if label != VOID)
    table = annotations.table(labels | {VOID: VOID}, INDICES)
    moved = values if values != tuple(range(len(names))) else ()  # After a line void.
    return Classes(tuple(names), table, _accepted(len(lines)), ADVICE, values=moved)


def _entries(path: pathlib.Path) -> list[tuple[str, str, tuple[int, int, int] | None]]:
    """(location for messages, name, color) of each class in the file. Raises DataError as `read_classes` does."""
    try:
        lines = read_names(path).splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    named = [(f"{path}, line {i}: {line.strip()!r}", line.strip()) for i, line in enumerate(lines, 1)]
    named = [(where, line) for where, line in named if line and not line.startswith("#")]
    found: list[tuple[str, str, tuple[int, int, int] | None]] = []
    for where, line in named:
        if COLOUR_FIRST.fullmatch(line):
            raise DataError(f"{where}: the color must follow the name, as NAME R G B")
        match = COLOURED.fullmatch(line)
        name = composed(match[1] if match else line)
        if not name.isprintable():  # Reports could not display the name.
            raise DataError(f"{where}: the name is not printable")
        colour = (int(match[2]), int(match[3]), int(match[4])) if match else None
        if colour and max(colour) > 255:
            raise DataError(f"{where}: the numbers of a color must be between 0 and 255")
        found.append((where, name, colour))
    if any(colour for *_, colour in found):
        plain = [where for where, _, colour in found if colour is None]
        if plain:
            raise DataError(f"{plain[0]} has no color R G B, although other lines have one")
    return found


def _accepted(count: int) -> str:
    return f"0 to {count - 1}, or {VOID} for {VOID_NAME}"


def _numbers(count: int) -> Classes:
    """Classes that are named by their indices, 0 to count - 1."""
    labels = annotations.table({i: i for i in (*range(count), VOID)}, INDICES)
    return Classes(tuple(map(str, range(count))), labels, _accepted(count), ADVICE)


def _counted(root: pathlib.Path, pairs: list[tuple[str, str]]) -> Classes:
    """The classes 0, 1, ... that occur in the annotations. Raises DataError if numbers between them are missing, as in
    annotations whose values are gray levels."""
    if not pairs:
        raise DataError(f"{root} has neither a file {FILE} nor a split train; {FORMS}")

    def read(i):
        try:
            return np.unique(annotations.pixel_values(pairs[i][1], advice=ADVICE))
        except DataError as error:
            return error

    occurring: dict[int, str] = {}  # Value -> the first file that contains it.
    for i, found in enumerate(each(read, len(pairs), title="counting classes")):
        if isinstance(found, DataError):
            raise found
        for value in found.tolist():
            occurring.setdefault(value, pairs[i][1])
    indices = sorted(occurring.keys() - {VOID})
    if indices != list(range(len(indices))) or len(indices) < 2:
        shown = ", ".join(map(str, sorted(occurring)[:10])) + (", ..." if len(occurring) > 10 else "")
        smoothed = f"; {annotations.SMOOTHED.replace('it was', 'they were')}" if len(occurring) > 10 else ""
        shown += f" ({indices[-1]} first in {occurring[indices[-1]]})" if indices else ""
        needed = f"without {FILE} they must be 0, 1, ... without gaps, and {VOID} for {VOID_NAME}"
        raise DataError(
            f"the pixels of the annotations of train in {root} have the values {shown}; {needed}{smoothed}; {FORMS}"
        )
    print(f"{root} has no {FILE}: classes are the labels 0 to {indices[-1]} of train", file=sys.stderr)
    return _numbers(len(indices))


def _palette(path: str, values: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """The colors of the `values` in the palette of a PNG file; () if it has none, or they are hard to distinguish."""
    with annotations.named_failures(path), Image.open(path) as image:
        entries = image.getpalette() if image.mode == "P" else None
    if entries is None or len(entries) < 3 * (max(values) + 1):
        return ()
    colours = np.array(entries).reshape(-1, 3)[list(values)]
    difference = np.abs(colours[:, None] - colours).max(2) + DISTINCT * np.eye(len(colours), dtype=int)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours) if difference.min() >= DISTINCT else ()


def _check_occurrence(root: pathlib.Path, dataset: Dataset) -> None:
    """Raises DataError if fewer than two classes occur in train, and reports classes that do not occur."""
    labels, names = dataset.splits["train"][1], dataset.class_names
    counts = np.zeros(VOID + 1, np.int64)
    for label in labels:
        counts += np.bincount(label.ravel(), minlength=VOID + 1)
    there = counts[: len(names)] > 0
    absent = [name for name, occurs in zip(names, there, strict=True) if not occurs]
    if len(names) - len(absent) < 2:
        only = next((name for name in names if name not in absent), f"none except {VOID_NAME}")
        hint = f"if the pixel value {VOID} is a class, list the colors of all classes in {FILE}, as NAME R G B"
        raise DataError(f"{root}: only one class occurs in train, {only}; {hint}")
    if absent:
        shown = ", ".join(absent[:20]) + (f" and {len(absent) - 20} more" if len(absent) > 20 else "")
        print(f"warning: {root} has no pixels of the classes {shown} in train", file=sys.stderr)
