"""Compiles the C kernels in csrc/ for this machine's processor and loads them as a shared library.

The compiler is Zig's C compiler, from the pip package ziglang, so no system compiler is needed. The library is stored
in JAX's compilation cache if one is set. Its file name contains a hash of everything it depends on.
"""

import contextlib
import ctypes
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import jax

SOURCE = pathlib.Path(__file__).with_name("csrc") / "convolution.c"
# -rtlib=none: otherwise zig would first compile its runtime library, which takes longer than the kernels and is not
# used. -g0: no debug information, which saves a fifth of the compile time.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-pthread", "-shared", "-fPIC", "-rtlib=none", "-g0")
STALE_SECONDS = 3600  # Temporary folders older than this are assumed to be left over from killed processes.


def _processor() -> str:
    """Returns a string that identifies the processor's instruction set."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _compile(folder: pathlib.Path, key: str, use: str) -> pathlib.Path:
    """Compiles the library into `folder` and returns its path. The file is moved into place atomically.

    Raises OSError with the compiler's error message.
    """
    for left in folder.glob(".kernels*"):
        with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    print(f"compiling the CPU kernels for {use}; takes a few seconds", file=sys.stderr, flush=True)
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kernels") as temporary:
        library = pathlib.Path(temporary, "kernels.so")
        command = [sys.executable, "-P", "-m", "ziglang", "cc", *FLAGS, native, "-I", jax.ffi.include_dir()]
        caches = {
            "ZIG_GLOBAL_CACHE_DIR": os.environ.get("ZIG_GLOBAL_CACHE_DIR", temporary),
            "ZIG_LOCAL_CACHE_DIR": temporary,
        }
        done = subprocess.run(
            [*command, "-o", str(library), str(SOURCE)],
            env=os.environ | caches,
            capture_output=True,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C would end the compiler, too, and the kernels would seem unavailable.
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise OSError(next((line for line in lines if " error: " in line), lines[-1]))
        library.chmod(0o700)  # The umask may let others write.
        return library.replace(folder / f"kernels-{key}-{_digest(library)}.so")


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _only_own(path: pathlib.Path) -> bool:
    """Returns whether a file or folder belongs to this user and no other user can write to it."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def load_from(folder: pathlib.Path, *, use: str = "this processor, once") -> ctypes.CDLL:
    """Loads the library from `folder`, compiling it first, with a message that names its `use`, if it is missing or
    damaged.

    Raises OSError if it can't be compiled or loaded, or if another user could have written it: the folder and the file
    must belong to this user and not be writable by others.
    """
    folder = folder.resolve()
    if not _only_own(folder):
        raise PermissionError(f"{folder} must belong to this user and not be writable by others")
    sources = (path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]")))
    parts = "\n".join((*sources, *FLAGS, jax.__version__, _processor()))
    key = hashlib.sha256(parts.encode()).hexdigest()[:32]
    for path in folder.glob(f"kernels-{key}-*.so"):
        with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
            if _only_own(path) and path.stem.endswith(_digest(path)):  # Running damaged code would crash the process.
                return ctypes.CDLL(str(path))
            path.unlink()
    return ctypes.CDLL(str(_compile(folder, key, use)))


def _is_private(folder: pathlib.Path) -> bool:
    """Creates the folder if it is missing. Returns whether this user, and no other, can write to it: code in it will be
    executed."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _only_own(folder) and os.access(folder, os.W_OK)
    except OSError:
        return False


def load() -> ctypes.CDLL:
    """Loads the library from JAX's compilation cache. If there is no cache that only this user can write to, compiles
    the library for this process.

    Raises OSError if it can't be compiled or loaded.
    """
    cache = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if cache and "://" not in cache and _is_private(pathlib.Path(cache)):
        return load_from(pathlib.Path(cache))
    with tempfile.TemporaryDirectory() as folder:
        return load_from(pathlib.Path(folder), use="this process, because no usable compilation cache is set")
