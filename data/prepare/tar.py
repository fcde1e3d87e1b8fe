"""Reads tar archives; damaged ones raise an error instead of appearing to end early."""

import contextlib
import lzma
import sys
import tarfile
import zlib
from collections.abc import Iterator

from data.dataset import DataError

DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


class _Header(tarfile.TarInfo):
    """Raises an error for a damaged, truncated or missing header, which tarfile treats as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_):
        try:
            header = super().fromtarfile(tarfile_)
        except (ValueError, OverflowError) as error:  # An extended header with a value that is not a number.
            raise tarfile.ReadError(f"damaged header at {tarfile_.offset:,} bytes ({error})") from None
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged or truncated after {tarfile_.offset:,} bytes ({error})") from None
        if tarfile_.offset > sys.maxsize:  # Where the next header would be.
            raise tarfile.ReadError(f"{header.name!r} can't have {header.size:,} bytes")
        return header


@contextlib.contextmanager
def opened(path, *, file=None) -> Iterator[tarfile.TarFile]:
    """Opens the archive at `path`, compressed or not, or in the open `file`; `path` is then its name in messages.
    Raises DataError, on opening or on reading, if it is not an archive or is damaged."""
    with named(path), tarfile.open(None if file else path, fileobj=file, tarinfo=_Header) as archive:
        yield archive


@contextlib.contextmanager
def named(path) -> Iterator[None]:
    """Converts exceptions from reading a damaged archive to DataError with its path."""
    try:
        yield
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # From the operating system, not from bzip2.
            raise
        reason = str(error).splitlines()[0] if str(error) else "truncated"
        raise DataError(f"{path} can't be read as a tar archive: {reason.removesuffix(':')}") from None
