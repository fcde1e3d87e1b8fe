"""Convolution, transposed convolution, matrix products, batch norm, dense blocks and repeated blocks for CPUs. This is
the package's only public module, and the only module that chooses between the C kernels and XLA.

For float32 on CPUs, these operations use the C kernels in csrc/. On GPUs and TPUs, for other types, and if the kernels
can't be compiled, they use XLA.

On CPUs, XLA's convolution is up to twice as slow as a direct convolution in vector registers. Its kernel gradient,
which uses the batch dimension as the channels, is two to ten times as slow. Its matrix products are 10 % slower, and
their gradients up to 50 % slower.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels import batch_norm as kernels
from models.cpu_kernels import ffi
from models.cpu_kernels.batch_norm import leaky_relu
from models.cpu_kernels.dense_block import Composite, FusedDenseBlock, affine_relu_convolution
from models.cpu_kernels.ffi import PREFIX
from models.cpu_kernels.pooling import max_pool

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


_disabled = False


def disable() -> None:
    """Makes all operations of this process use XLA; the kernels are then not even compiled. Call it before tracing:
    programs traced earlier keep the kernels."""
    global _disabled
    _disabled = True


def use_cpu_kernels(*operands) -> bool:
    """Returns whether the C kernels are used for these operands: float32 on CPUs, if the kernels are available and not
    disabled."""
    fits = all(x.dtype == jnp.float32 for x in operands) and jax.default_backend() == "cpu"
    return fits and not _disabled and ffi.available()


# --- Convolution ---

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _xla_conv(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _conv_forward(x, kernel, strides, padding):
    if use_cpu_kernels(x, kernel):  # Compute the result's shape here; tracing XLA's convolution is slower.
        sides = zip(x.shape[1:3], kernel.shape, strides, padding, strict=False)
        rows, columns = ((n + low + high - window) // stride + 1 for n, window, stride, (low, high) in sides)
        if min(x.size, kernel.size, rows, columns) > 0 and x.shape[3] == kernel.shape[2]:
            shape = (len(x), rows, columns, kernel.shape[3])
            return ffi.call("convolution", shape, x, kernel, window=ffi.window_attribute(strides, padding))
    return _xla_conv(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, strides, padding):
    return _conv_forward(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _kernel_gradient(x, gradient, kernel, strides, padding):
    """Returns the gradient of `kernel`. Only the shape of `kernel` is used."""
    if use_cpu_kernels(x, gradient) and min(x.size, gradient.size, kernel.size):
        window = ffi.window_attribute(strides, padding)
        return ffi.call("kernel_gradient", kernel.shape, x, gradient, window=window)
    return jax.vjp(lambda kernel: _xla_conv(x, kernel, strides, padding), kernel)[1](gradient)[0]


def _kernel_gradient_backward(strides, padding, saved, cotangent):
    # The kernel gradient is bilinear in x and `gradient`, as the convolution is in x and the kernel.
    x, gradient = saved
    x_gradient = conv_transpose(gradient, _swap_channels(cotangent), strides, padding, x.shape[1:3])
    return x_gradient, _conv(x, cotangent, strides, padding), jnp.zeros_like(cotangent)


_kernel_gradient.defvjp(
    lambda x, gradient, kernel, *static: (_kernel_gradient(x, gradient, kernel, *static), (x, gradient)),
    _kernel_gradient_backward,
)


def _conv_backward(strides, padding, saved, gradient):
    x, kernel = saved
    x_gradient = conv_transpose(gradient, _swap_channels(kernel), strides, padding, x.shape[1:3])
    return x_gradient, _kernel_gradient(x, gradient, kernel, strides, padding)


_conv.defvjp(lambda x, kernel, *static: (_conv(x, kernel, *static), (x, kernel)), _conv_backward)


def conv_general_dilated(x, kernel, strides, padding, *, dimension_numbers=LAYOUT, **rest):
    """lax.conv_general_dilated for images [B, H, W, C] and kernels [h, w, C, O]. Other layouts and ranks, grouped and
    dilated convolutions, and calls with a precision, a result type or a sharding use XLA.

    Args:
      x: Images [B, H, W, C].
      kernel: [h, w, C, O].
      strides: (vertical, horizontal).
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).
      dimension_numbers: As in lax.conv_general_dilated; the default is NHWC, HWIO, NHWC.
      **rest: The other arguments of lax.conv_general_dilated.
    """
    if not (x.ndim == kernel.ndim == 4 and len(strides) == 2 and _is_plain(x, kernel, dimension_numbers, **rest)):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimension_numbers, **rest)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def _is_plain(
    x,
    kernel,
    dimension_numbers,
    *,
    lhs_dilation=None,
    rhs_dilation=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
) -> bool:
    """Returns whether the layout is LAYOUT and all other arguments of lax.conv_general_dilated have their defaults."""
    layouts = [lax.conv_dimension_numbers(x.shape, kernel.shape, layout) for layout in (dimension_numbers, LAYOUT)]
    dilations = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))}
    return (
        layouts[0] == layouts[1]
        and dilations == {1}
        and feature_group_count == batch_group_count == 1
        and precision is preferred_element_type is out_sharding is None
    )


# --- Transposed convolution ---


def _swap_channels(kernel):
    """[h, w, C, O] -> [h, w, O, C]."""
    return kernel.transpose(0, 1, 3, 2)


def _conv_transpose_dilated(x_BhwC, kernel, strides, padding, size):
    """`conv_transpose` with XLA: a convolution of the input dilated by the strides."""
    low = [window - 1 - pads[0] for window, pads in zip(kernel.shape, padding, strict=False)]
    dilated = [(n - 1) * stride + 1 for n, stride in zip(x_BhwC.shape[1:3], strides, strict=True)]
    pads = [(b, s + w - 1 - n - b) for b, s, w, n in zip(low, size, kernel.shape, dilated, strict=False)]
    return lax.conv_general_dilated(
        x_BhwC, kernel[::-1, ::-1], (1, 1), pads, lhs_dilation=strides, dimension_numbers=LAYOUT
    )


def _conv_transpose_subpixel(x_BhwC, kernel, strides, padding, size):
    """`conv_transpose` as a sub-pixel convolution: a convolution with stride 1 computes the stride x stride outputs of
    each input pixel as channels, which are then rearranged. No zeros are inserted between the inputs (Shi et al. 2016,
    "Is the deconvolution layer the same as a convolutional layer?")."""
    (down, right), (_, _, channels, outputs) = strides, kernel.shape
    rows, columns = (-(-window // stride) for window, stride in zip(kernel.shape, strides, strict=False))
    more = ((0, rows * down - kernel.shape[0]), (0, columns * right - kernel.shape[1]), (0, 0), (0, 0))
    split = jnp.pad(kernel, more).reshape(rows, down, columns, right, channels, outputs)[::-1, :, ::-1]
    subpixel = split.transpose(0, 2, 4, 1, 3, 5).reshape(rows, columns, channels, -1)
    y = _conv_forward(x_BhwC, subpixel, (1, 1), ((rows - 1, rows - 1), (columns - 1, columns - 1)))
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, down, right, outputs).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, height * down, width * right, outputs)
    crop = [(-pads[0], pads[0] + s - n, 0) for pads, s, n in zip(padding, size, y.shape[1:3], strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *crop, (0, 0, 0)))


def _conv_transpose(x_BhwC, kernel, strides, padding, size):
    """`conv_transpose` in the fastest form for the platform."""
    if strides == (1, 1):  # A convolution with the rotated kernel: equation 2 of train/backpropagation.py.
        sides = zip(padding, kernel.shape, x_BhwC.shape[1:3], size, strict=False)
        pads = tuple((w - 1 - low, s + low - n) for (low, _), w, n, s in sides)
        return _conv_forward(x_BhwC, kernel[::-1, ::-1], strides, pads)
    form = _conv_transpose_subpixel if use_cpu_kernels(x_BhwC, kernel) else _conv_transpose_dilated
    return form(x_BhwC, kernel, strides, padding, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv_transpose(x_BhwC, kernel, strides, padding, size):
    """Transposed convolution with PyTorch's padding convention: pixel i of the input adds x[i] kernel[k] to pixel
    i * stride - padding + k of the output.

    It is the input gradient of the strided convolution with the kernel [window, window, O, C]
    (Zeiler et al. 2010, "Deconvolutional networks"; Dumoulin & Visin 2016, "A guide to convolution arithmetic",
    section 4).

    Args:
      x_BhwC: Images.
      kernel: [window, window, C, O].
      strides: (vertical, horizontal).
      padding: ((top, bottom), (left, right)) of that strided convolution; `size` determines bottom and right.
      size: (height, width) of the result.

    Returns:
      Images [B, height, width, O].
    """
    return _conv_transpose(x_BhwC, kernel, strides, padding, size)


def _conv_transpose_backward(strides, padding, size, saved, gradient):
    x, kernel = saved
    pads = tuple(
        (low, (n - 1) * stride + window - s - low)
        for (low, _), n, stride, window, s in zip(padding, x.shape[1:3], strides, kernel.shape, size, strict=False)
    )
    swapped = _swap_channels(kernel)
    kernel_gradient = _kernel_gradient(gradient, x, swapped, strides, pads)
    return _conv(gradient, swapped, strides, pads), _swap_channels(kernel_gradient)


conv_transpose.defvjp(
    lambda x, kernel, *static: (conv_transpose(x, kernel, *static), (x, kernel)), _conv_transpose_backward
)


# --- Matrix products ---


def _use_product_kernels(x, w) -> bool:
    """Returns whether the C kernels are used for the product of [B, I] and [I, O]: at sizes where they were measured to
    be faster than XLA."""
    fits = x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0]
    return fits and use_cpu_kernels(x, w) and 16 <= len(x) <= 4096 and min(w.shape) >= 8 and w.size >= 4096


@jax.custom_vjp
def _product(x_BI, w_IO):
    if w_IO.shape[1] < 64:  # Narrower than a panel of the kernel: only its gradients are faster.
        return x_BI @ w_IO
    return ffi.call("product", (len(x_BI), w_IO.shape[1]), x_BI, w_IO)


def _product_forward(x, w):
    return _product(x.value, w.value), (x.value, w.value, () if x.perturbed else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product_gradients(x, w, gradient_BO, wait: bool):
    """Returns the gradients of x and w. With `wait`, the gradient of w is computed after the last use of w, so that the
    parameter update can reuse the memory of w; the kernel has an extra operand for this, which it does not read."""
    x_gradient = ffi.call("product_gradient", x.shape, w, gradient_BO)
    after = (x_gradient,) if wait else ()
    return x_gradient, ffi.call("product_kernel_gradient", w.shape, x, gradient_BO, *after)


def _product_gradients_backward(wait, saved, cotangents):
    (x, w, gradient_BO), (x_bar, w_bar) = saved, cotangents
    return gradient_BO @ w_bar.T, x_bar.T @ gradient_BO, x_bar @ w + x @ w_bar


_product_gradients.defvjp(
    lambda x, w, gradient_BO, wait: (_product_gradients(x, w, gradient_BO, wait), (x, w, gradient_BO)),
    _product_gradients_backward,
)


def _product_backward(saved, gradient_BO):
    x, w, of_input = saved
    if not isinstance(gradient_BO, jax.Array):  # A symbolic zero.
        gradient_BO = jnp.zeros(gradient_BO.shape, gradient_BO.dtype)
    return _product_gradients(x, w, gradient_BO, of_input is not None)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


def dot_general(x, kernel, dimensions, **rest):
    """lax.dot_general; uses the C kernels for the product [B, I] [I, O] of a dense layer if it is large enough (B at
    least 16) and `rest` specifies no precision or result type."""
    plain = all(value is None for value in rest.values()) and dimensions == (((1,), (0,)), ((), ()))
    if plain and _use_product_kernels(x, kernel):
        return _product(x, kernel)
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
    operands = (x,) if shortcut is None else (x, shortcut)
    plain = norm.use_scale and norm.use_bias and norm.axis == -1 and norm.dtype is norm.axis_index_groups is None
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
    if fuse and training and not any(part.drop for part in parts) and use_cpu_kernels(x):
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
