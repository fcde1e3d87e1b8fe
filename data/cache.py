"""Cached arrays, in files that are valid until their inputs change."""

import contextlib
import glob
import pathlib
import sys
import time
import uuid
import zipfile
import zlib

import numpy as np

STALE_SECONDS = 3600  # Temporary files older than this are assumed to be left over from killed processes.


def read(path: pathlib.Path, key: str, *names: str) -> dict[str, np.ndarray] | None:
    """The arrays `names` that `write` stored under `key`; None if the file is missing, damaged or has another key."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in names} if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):  # If damaged.
        return None


def write(path: pathlib.Path, key: str, *, what: str, **arrays: np.ndarray) -> None:
    """Stores the arrays atomically. If that fails, prints a warning that `what` will be repeated at each start."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.npz")  # Containers may share process ids.
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.npz"):
            with contextlib.suppress(FileNotFoundError):  # Another process has removed or renamed it.
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()
        np.savez(temporary, key=np.array(key), **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        print(f"{path} can't be written ({error.strerror}): {what} will be repeated at each start", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):  # A read-only file system raises an error even if the file does not exist.
            temporary.unlink()
