"""Images in folders, SPLIT/CLASS/*.jpg, png and others, as for ImageNet; a class may have subfolders or links to
folders. A split may also be flat, SPLIT/*.jpg, with its classes in SPLIT.txt. A folder of class folders, CLASS/*.jpg,
is loaded as the only split, ALL. Hidden files and folders and system folders are skipped. Class names are compared in
Unicode's composed form (NFC), because macOS stores other forms.

Small images of equal size are decoded once and cached as an array in a file next to the folder, until an image is
added, removed or changed. Other images are decoded when a batch needs them.
"""

import codecs
import collections
import hashlib
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Iterator

import numpy as np

from data import image_files
from data.dataset import ALL, DataError, Dataset, data_folder
from data.decode import image_size, read_image
from data.stream import View

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = ("train", "test", "val", "validation")  # Folders with other names may be classes.
SYSTEM_FOLDERS = ("@eaDir", "lost+found", "__MACOSX")  # Created by Synology, ext4 and macOS's archiver.


def load(
    data_dir: str | None,
    *,
    skip_corrupt: bool = False,
    view: View | None = None,
    always: bool = False,
    shape: tuple[int, int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Loads the splits of the folder as color images, or as grayscale images if `channels` is 1, with classes sorted
    by name. Splits are arrays, or streams of `view` if an image is large or `always` is true; with `shape` (h, w,
    channels), arrays of whole images resized to it.

    An image that can't be decoded raises DataError with its name, on loading or in the stream; with `skip_corrupt`, all
    such images are reported and skipped. Also raises DataError if the folder is missing, if classes differ between
    splits, or if small images differ in size.
    """
    root, files, names = listing(data_dir)
    channels, size = (shape[2], shape[:2]) if shape else (channels or 3, None)
    found = {split: _image_split(root, split, files[split], names, channels=channels) for split in sorted(files)}
    splits, kept = image_files.load(found, skip_corrupt=skip_corrupt, view=view or View(), always=always, size=size)
    return Dataset("folder", splits, names, files=kept)


def listing(data_dir: str | None) -> tuple[pathlib.Path, dict[str, list[tuple[str, int]]], tuple[str, ...]]:
    """(folder, [(path, label)] of each split, class names). Raises DataError as `load` does."""
    root = data_folder(data_dir, "folder", " with SPLIT/CLASS/*.jpg or CLASS/*.jpg (or png)")
    splits = sorted(path.name for path in root.iterdir() if path.is_dir() and not hidden(path.name))
    others = {split: collections.defaultdict[str, list[str]](list) for split in splits}
    listed = {split: _list(root / split, others[split]) for split in splits}
    listed = {split: classes for split, classes in listed.items() if any(classes.values())}
    direct = {split: paths for split in splits if (paths := images_in(root / split))}
    flat = {split: paths for split, paths in direct.items() if split not in listed}
    places = {split: root / split for split in splits}
    if _are_classes(root, data_dir, listed, direct):
        others = {ALL: collections.defaultdict[str, list[str]](list)}
        listed, flat, places = {ALL: _list(root, others[ALL])}, {}, {ALL: root}
    if not listed:
        forms = f"SPLIT/CLASS/*.jpg or CLASS/*.jpg ({', '.join(SUFFIXES)})"
        raise DataError(f"--data_dir={data_dir} contains no images as {forms}")
    names = tuple(next(iter(listed.values())))
    for name in (*names, *splits):
        if not name.isprintable():  # Reports could not display the name.
            raise DataError(f"--data_dir={data_dir}: the folder name {name!r} is not printable")
    for split, classes in listed.items():
        if tuple(classes) != names:
            both = f"the classes of {next(iter(listed))} and {split} differ: {list(names)} and {list(classes)}"
            hint = "" if listed.keys() & set(SPLITS) else f"; no folder has the name of a split, {', '.join(SPLITS)}"
            raise DataError(f"{both}{hint}")
    for split, classes in listed.items():
        empty = [name for name, paths in classes.items() if not paths]
        if empty:
            counted = ", ".join(f"{name} ({len(others[split][name])} other files)" for name in empty[:20])
            counted += f" and {len(empty) - 20} more" if len(empty) > 20 else ""
            line = f"{places[split]} has no images of the classes {counted}; images are {', '.join(SUFFIXES)}"
            print(f"warning: {line}", file=sys.stderr)
        kinds = collections.Counter(os.path.splitext(path)[1] for name in classes for path in others[split][name])
        if kinds and not empty:
            counted = ", ".join(f"{count:,} {kind or 'without suffix'}" for kind, count in kinds.most_common(5))
            print(f"{places[split]}: skipped files that are not images: {counted}", file=sys.stderr)
    files = {split: _files(classes) for split, classes in listed.items()}
    for split, paths in flat.items():
        labels = root / f"{split}.txt"
        if labels.is_file():
            files[split] = _labelled(paths, labels, names)
        else:
            print(f"{root / split} is skipped: it has no class folders, and there is no {labels}", file=sys.stderr)
    return root, files, names


def _are_classes(root: pathlib.Path, data_dir: str | None, listed: dict, direct: dict) -> bool:
    """Whether the folders in `root` are classes: no folder with the name of a split has class folders, and a folder
    contains images directly, without a file of labels. `listed` and `direct` have the names of the folders with images
    in subfolders and of those with images directly. Raises DataError if a class would have the name of a split."""
    if listed.keys() & set(SPLITS) or any((root / f"{name}.txt").is_file() for name in direct):
        return False
    named = [name for name in direct if name in SPLITS]
    if named:
        name = named[0]
        how = f"put them in {name}/CLASS/, or rename the folder if {name} is a class"
        raise DataError(f"--data_dir={data_dir}: {name} is the name of a split, but contains images directly: {how}")
    return bool(direct)


def _list(folder: pathlib.Path, others: dict[str, list[str]]) -> dict[str, list[str]]:
    """The paths of images by class, both sorted; strings, because a million pathlib objects take half a gigabyte. The
    other files of each class are added to `others`."""
    found: dict[str, list[str]] = {}
    above = tuple(map(_identity, (folder.parent, folder)))
    paths = [path for path in folder.iterdir() if path.is_dir() and not hidden(path.name)]
    for name, path in sorted((composed(path.name), path) for path in paths):
        if name in found:
            raise DataError(f"{folder} has two folders of the class {name!r}, in different forms of Unicode")
        found[name] = []
        for file in _files_below(str(path), above):
            (found[name] if _is_image(os.path.basename(file)) else others[name]).append(file)
        found[name].sort()
    return found


def _identity(folder) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _files_below(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """The paths of all files below the folder that are not hidden. Links to folders are followed, except links to a
    folder in `above`, the chain of parent folders. Pipes and devices are left out."""
    here = _identity(folder)
    for entry in os.scandir(folder) if here not in above else ():
        if hidden(entry.name):
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _files_below(entry.path, (*above, here))
        elif not _could_block(entry):
            yield entry.path


def read_names(path: pathlib.Path) -> str:
    """The text of a file that lists file names, decoded like file names and without a UTF-8 byte order mark."""
    return os.fsdecode(path.read_bytes().removeprefix(codecs.BOM_UTF8))


def composed(name: str) -> str:
    """The name in Unicode's composed form, NFC."""
    return unicodedata.normalize("NFC", name)


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is neither read nor unpacked from an archive."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _could_block(entry: os.DirEntry) -> bool:
    """Whether reading the entry could block, as for pipes and devices. A dangling link is reported by the decoder."""
    if not entry.is_symlink():  # Needs no access to the file.
        return not (entry.is_file() or entry.is_dir())
    return os.path.exists(entry.path) and not (os.path.isfile(entry.path) or os.path.isdir(entry.path))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def images_below(folder: str) -> list[str]:
    """The paths of all images below the folder, sorted; hidden files and system folders are skipped."""
    return sorted(path for path in _files_below(folder, ()) if _is_image(os.path.basename(path)))


def images_in(folder: pathlib.Path) -> list[str]:
    """The paths of the images directly in the folder, sorted; hidden files are skipped."""
    return sorted(entry.path for entry in os.scandir(folder) if _is_image(entry.name) and not _could_block(entry))


def _labelled(paths: list[str], labels: pathlib.Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    """The images of a flat split with classes from a file with lines NAME CLASS, separated by a space or a tab. Either
    all lines have the name of a class, or all have its index in the sorted names. Raises DataError, naming the line or
    the image, if they don't match."""
    by_name, by_place = ({str(key): i for i, key in enumerate(keys)} for keys in (names, range(len(names))))
    lines = [line if line.strip() else "" for line in composed(read_names(labels)).splitlines()]
    # Trailing spaces may be part of the class name.
    readings = [[_entry(line, known) or _entry(line.strip(), known) for line in lines] for known in (by_name, by_place)]
    # If class names are numbers, interpretation as names takes precedence.
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
            raise DataError(f"{labels} lists {name} with two classes, {names[found[name]]} and {names[label]}")
    shown = {path: composed(os.path.basename(path)) for path in paths}
    surplus = len(found.keys() - set(shown.values()))
    if surplus:
        print(f"warning: {labels} lists {surplus:,} images that do not exist", file=sys.stderr)
    missing = [name for name in shown.values() if name not in found]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{labels} lists no class for {missing[0]}{others}")
    return [(path, found[name]) for path, name in shown.items()]


def _entry(line: str, known: dict[str, int]) -> tuple[str, int] | None:
    """(file name, class) of a line; both may contain spaces."""
    for gap in re.finditer("[ \t]", line):
        label = known.get(line[gap.end() :])
        if label is not None:
            return os.path.basename(line[: gap.start()].strip()), label
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
        cache=root.with_name(f"{root.name}.{split}{'' if channels == 3 else '.gray'}"),
    )
