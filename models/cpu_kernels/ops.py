"""Convolution and deconvolution of NHWC images and the products of dense layers: on CPUs by the C kernels of
models.cpu_kernels.build, on GPUs and TPUs, and for other types than float32, by XLA.

XLA's convolution on a CPU is up to twice as slow as a direct one in vector registers, and its kernel gradient, which
puts the batch in the place of the channels, two to ten times. Its products are slower by a tenth, those of gradients
by up to a half.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels import build


def xla_convolution(x, kernel, strides, padding):
    """XLA's own, on every platform."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def on_cpu(*operands) -> bool:
    """True where the kernels of models.cpu_kernels.build take the operands."""
    return all(x.dtype == jnp.float32 for x in operands) and jax.default_backend() == "cpu" and build.ready()


def _forward(x, kernel, strides, padding):
    if on_cpu(x, kernel):  # Their results' shapes are computed here: to trace XLA's form for them takes longer.
        sides = zip(x.shape[1:3], kernel.shape, strides, padding, strict=False)
        rows, columns = ((n + low + high - window) // stride + 1 for n, window, stride, (low, high) in sides)
        if min(x.size, kernel.size, rows, columns) > 0 and x.shape[3] == kernel.shape[2]:
            shape = (len(x), rows, columns, kernel.shape[3])
            return build.call("convolution", shape, x, kernel, window=build.window(strides, padding))
    return xla_convolution(x, kernel, strides, padding)


_conv = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _kernel_gradient(x, gradient, kernel, strides, padding):
    """The kernel's gradient; of `kernel` the shape alone matters."""
    if on_cpu(x, gradient) and min(x.size, gradient.size, kernel.size):
        return build.call("kernel_gradient", kernel.shape, x, gradient, window=build.window(strides, padding))
    return jax.vjp(lambda kernel: xla_convolution(x, kernel, strides, padding), kernel)[1](gradient)[0]


def _conv_backward(strides, padding, saved, gradient):
    x, kernel = saved
    x_gradient = _spread(gradient, _exchanged(kernel), strides, padding, x.shape[1:3])
    return x_gradient, _kernel_gradient(x, gradient, kernel, strides, padding)


_conv.defvjp(lambda x, kernel, *static: (_conv(x, kernel, *static), (x, kernel)), _conv_backward)


def _exchanged(kernel):
    """[h, w, C, O] as [h, w, O, C]."""
    return kernel.transpose(0, 1, 3, 2)


def _xla_spread(x_BhwC, kernel, strides, padding, size):
    """`deconvolution` as XLA has it: a convolution of the input with zeros between its pixels."""
    low = [window - 1 - pads[0] for window, pads in zip(kernel.shape, padding, strict=False)]
    inside = [(n - 1) * stride + 1 for n, stride in zip(x_BhwC.shape[1:3], strides, strict=True)]
    edges = [(b, s + w - 1 - i - b) for b, s, w, i in zip(low, size, kernel.shape, inside, strict=False)]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x_BhwC, kernel[::-1, ::-1], (1, 1), edges, lhs_dilation=strides, dimension_numbers=layout
    )


def _spread_together(x_BhwC, kernel, strides, padding, size):
    """`deconvolution` without the zeros: one convolution gives all the outputs that belong to one place of the input
    as channels (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?")."""
    (down, right), (_, _, channels, outputs) = strides, kernel.shape
    rows, columns = (-(-window // stride) for window, stride in zip(kernel.shape, strides, strict=False))
    more = ((0, rows * down - kernel.shape[0]), (0, columns * right - kernel.shape[1]), (0, 0), (0, 0))
    split = jnp.pad(kernel, more).reshape(rows, down, columns, right, channels, outputs)[::-1, :, ::-1]
    together = split.transpose(0, 2, 4, 1, 3, 5).reshape(rows, columns, channels, -1)
    y = _forward(x_BhwC, together, (1, 1), ((rows - 1, rows - 1), (columns - 1, columns - 1)))
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, down, right, outputs).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, height * down, width * right, outputs)
    edges = [(-pads[0], pads[0] + s - n, 0) for pads, s, n in zip(padding, size, y.shape[1:3], strict=True)]
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def _spread(x_BhwC, kernel, strides, padding, size):
    """`deconvolution` in the form that suits the platform."""
    if strides == (1, 1):  # The gradient's convolution with the turned kernel: the lecture's second equation.
        pads = zip(padding, kernel.shape, x_BhwC.shape[1:3], size, strict=False)
        edges = tuple((w - 1 - low, s + low - n) for (low, _), w, n, s in pads)
        return _forward(x_BhwC, kernel[::-1, ::-1], strides, edges)
    spread = _spread_together if on_cpu(x_BhwC, kernel) else _xla_spread
    return spread(x_BhwC, kernel, strides, padding, size)


def spread(gradient_BHWO, kernel, *, padding, size):
    """The gradient of the input, [B, *size, C], of a convolution with stride 1."""
    return _spread(gradient_BHWO, _exchanged(kernel), (1, 1), padding, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def deconvolution(x_BhwC, kernel, strides, padding, size):
    """Transposed convolution of [B, h, w, C] by `kernel` [window, window, C, O] -> [B, *size, O], as torch has it: the
    input's pixel i adds x[i] kernel[k] to the output's pixel i * stride - padding + k. It is the gradient, by its
    input, of the strided convolution with the kernel [window, window, O, C] (Zeiler et al. 2010, "Deconvolutional
    networks"; Dumoulin & Visin 2016, "A guide to convolution arithmetic", section 4).

    `strides` and `size` are pairs, `padding` two pairs, of which the second numbers follow from the size.
    """
    return _spread(x_BhwC, kernel, strides, padding, size)


def _deconvolution_backward(strides, padding, size, saved, gradient):
    x, kernel = saved
    edges = tuple(
        (low, (n - 1) * stride + window - s - low)
        for (low, _), n, stride, window, s in zip(padding, x.shape[1:3], strides, kernel.shape, size, strict=False)
    )
    back = _exchanged(kernel)
    kernel_gradient = _kernel_gradient(gradient, x, back, strides, edges)
    return _forward(gradient, back, strides, edges), _exchanged(kernel_gradient)


deconvolution.defvjp(lambda x, kernel, *static: (_spread(x, kernel, *static), (x, kernel)), _deconvolution_backward)


def conv_general_dilated(x, kernel, strides, padding, *, feature_group_count: int = 1, **rest):
    """lax.conv_general_dilated for NHWC, by this file. Grouped and dilated convolutions are left to XLA."""
    plain = feature_group_count == 1 and all(
        set(rest.get(f"{side}_dilation") or (1,)) == {1} for side in ("lhs", "rhs")
    )
    if not plain or kernel.ndim != 4:
        return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **rest)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv(x, kernel, tuple(strides), tuple(map(tuple, padding)))


def _heavy(x, w) -> bool:
    """True where the native products of [B, I] and [I, O] are the faster ones, as measured."""
    fits = x.ndim == w.ndim == 2 and x.shape[1] == w.shape[0]
    return fits and 16 <= len(x) <= 4096 and min(w.shape) >= 8 and w.size >= 4096 and on_cpu(x, w)


@jax.custom_vjp
def _dense(x_BI, w_IO):
    if w_IO.shape[1] < 64:  # Less than a panel of columns: the gradients alone are faster.
        return x_BI @ w_IO
    return build.call("product", (len(x_BI), w_IO.shape[1]), x_BI, w_IO)


def _dense_forward(x, w):
    return _dense(x.value, w.value), (x.value, w.value, () if x.perturbed else None)


def _dense_backward(saved, gradient_BO):
    x, w, of_input = saved
    if not isinstance(gradient_BO, jax.Array):  # A symbolic zero.
        gradient_BO = jnp.zeros(gradient_BO.shape, gradient_BO.dtype)
    x_gradient = build.call("product_gradient", x.shape, w, gradient_BO)
    # An operand that is not read: w's gradient comes after the last use of w, whose memory the update can take then.
    after = () if of_input is None else (x_gradient,)
    return x_gradient, build.call("product_kernel_gradient", w.shape, x, gradient_BO, *after)


_dense.defvjp(_dense_forward, _dense_backward, symbolic_zeros=True)


def dot_general(x, kernel, dimensions, **rest):
    """lax.dot_general; a dense layer's product of a batch of 16 and more by this file, unless `rest` asks for precision
    or a type."""
    plain = all(value is None for value in rest.values()) and dimensions == (((1,), (0,)), ((), ()))
    if plain and _heavy(x, kernel):
        return _dense(x, kernel)
    return lax.dot_general(x, kernel, dimensions, **rest)
