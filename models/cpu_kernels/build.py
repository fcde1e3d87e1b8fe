"""The C kernels of models/cpu_kernels/csrc, compiled once for this machine's processor and registered with XLA.

The compiler is the pip package ziglang, so no other is needed. The library is kept in the folder of jax's compilation
cache where one is set, under a name made of all that it depends on.
"""

import contextlib
import ctypes
import functools
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
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

SOURCE = pathlib.Path(__file__).with_name("csrc") / "convolution.c"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-shared", "-fPIC")
NAMES = (
    "affine",
    "affine_gradient",
    "convolution",
    "kernel_gradient",
    "moved",
    "normalised_gradient",
    "product",
    "product_gradient",
    "product_kernel_gradient",
)


def _processor() -> str:
    """What tells one processor's instructions from another's."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _compile(folder: pathlib.Path, key: str) -> pathlib.Path:
    """The library, compiled into `folder`, whole or not at all. Raises OSError."""
    for left in folder.glob(".kernels*"):  # Of a process that was killed an hour ago or more.
        with contextlib.suppress(FileNotFoundError):  # Another process has finished with it.
            if time.time() - left.stat().st_mtime > 3600:
                shutil.rmtree(left, ignore_errors=True)
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".kernels") as place:
        made = pathlib.Path(place, "kernels.so")
        command = [sys.executable, "-P", "-m", "ziglang", "cc", *FLAGS, native, "-I", jax.ffi.include_dir()]
        caches = {"ZIG_GLOBAL_CACHE_DIR": os.environ.get("ZIG_GLOBAL_CACHE_DIR", place), "ZIG_LOCAL_CACHE_DIR": place}
        done = subprocess.run(
            [*command, "-o", str(made), str(SOURCE)],
            env=os.environ | caches,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise OSError(next((line for line in lines if " error: " in line), lines[-1]))
        return made.replace(folder / f"kernels-{key}-{_digest(made)}.so")


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _load(folder: pathlib.Path) -> ctypes.CDLL:
    """The library from `folder`, compiled if it is not there whole. Raises OSError."""
    sources = (path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]")))
    parts = "\n".join((*sources, *FLAGS, jax.__version__, _processor()))
    key = hashlib.sha256(parts.encode()).hexdigest()[:32]
    for path in folder.glob(f"kernels-{key}-*.so"):
        if path.stem.endswith(_digest(path)):  # Running damaged code would end the process without a word.
            return ctypes.CDLL(str(path))
        path.unlink()
    return ctypes.CDLL(str(_compile(folder, key)))


@functools.cache
def ready() -> bool:
    """True where the kernels can be used; a line on standard error says if they can't."""
    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    try:
        if kept:
            library = _load(pathlib.Path(kept))
        else:
            with tempfile.TemporaryDirectory() as folder:
                library = _load(pathlib.Path(folder))
    except OSError as error:
        print(f"no kernels of ours, XLA's slower ones instead: {error}", file=sys.stderr)
        return False
    for name in NAMES:
        jax.ffi.register_ffi_target(f"nutshell_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


def call(name: str, shape, *operands, aliases=None, **attributes):
    """Kernel `name` of float32 arrays, for a result of `shape`, or of each of a list; `aliases` are operands whose
    memory a result may take."""
    first = max(map(jax.typeof, operands), key=lambda kind: len(kind.manual_axis_type.varying))
    mesh = first.sharding.mesh  # Under shard_map the results vary over devices as some operand does.
    sharding = None if mesh.empty else NamedSharding(mesh, P())

    def result(shape):
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding, manual_axis_type=first.manual_axis_type)

    like = [result(one) for one in shape] if isinstance(shape, list) else result(shape)
    made = jax.ffi.ffi_call(f"nutshell_{name}", like, vmap_method="sequential", input_output_aliases=aliases)
    return made(*operands, **attributes)


def window(strides, padding) -> np.ndarray:
    """The attribute of a convolution with `padding`, two pairs; their second numbers follow from the sizes."""
    return np.array([*strides, padding[0][0], padding[1][0]], np.int64)
