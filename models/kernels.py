"""Convolution of NHWC images with hand-written forms for CPUs; GPUs and TPUs keep XLA's own.

XLA's kernel gradient puts the batch in the place of the channels, which a CPU computes at a tenth to a half of the
speed of a matrix product. Here the image's patches are laid out as rows, piece by piece, so that they stay in the
caches, and the gradient is the sum of the pieces' matrix products.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Bytes of the patches of one piece.
PIECE_BYTES = 2 << 20
# Positions of an image's output up to which the convolution itself is one matrix product on a CPU.
SMALL = 9


def _xla_conv(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _in_one_product(x_BHWC, kernel, strides, padding):
    """The convolution as one product of the image's patches and the kernel."""
    x_BHWC = _pad(x_BHWC, padding)
    height, width = (
        (size - window) // stride + 1
        for size, window, stride in zip(x_BHWC.shape[1:3], kernel.shape[:2], strides, strict=True)
    )
    patches = _patches(x_BHWC, kernel.shape[:2], strides, (height, width))
    found = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return found.reshape(len(x_BHWC), height, width, -1)


def _forward(x, kernel, strides, padding):
    """XLA's convolution; on a CPU, where it takes twenty times as long for images of two pixels, one product there."""
    sizes = (size + sum(pads) for size, pads in zip(x.shape[1:3], padding, strict=True))
    outputs = math.prod(
        (size - window) // stride + 1 for size, window, stride in zip(sizes, kernel.shape, strides, strict=False)
    )
    if outputs > SMALL:
        return _xla_conv(x, kernel, strides, padding)
    small, plain = (functools.partial(f, strides=strides, padding=padding) for f in (_in_one_product, _xla_conv))
    return lax.platform_dependent(x, kernel, cpu=small, default=plain)


_conv = jax.custom_vjp(_forward, nondiff_argnums=(2, 3))


def _kernel_gradient(x, gradient, kernel, strides, padding):
    """The kernel's gradient in the form that suits the platform; of `kernel` the shape alone matters."""

    def xla(x, gradient):
        return jax.vjp(lambda kernel: _xla_conv(x, kernel, strides, padding), kernel)[1](gradient)[0]

    in_pieces = functools.partial(kernel_gradient, window=kernel.shape[:2], strides=strides, padding=padding)
    return lax.platform_dependent(x, gradient, cpu=in_pieces, default=xla)


def _conv_backward(strides, padding, saved, gradient):
    x, kernel = saved
    x_gradient = _spread(gradient, _exchanged(kernel), strides, padding, x.shape[1:3])
    return x_gradient, _kernel_gradient(x, gradient, kernel, strides, padding)


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
    forms = (functools.partial(f, strides=strides, padding=padding, size=size) for f in (_spread_together, _xla_spread))
    together, plain = forms
    return lax.platform_dependent(x_BhwC, kernel, cpu=together, default=plain)


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


def _turned(kernel):
    """[h, w, C, O] as [h, w, O, C], turned by half a circle."""
    return _exchanged(kernel[::-1, ::-1])


def _swapped(window, padding):
    """The padding with which the output's gradient is convolved."""
    return tuple((size - 1 - low, size - 1 - high) for size, (low, high) in zip(window, padding, strict=False))


def _pad(x_BHWC, padding):
    return lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)))


def _patches(x_BHWC, window, strides, size):
    """[B, h, w, window x C]: what each of the output's h x w positions sees of an image that is padded already."""
    down, right = ((n - 1) * stride + 1 for n, stride in zip(size, strides, strict=True))
    views = [
        x_BHWC[:, i : i + down : strides[0], j : j + right : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]
    return jnp.concatenate(views, -1)


_conv.defvjp(lambda x, kernel, *static: (_conv(x, kernel, *static), (x, kernel)), _conv_backward)


def _largest_divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(1, limit))


def kernel_gradient(x_BHWC, gradient_BHWO, *, window: tuple[int, int], strides, padding):
    """Gradient [*window, C, O] of a convolution's kernel from its input and its output's gradient: the correlation of
    both (the lecture's third equation of backpropagation, with shared weights).

    Of the two the one with fewer channels is laid out in patches.
    """
    channels, outputs = x_BHWC.shape[-1], gradient_BHWO.shape[-1]
    if outputs < channels and tuple(strides) == (1, 1):
        swapped = _swapped(window, padding)
        return _turned(kernel_gradient(gradient_BHWO, x_BHWC, window=window, strides=strides, padding=swapped))
    batch, height, width = gradient_BHWO.shape[:3]
    x_BHWC = _pad(x_BHWC, padding)
    # A piece is `images` whole images or, where one is too large, `rows` rows of the output.
    columns = math.prod(window) * channels
    positions = PIECE_BYTES // (x_BHWC.dtype.itemsize * columns)
    rows = _largest_divisor(height, positions // width)
    images = _largest_divisor(batch, positions // (height * width)) if rows == height else 1
    down = (rows - 1) * strides[0] + 1

    def add_piece(total, piece):
        image, row = piece // (height // rows) * images, piece % (height // rows) * rows
        seen = (images, down + window[0] - 1, *x_BHWC.shape[2:])
        x = lax.dynamic_slice(x_BHWC, (image, row * strides[0], 0, 0), seen)
        gradient = lax.dynamic_slice(gradient_BHWO, (image, row, 0, 0), (images, rows, width, outputs))
        patches = _patches(x, window, strides, (rows, width))
        rows_PK, gradient_PO = patches.reshape(-1, columns), gradient.reshape(-1, outputs)
        return total + lax.dot_general(rows_PK, gradient_PO, (((0,), (0,)), ((), ()))), None

    pieces = jnp.arange(batch // images * (height // rows))
    # zeros_like: under shard_map the sum varies over the devices as the gradient does.
    total_KO, _ = lax.scan(add_piece, jnp.zeros_like(gradient_BHWO, shape=(columns, outputs)), pieces)
    return total_KO.reshape(*window, channels, outputs)


def conv_general_dilated(x, kernel, strides, padding, *, feature_group_count: int = 1, **rest):
    """lax.conv_general_dilated for NHWC, with the kernel gradient of this file. Grouped and dilated convolutions are
    left to XLA."""
    plain = feature_group_count == 1 and all(
        set(rest.get(f"{side}_dilation") or (1,)) == {1} for side in ("lhs", "rhs")
    )
    if not plain or kernel.ndim != 4:
        return lax.conv_general_dilated(x, kernel, strides, padding, feature_group_count=feature_group_count, **rest)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _conv(x, kernel, tuple(strides), tuple(map(tuple, padding)))
