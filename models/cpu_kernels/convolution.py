"""Convolution, transposed convolution and their gradients, for CPUs and with XLA.

On CPUs, XLA's convolution is up to twice as slow as a direct convolution in vector registers. Its kernel gradient,
which uses the batch dimension as the channels, is two to ten times as slow.

Convolution, its input gradient (a transposed convolution) and its kernel gradient are each other's derivatives, so they
can be differentiated any number of times. Each of them chooses between the C kernels and XLA when it is traced.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels import ffi

# --- Convolution ---

LAYOUT = ("NHWC", "HWIO", "NHWC")


def _xla_conv(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _conv_forward(x, kernel, strides, padding):
    if ffi.use_cpu_kernels(x, kernel):  # Compute the result's shape here; tracing XLA's convolution is slower.
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
    if ffi.use_cpu_kernels(x, gradient) and min(x.size, gradient.size, kernel.size):
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


def conv_transpose_dilated(x_BhwC, kernel, strides, padding, size):
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
    form = _conv_transpose_subpixel if ffi.use_cpu_kernels(x_BhwC, kernel) else conv_transpose_dilated
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
