"""Registers the C kernels with XLA, calls them through JAX's foreign function interface, and disables them."""

import functools
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from models.cpu_kernels import build

# The exported functions of the library; they are registered with XLA under PREFIX + name.
PREFIX = "nutshell_"
NAMES = (
    "affine",
    "affine_gradient",
    "affine_relu_gradient",
    "batch_moments",
    "batch_norm",
    "batch_norm_gradient",
    "batch_norm_sums",
    "convolution",
    "kernel_gradient",
    "max_pool",
    "max_pool_gradient",
    "product",
    "product_gradient",
    "product_kernel_gradient",
    "update_running_stats",
)


@functools.cache
def available() -> bool:
    """Returns whether the kernels are available. The first call compiles, loads and registers them; if that fails, it
    prints the reason to standard error."""
    try:
        library = build.load()
    except OSError as error:
        print(f"CPU kernels unavailable ({error}); falling back to XLA", file=sys.stderr)
        return False
    for name in NAMES:
        jax.ffi.register_ffi_target(PREFIX + name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


_disabled = False


def disable() -> None:
    """Makes all operations of this process use XLA; the kernels are then not even compiled. Call it before tracing:
    programs traced earlier keep the kernels."""
    global _disabled
    _disabled = True


def use_cpu_kernels(*operands) -> bool:
    """Returns whether the C kernels are used for these operands: float32 on CPUs, if the kernels are available and not
    disabled."""
    fits = all(x.dtype == np.float32 for x in operands) and jax.default_backend() == "cpu"
    return fits and not _disabled and available()


def call(name: str, shape, *operands, aliases=None, **attributes):
    """Calls a kernel.

    Args:
      name: One of `NAMES`.
      shape: Shape of the result, or a list of shapes if there are several.
      *operands: float32 arrays.
      aliases: Index of an operand -> index of the result that may reuse its memory.
      **attributes: The kernel's static parameters, numpy scalars or arrays.

    Returns:
      A float32 array, or a list of them.
    """
    if name not in NAMES:
        raise ValueError(f"unknown kernel {name!r}; known: {', '.join(NAMES)}")
    # Under shard_map, the results vary over every mesh axis over which an operand varies.
    first = max(map(jax.typeof, operands), key=lambda kind: len(kind.manual_axis_type.varying))
    mesh = first.sharding.mesh
    sharding = None if mesh.empty else NamedSharding(mesh, P())

    def result(shape):
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding, manual_axis_type=first.manual_axis_type)

    results = [result(one) for one in shape] if isinstance(shape, list) else result(shape)
    kernel = jax.ffi.ffi_call(PREFIX + name, results, vmap_method="sequential", input_output_aliases=aliases)
    return kernel(*operands, **attributes)


def window_attribute(strides, padding) -> np.ndarray:
    """Returns a convolution's attribute `window`: the strides and the padding above and to the left. The padding below
    and to the right follows from the shapes."""
    return np.array([*strides, padding[0][0], padding[1][0]], np.int64)
