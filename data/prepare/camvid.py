"""Copies CamVid from a folder or an archive to the layout that data.camvid reads."""

import pathlib
from collections.abc import Iterator
from typing import IO

from data.annotations import stays_inside
from data.dataset import DataError
from data.folder import SUFFIXES
from data.prepare import tar
from data.prepare.unpack import plain, write


def collect(source: pathlib.Path, target: pathlib.Path) -> int:
    """Copies the lists, images and annotations of a folder or archive in the authors' layout to `target` and returns
    the number of files.

    Nothing outside `source` is read and nothing outside `target` is written: only the last two components of a name are
    used. Existing files of the same size are kept. Raises DataError if `source` is not an archive, is damaged, or
    contains two files for one destination.
    """
    count, taken = 0, dict[pathlib.Path, str]()
    with tar.named(source):
        for name, place, size, content in _contents(source, target):
            if place in taken:
                raise DataError(f"{source} has two files for {place}: {taken[place]} and {name}")
            taken[place] = name
            place.parent.mkdir(parents=True, exist_ok=True)
            count += write(content, size, place)
    return count


def _contents(source: pathlib.Path, target: pathlib.Path) -> Iterator[tuple[str, pathlib.Path, int, IO[bytes]]]:
    """(name, destination, size in bytes, content) of each list, image and annotation in a folder or archive. No other
    file is opened; links are opened only if they point inside the folder."""
    if source.is_dir():
        inner = target.resolve() != source.resolve()  # Skips a target inside the source.
        for path in sorted(source.rglob("*")):
            name = str(path.relative_to(source))
            place = _place(target, name)
            if place and path.is_file() and stays_inside(path, source) and not (inner and stays_inside(path, target)):
                with open(path, "rb") as content:
                    yield name, place, path.stat().st_size, content
        return
    with tar.opened(source) as archive:
        for member in archive:
            place = _place(target, member.name)
            inside = archive.extractfile(member) if place and member.isfile() else None
            if place and inside:
                yield member.name, place, member.size, inside


def _place(target: pathlib.Path, name: str) -> pathlib.Path | None:
    """The destination of the list, image or annotation `name`; None for other files."""
    *_, folder, last = "", *name.split("/")
    if plain(last) and last.endswith(".txt"):
        return target / last
    return target / folder / last if plain(last) and plain(folder) and last.lower().endswith(SUFFIXES) else None
