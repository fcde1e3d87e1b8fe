"""Archives of pictures to folders SPLIT/CLASS/*.JPEG, as ImageNet is handed out: an archive that holds one archive for
each class, or one that holds pictures.

Of a member's name the last component alone is used, and of the folder that holds it, where there is one, the last: so
nothing is written outside the folder. Links and devices are passed over. What is there already stays: an unpacking that
was broken off goes on.
"""

import os
import pathlib
import re
import shutil
import sys
import tarfile

from data.dataset import DAMAGED_ARCHIVE, DataError
from data.folder import SUFFIXES

PLAIN = re.compile(r"[^\W.][\w.+ -]*")  # No separator, no dot at the start: neither "..", nor a hidden file.


def unpack(source: pathlib.Path, target: pathlib.Path) -> int:
    """Unpacks the pictures of the archive below `target`; their number, those from earlier calls included.

    Raises DataError for a file that is no archive, a damaged one or one without pictures, OSError for a full disk.
    """
    from tqdm import tqdm

    count = 0
    try:
        with tarfile.open(source) as archive, tqdm(unit="picture", file=sys.stderr) as bar:
            for member in archive:
                name = _plain(member.name)
                stream = archive.extractfile(member) if member.isfile() and name else None
                if stream is None:
                    continue
                if name.endswith(".tar"):
                    count += _class(stream, target / name.removesuffix(".tar"), bar, member.name)
                elif name.lower().endswith(SUFFIXES):
                    folder = target / _plain(os.path.dirname(member.name))
                    folder.mkdir(parents=True, exist_ok=True)
                    count += _write(stream, member.size, folder / name)
                    bar.update()
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{source} can't be read as an archive: {error}") from None
    if not count:
        raise DataError(f"{source} holds no pictures, as files or in archives by class")
    return count


def _plain(path: str) -> str:
    """The last component of a member's path, or "" where that is no plain name."""
    name = path.rstrip("/").rpartition("/")[2]
    return name if PLAIN.fullmatch(name) else ""


def _class(stream, folder: pathlib.Path, bar, title: str) -> int:
    """The pictures of one class, which appears whole or not at all."""
    if folder.is_dir():
        found = sum(1 for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))
        bar.update(found)
        return found
    part, count = folder.with_name(f".{folder.name}.part"), 0
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=stream) as archive:
            for member in archive:
                name = _plain(member.name)
                inner = archive.extractfile(member) if member.isfile() and name.lower().endswith(SUFFIXES) else None
                if inner is not None:
                    count += _write(inner, member.size, part / name)
                    bar.update()
    except DAMAGED_ARCHIVE as error:
        raise DataError(f"{title} can't be read as an archive: {error}") from None
    part.rename(folder)
    return count


def _write(stream, size: int, path: pathlib.Path) -> int:
    """Copies one picture, by way of a temporary file, unless it is there in full."""
    if not (path.is_file() and path.stat().st_size == size):
        temporary = path.with_name(f".{path.name}.part")
        with open(temporary, "wb") as file:
            shutil.copyfileobj(stream, file)
        if temporary.stat().st_size != size:
            raise EOFError(f"{path.name} is cut short")
        temporary.replace(path)
    return 1
