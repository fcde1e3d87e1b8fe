"""Images in folders, SPLIT/CLASS/*.jpg, png and others, as for ImageNet; a class may have folders below it. A split may
also be flat, SPLIT/*.jpg, with its classes in SPLIT.txt. Hidden files and folders are skipped.

Small images of equal size are decoded once and cached as an array in a file next to the folder, until an image is
added, removed or changed. Others are decoded when a batch needs them.
"""

import collections
import hashlib
import os
import pathlib
import sys

import numpy as np

from data import image_files
from data.dataset import DataError, Dataset
from data.decode import image_size, read_image
from data.stream import View

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def load(
    data_dir: str | None,
    *,
    skip_corrupt: bool = False,
    view: View | None = None,
    always: bool = False,
    shape: tuple[int, int, int] | None = None,
) -> Dataset:
    """Loads the splits of the folder, with colour images and classes sorted by name. They are arrays, or streams of
    `view` if an image is large or if `always`; with `shape` (h, w, channels), arrays of whole images resized to it.

    An image that can't be decoded raises DataError with its name, on loading or in the stream; with `skip_corrupt` all
    such images are reported and skipped. Also raises DataError if the folder is missing, if classes differ between
    splits, or if small images differ in size.
    """
    root, files, names = listing(data_dir)
    channels, size = (shape[2], shape[:2]) if shape else (3, None)
    found = {split: _image_split(root, split, files[split], names, channels=channels) for split in sorted(files)}
    splits = image_files.load(found, skip_corrupt=skip_corrupt, view=view or View(), always=always, size=size)
    return Dataset("folder", splits, names)


def listing(data_dir: str | None) -> tuple[pathlib.Path, dict[str, list[tuple[str, int]]], tuple[str, ...]]:
    """(folder, [(path, label)] of each split, class names). Raises DataError as `load` does."""
    if not data_dir:
        raise DataError("--dataset=folder requires --data_dir=FOLDER, which contains SPLIT/CLASS/*.jpg or png")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: there is no such folder")
    splits = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    others: collections.Counter[str] = collections.Counter()  # Files that are no images, by class folder.
    listed = {split: _list(root / split, others) for split in splits}
    listed = {split: classes for split, classes in listed.items() if any(classes.values())}
    flat = {split: paths for split in splits if split not in listed and (paths := _images_in(root / split))}
    if not listed:
        raise DataError(f"--data_dir={data_dir} contains no images as SPLIT/CLASS/*.jpg ({', '.join(SUFFIXES)})")
    names = tuple(next(iter(listed.values())))
    for name in (*names, *splits):
        if not name.isprintable():  # It may not be valid text, which reports could not show.
            raise DataError(f"--data_dir={data_dir}: the name of the folder {name!r} can't be printed")
    for split, classes in listed.items():
        if tuple(classes) != names:
            raise DataError(
                f"the classes of {next(iter(listed))} and {split} differ: {list(names)} and {list(classes)}"
            )
    for split, classes in listed.items():
        empty = [name for name, paths in classes.items() if not paths]
        if empty:
            counted = ", ".join(f"{name} ({others[str(root / split / name)]} other files)" for name in empty[:20])
            counted += f" and {len(empty) - 20} more" if len(empty) > 20 else ""
            line = f"{root / split} has no images of the classes {counted}; images are {', '.join(SUFFIXES)}"
            print(f"warning: {line}", file=sys.stderr)
    files = {split: _files(classes) for split, classes in listed.items()}
    for split, paths in flat.items():
        labels = root / f"{split}.txt"
        if labels.is_file():
            files[split] = _labelled(paths, labels, names)
        else:
            print(f"{root / split} is skipped: it has no class folders, and there is no {labels}", file=sys.stderr)
    return root, files, names


def _list(folder: pathlib.Path, others: collections.Counter[str]) -> dict[str, list[str]]:
    """The paths by class, both sorted; strings, since a million pathlib objects take half a gigabyte. Counts the other
    files of each class in `others`."""

    def unreadable(error: OSError):
        raise error

    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images: list[str] = []
        for place, folders, files in os.walk(path, onerror=unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            seen = [name for name in files if not name.startswith(".")]
            kept = [os.path.join(place, name) for name in seen if _is_image(name)]
            others[str(path)] += len(seen) - len(kept)
            images += kept
        found[path.name] = sorted(images)
    return found


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _images_in(folder: pathlib.Path) -> list[str]:
    return sorted(entry.path for entry in os.scandir(folder) if _is_image(entry.name))


def _labelled(paths: list[str], labels: pathlib.Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """The images of a flat split with classes from a file with lines NAME CLASS, where CLASS is always a name or always
    an index into the sorted names. Raises DataError with the line or the image if they don't match."""
    by_name, by_place = ({str(key): i for i, key in enumerate(keys)} for keys in (names, range(len(names))))
    lines = [line if line.strip() else "" for line in labels.read_text(errors="replace").splitlines()]
    # Trailing spaces may be part of the class name.
    readings = [[_entry(line, known) or _entry(line.strip(), known) for line in lines] for known in (by_name, by_place)]
    # If class names are numbers, a reading as names has precedence.
    entries = next((r for r in readings if all(e or not line for e, line in zip(r, lines, strict=True))), None)
    if entries is None:
        wrong = min(readings, key=lambda r: sum(e is None for e in r))
        number = next(i for i, line in enumerate(lines) if line and wrong[i] is None)
        line = lines[number].strip()
        line = line if len(line) <= 80 else f"{line[:80]} ..."
        raise DataError(f"{labels}, line {number + 1}: {line!r} does not end with one of the {len(names)} classes")
    found: dict[str, int] = {}
    for name, label in filter(None, entries):
        if found.setdefault(name, label) != label:
            raise DataError(f"{labels} gives {name} two classes, {names[found[name]]} and {names[label]}")
    surplus = len(found.keys() - {os.path.basename(path) for path in paths})
    if surplus:
        print(f"warning: {labels} names {surplus:,} images that do not exist", file=sys.stderr)
    missing = [path for path in paths if os.path.basename(path) not in found]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{labels} names no class for {os.path.basename(missing[0])}{others}")
    return [(path, found[os.path.basename(path)]) for path in paths]


def _entry(line: str, known: dict[str, int]) -> tuple[str, int] | None:
    """(file name, class) of a line; both may contain spaces."""
    words = line.split(" ")
    for i in range(1, len(words)):
        label = known.get(" ".join(words[i:]))
        if label is not None:
            return os.path.basename(" ".join(words[:i]).strip()), label
    return None


def _files(classes: dict[str, list[str]]) -> list[tuple[str, int]]:
    return [(path, label) for label, paths in enumerate(classes.values()) for path in paths]


def _image_split(
    root: pathlib.Path, split: str, files: list[tuple[str, int]], names, *, channels: int
) -> image_files.ImageSplit:
    def key(skip_corrupt):
        digest = hashlib.sha256(repr((list(names), channels, skip_corrupt)).encode())
        for path, label in files:
            status = os.stat(path) if os.path.exists(path) else None  # The decoder reports dangling links.
            state = f"{label}\0{status.st_size}\0{status.st_mtime_ns}" if status else "absent"
            digest.update(os.fsencode(os.path.relpath(path, root)) + f"\0{state}\n".encode())
        return digest.hexdigest()

    return image_files.ImageSplit(
        name=split,
        length=len(files),
        channels=channels,
        where=lambda example: files[example][0],
        read=lambda example, crop: read_image(files[example][0], channels=channels, crop=crop),
        size=lambda example: image_size(files[example][0]),
        labels=lambda: np.array([label for _, label in files], np.int32),
        key=key,
        cache=root.with_name(f"{root.name}.{split}"),
    )
