"""Convolution, transposed convolution, matrix products, batch norm, dense blocks and repeated blocks for CPUs. This is
the package's only public module.

For float32 on CPUs, these operations use the C kernels in csrc/. On GPUs and TPUs, for other types, and if the kernels
can't be compiled, they use XLA. The choice is made here, and for convolutions in convolution.py.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels import batch_norm as kernels
from models.cpu_kernels.batch_norm import leaky_relu
from models.cpu_kernels.convolution import conv_general_dilated, conv_transpose
from models.cpu_kernels.dense_block import Composite, FusedDenseBlock, affine_relu_convolution
from models.cpu_kernels.ffi import PREFIX, disable, use_cpu_kernels
from models.cpu_kernels.pooling import max_pool
from models.cpu_kernels.product import product

__all__ = [
    "PREFIX",
    "Composite",
    "affine_relu_convolution",
    "batch_norm",
    "conv_general_dilated",
    "conv_transpose",
    "dense_block",
    "disable",
    "dot_general",
    "is_batch_norm",
    "leaky_relu",
    "max_pool",
    "repeated",
    "use_cpu_kernels",
]

# `repeated` uses a loop for at least this many equal blocks. The loop copies parameters but compiles only one block.
MANY_BLOCKS = 11


# --- Matrix products ---


def _use_product_kernels(x, w) -> bool:
    """Returns whether the C kernels are used for the product of [B, I] and [I, O]: at sizes where they were measured to
    be faster than XLA."""
    fits = x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0]
    return fits and use_cpu_kernels(x, w) and 16 <= len(x) <= 4096 and min(w.shape) >= 8 and w.size >= 4096


def dot_general(x, kernel, dimensions, **rest):
    """lax.dot_general; uses the C kernels for the product [B, I] [I, O] of a dense layer if it is large enough (B at
    least 16) and `rest` specifies no precision or result type."""
    plain = all(value is None for value in rest.values()) and dimensions == (((1,), (0,)), ((), ()))
    if plain and _use_product_kernels(x, kernel):
        return product(x, kernel)
    return lax.dot_general(x, kernel, dimensions, **rest)


# --- Batch norm ---


def batch_norm(
    norm: nn.BatchNorm,
    x,
    *,
    use_running_average: bool | None = None,
    shortcut=None,
    slope: float = 1.0,
):
    """f(norm(x) + shortcut) [..., C], where f(v) is v where v > 0 and slope v elsewhere.

    Must be called in a method of the network that has the layer `norm`.

    Args:
      norm: Batch norm over all axes except the last.
      x: Feature maps [..., C].
      use_running_average: As in flax.linen.BatchNorm.
      shortcut: Added before f, of the same shape as x; None for no shortcut.
      slope: Negative slope of f; 0 is ReLU, 1 is the identity.
    """
    average = nn.merge_param("use_running_average", norm.use_running_average, use_running_average)
    plain = norm.use_scale and norm.use_bias and norm.axis == -1 and norm.dtype is norm.axis_index_groups is None
    # With a shortcut, the kernel takes the sign of v from f(v).
    plain = plain and norm.use_fast_variance and (shortcut is None or slope >= 0)
    operands = [x, *([] if shortcut is None else [shortcut]), *jax.tree.leaves(norm.variables)]
    if plain and not average and not norm.is_initializing() and x.size and use_cpu_kernels(*operands):
        parameters, running = norm.variables["params"], norm.variables["batch_stats"]
        rows_NC = x.reshape(-1, x.shape[-1])
        more_NC = None if shortcut is None else shortcut.reshape(rows_NC.shape)
        arguments = (rows_NC, parameters["scale"], parameters["bias"], more_NC)
        y, moments = kernels.batch_norm(*arguments, norm.axis_name, norm.epsilon, slope)
        moments = lax.stop_gradient(moments)
        for name, value in (("mean", moments[0]), ("var", kernels.variance(moments))):
            norm.put_variable("batch_stats", name, norm.momentum * running[name] + (1 - norm.momentum) * value)
        return y.reshape(x.shape)
    y = norm(x, use_running_average=use_running_average)
    y = y if shortcut is None else y + shortcut
    return y if slope == 1 else leaky_relu(y, slope)


def is_batch_norm(jaxpr) -> bool:
    """Returns whether the `jaxpr` of a custom_vjp function calls the batch norm kernel."""
    return any(equation.params.get("target_name") == f"{PREFIX}batch_norm" for equation in jaxpr.eqns)


# --- Blocks ---


def layer_by_layer(x, layers: Sequence[Sequence[Composite]], after: Composite, *, relu: Callable):
    """`dense_block`, computed one layer at a time."""

    def composite(x, part: Composite):
        y = relu(part.norm(x))
        y = y if part.conv is None else part.conv(y)
        return y if part.drop is None else part.drop(y)

    for layer in layers:
        x = jnp.concatenate([x, functools.reduce(composite, layer, x)], axis=-1)
    return composite(x, after)


def dense_block(x, layers: Sequence[Sequence[Composite]], after: Composite, *, relu: Callable, fuse: bool = True):
    """Applies a dense block (Huang et al. 2016, "Densely connected convolutional networks") and a composite function.

    Each layer is applied to the concatenation of the block's input and the outputs of all preceding layers; `after` is
    applied to the concatenation of all. Must be called in a method of the network that has the layers.

    Args:
      x: Feature maps [B, H, W, C].
      layers: The composite functions of each layer, one after the other.
      after: The composite function after the block: in a transition, or before global pooling.
      relu: The ReLU function.
      fuse: Whether the kernels may be used. They compute the gradient of ReLU, not of a guided ReLU.

    Returns:
      Feature maps [B, H, W, O]; if `after` has no convolution, O is the number of concatenated channels.
    """
    parts = [part for layer in layers for part in layer] + [after]
    training = not (after.norm.use_running_average or after.norm.is_initializing())
    if fuse and training and x.size and not any(part.drop for part in parts):
        modules = [module for part in parts for module in (part.norm, part.conv) if module is not None]
        if use_cpu_kernels(x, *jax.tree.leaves([module.variables for module in modules])):
            return FusedDenseBlock(layers, after, relu)(x)
    return layer_by_layer(x, layers, after, relu=relu)


def repeated(blocks: Sequence[nn.Module], x, train: bool):
    """Applies equal residual blocks, modules (x, train) -> x of the same shape, one after the other.

    In training on CPUs, many blocks run in a loop (lax.scan), so that only one block is compiled. Their parameters are
    stacked inside the compiled function; the variables still have one entry per block. Must be called in a method of
    the network that has the blocks.
    """
    if len(blocks) < MANY_BLOCKS or not train or blocks[0].is_initializing() or not use_cpu_kernels(x):
        for block in blocks:
            x = block(x, train)
        return x
    single = blocks[0].clone(parent=None, name=None)

    def one(x, variables):
        x, changed = single.apply(variables, x, train, mutable=["batch_stats"])
        return x, changed["batch_stats"]

    def stack(*leaves):
        return jnp.stack(leaves)

    x, updated = lax.scan(one, x, jax.tree.map(stack, *({**block.variables} for block in blocks)))
    for i, block in enumerate(blocks):
        for name, statistics in jax.tree.map(lambda leaf, i=i: leaf[i], updated).items():
            block.put_variable("batch_stats", name, statistics)
    return x
