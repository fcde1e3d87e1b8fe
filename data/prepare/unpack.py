"""Unpacks image archives to folders SPLIT/CLASS/*.JPEG. As in ImageNet, an archive contains either images or one
archive per class.

Only the last components of a member's name are used: the file name, its folder as the class, and the folder above it if
it is named like a split; images directly inside a split stay there, with their labels in SPLIT.txt. Nothing is
therefore written outside the target folder. Links, devices, hidden files, SYSTEM_FOLDERS and paths that leave the
archive's folder are skipped. Existing files are kept, so that an interrupted call can be resumed.
"""

import contextlib
import errno
import os
import pathlib
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator

from data.dataset import DataError
from data.folder import SUFFIXES, hidden
from data.prepare import tar

SPLITS = ("train", "val", "validation", "test")
LABELS = tuple(f"{split}.txt" for split in SPLITS)


def unpack(source: pathlib.Path, root: pathlib.Path, *, split: str, fixed: bool = True) -> int:
    """Unpacks the images of the archive to root/`split` or, unless `fixed`, to the splits named by the archive's
    folders. Returns the number of images, including those from earlier calls.

    Raises DataError if the file is not an archive, is damaged, contains no images, or has folders that would be merged
    or names that are invalid here, and OSError if the disk is full.
    """
    count, parents = 0, dict[pathlib.Path, str]()
    with tar.opened(source) as archive, _bar() as bar, _names_fit(source):
        for member in archive:
            parent, name = os.path.split(member.name)
            labels = not fixed and name in LABELS
            stream = archive.extractfile(member) if _wanted(member, LABELS if labels else (*SUFFIXES, ".tar")) else None
            if stream is None:
                continue
            if labels:
                _claim(parents, root / name, parent)
                root.mkdir(parents=True, exist_ok=True)
                write(stream, member.size, root / name)
                continue
            above, folder = os.path.split(parent)
            above = os.path.basename(above)
            nested = name.lower().endswith(".tar")
            flat = not fixed and folder in SPLITS and above not in SPLITS and not nested
            named = folder if flat or nested else above
            target = root / (split if fixed or named not in SPLITS else named)
            if nested:
                target /= name[: -len(".tar")]
                _claim(parents, target, member.name)
                count += _class(stream, target, bar, f"{member.name} in {source}")
            else:
                target = target / folder if plain(folder) and not flat else target
                _claim(parents, target, parent)
                target.mkdir(parents=True, exist_ok=True)
                count += write(stream, member.size, target / name)
                bar.update()
    if not count:
        raise DataError(f"{source} contains no images, neither as files nor in one archive per class")
    return count


def split_of(name: str) -> str:
    """The split that the archive's name contains as a separate word, by default train."""
    words = {"val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
    found = re.search(f"(?<![a-z])({'|'.join(words)})(?![a-z])", name.lower())
    return words[found[1]] if found else "train"


@contextlib.contextmanager
def _names_fit(source: pathlib.Path) -> Iterator[None]:
    """Converts errors for names that are too long, or used for both a file and a folder, to DataError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
            raise
        raise DataError(f"{source} can't be unpacked: {error.filename}: {error.strerror}") from None


def _bar():
    from tqdm import tqdm

    return tqdm(unit="image", file=sys.stderr, disable=not sys.stderr.isatty())


def plain(name: str) -> bool:
    """Whether a file or folder name is acceptable: printable, without separators, neither hidden nor ".."."""
    return name.isprintable() and name[:1] not in ("", ".") and "/" not in name


def _wanted(member: tarfile.TarInfo, suffixes: tuple[str, ...]) -> bool:
    *folders, name = member.name.split("/")
    read = not any(hidden(folder) for folder in folders if folder != ".")  # ".." is hidden.
    if member.isdir() or not name.lower().endswith(suffixes):
        return False
    wanted = member.isfile() and read and not member.name.startswith("/") and plain(name)
    if not wanted:
        print(f"skipped: {member.name!r}", file=sys.stderr)
    return wanted


def _claim(parents: dict[pathlib.Path, str], target: pathlib.Path, parent: str) -> None:
    """Raises DataError if two of the archive's folders would be merged into `target`."""
    if parents.setdefault(target, parent) != parent:
        raise DataError(f"{parents[target]!r} and {parent!r} in the archive would both be unpacked to {target}")


def _class(stream, folder: pathlib.Path, bar, title: str) -> int:
    """Unpacks the images of one class atomically; returns the number of images."""
    if folder.is_dir():
        found = sum(1 for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
        bar.update(found)
        return found
    part, count, parents = folder.with_name(f".{folder.name}.part"), 0, dict[pathlib.Path, str]()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with tar.opened(title, file=stream) as archive:
        for member in archive:
            parent, name = os.path.split(member.name)
            inner = archive.extractfile(member) if _wanted(member, SUFFIXES) else None
            if inner is not None:
                _claim(parents, folder, parent)
                count += write(inner, member.size, part / name)
                bar.update()
    if not count:
        print(f"{title} contains no images", file=sys.stderr)
    part.rename(folder)
    return count


def write(stream, size: int, path: pathlib.Path) -> int:
    """Copies one file, via a temporary file, unless it exists with the same size."""
    if not (path.is_file() and path.stat().st_size == size):
        temporary = path.with_name(f".{path.name}.part")
        try:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(stream, file)
        except OSError as error:  # A full disk raises it without a file name, a damaged archive without errno.
            raise OSError(error.errno, error.strerror, str(path)) if error.errno else error from None
        if temporary.stat().st_size != size:
            raise EOFError(f"{path.name} is truncated")
        temporary.replace(path)
    return 1
