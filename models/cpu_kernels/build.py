"""Compiles the C kernels in csrc/ for this machine's processor and loads them as a shared library.

The compiler is Zig's C compiler, from the pip package ziglang, so no system compiler is needed. The library is stored
in JAX's compilation cache if one is set. Its file name contains a hash of everything it depends on.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
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


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"  # A library that was compiled earlier needs no compiler.


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
        return library.replace(folder / f"kernels-{key}-{_digest(library.read_bytes())}.so")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _only_own(status: os.stat_result) -> bool:
    """Returns whether a file or folder belongs to this user and no other user can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _checked(path: pathlib.Path) -> ctypes.CDLL | None:
    """Loads the library, or returns None if it is damaged, which would crash the process, or if another user could have
    written it. It is loaded through the file that was checked: if another user can rename a folder above, the path may
    by then lead to another file."""
    number = os.open(path, os.O_RDONLY)
    with open(number, "rb", closefd=False) as file:
        content = file.read()
    if not _only_own(os.fstat(number)) or not path.stem.endswith(_digest(content)):
        os.close(number)
        return None
    # The file stays open: dlopen would take another library with the same number for this one.
    opened = f"/proc/self/fd/{number}"
    return ctypes.CDLL(opened if os.path.exists(opened) else str(path))


def load_from(folder: pathlib.Path, *, use: str = "this processor, once") -> ctypes.CDLL:
    """Loads the library from `folder`, compiling it first, with a message that names its `use`, if it is missing or
    damaged.

    Raises OSError if it can't be compiled or loaded, or if another user could have written it: the folder and the file
    must belong to this user and not be writable by others.
    """
    folder = folder.resolve()
    if not _only_own(folder.stat()):
        raise PermissionError(f"{folder} must belong to this user and not be writable by others")
    sources = (path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]")))
    parts = "\n".join((*sources, *FLAGS, *map(_version, ("jax", "jaxlib", "ziglang")), _processor()))
    key = hashlib.sha256(parts.encode()).hexdigest()[:32]
    for path in folder.glob(f"kernels-{key}-*.so"):
        with contextlib.suppress(FileNotFoundError):  # Another process has removed it.
            if library := _checked(path):
                return library
            path.unlink()
    path = _compile(folder, key, use)
    if library := _checked(path):
        return library
    raise PermissionError(f"{path} was changed after its compilation")


def _is_private(folder: pathlib.Path) -> bool:
    """Creates the folder if it is missing. Returns whether this user, and no other, can write to it: code in it will be
    executed."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _only_own(folder.stat()) and os.access(folder, os.W_OK)
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
