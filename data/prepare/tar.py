"""Tar archives, read so that a damaged one is never taken for a short one."""

import contextlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator

from data.dataset import DataError

DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


class _Header(tarfile.TarInfo):
    """Python takes a header that is damaged, cut short or missing for the archive's end, where blocks of zeros are."""

    @classmethod
    def fromtarfile(cls, tarfile_):
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged or cut short after {tarfile_.offset:,} bytes ({error})") from None


@contextlib.contextmanager
def opened(path, *, file=None) -> Iterator[tarfile.TarFile]:
    """The archive at `path`, compressed or not, or in the open `file`, which `path` names. Raises DataError, by name,
    for what is no archive or a damaged one, while it is opened or read."""
    with named(path), tarfile.open(None if file else path, fileobj=file, tarinfo=_Header) as archive:
        yield archive


@contextlib.contextmanager
def named(path) -> Iterator[None]:
    """Raises DataError with the archive's path for what reading a damaged one raises."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # The disk's, not bzip2's.
            raise
        reason = str(error).splitlines()[0] if str(error) else "cut short"
        raise DataError(f"{path} can't be read as an archive: {reason.removesuffix(':')}") from None
