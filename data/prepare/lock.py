"""Locks the folders that `prepare` writes to. Otherwise, a concurrent call would mistake its unfinished files for
leftovers of a killed process."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from data.dataset import DataError

NAME = ".prepare.lock"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # Raised on some network file systems.


@contextlib.contextmanager
def locked(*folders: pathlib.Path) -> Iterator[None]:
    """Locks the folders for this process. Missing folders are created, and removed at the end if they are empty. The
    system releases the locks of a killed process. Raises DataError if another process is preparing in one of them.

    A folder that can't be written or locked is used without a lock; if it can't be written, later writes raise OSError.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted({folder.resolve() for folder in folders}):  # A process can't lock a folder twice.
            stack.enter_context(_locked(folder))
        yield


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path, folder)
    except OSError as error:
        if error.errno not in READ_ONLY + UNSUPPORTED:
            raise
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)  # While it is still locked: see _acquired.
            lock.close()
        for one in made:
            with contextlib.suppress(OSError):  # The folder is not empty.
                one.rmdir()


def _acquired(path: pathlib.Path, folder: pathlib.Path) -> IO:
    """The open and locked file at `path`."""
    while True:
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(open(path, "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # Held by another process.
                line = f"another process is preparing a data set in {folder}; wait until it has finished"
                raise DataError(line) from None
            except OSError:  # Locking is not supported, so no process holds the lock.
                path.unlink()
                raise
            # The process that held the lock may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    stack.pop_all()  # The lock is held as long as the file is open.
                    return lock
