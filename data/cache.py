"""Arrays that were costly to make, kept in a file until what they were made from changes."""

import contextlib
import os
import pathlib
import sys
import zipfile
import zlib

import numpy as np


def read(path: pathlib.Path, key: str, *names: str) -> dict[str, np.ndarray] | None:
    """The arrays `names` that `write` kept under `key`; None where there is no such file, or one of another key or
    damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as kept:
            return {name: kept[name] for name in names} if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile):  # All by damage.
        return None


def write(path: pathlib.Path, key: str, *, what: str, **arrays: np.ndarray) -> None:
    """Keeps the arrays, whole or not at all; a folder that can't be written costs a line on standard error: `what`
    is done at each start."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, key=np.array(key), **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        print(f"{path} can't be written ({error.strerror}): {what} at each start", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):  # A read-only file system refuses even what would do nothing.
            temporary.unlink()
