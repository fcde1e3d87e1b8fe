"""Max pooling with the C kernels. There is no fallback to XLA here; `layers.max_pool` has one."""

import functools

import jax
import numpy as np

from models.cpu_kernels import ffi


def _attribute(window: int, stride: int, padding: int) -> np.ndarray:
    return np.array([window, stride, padding, padding], np.int64)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def max_pool(x_BHWC, size: tuple[int, int], window: int, stride: int, padding: int, definition):
    """Max pooling, [B, H, W, C] -> [B, *size, C].

    Args:
      x_BHWC: float32 images.
      size: Height and width of the result.
      window: Side of the windows in pixels.
      stride: Stride in pixels.
      padding: Padding pixels above and to the left of the images; they are never a maximum.
      definition: The same function of x computed by XLA, for second-order gradients.
    """
    shape = (len(x_BHWC), *size, x_BHWC.shape[3])
    return ffi.call("max_pool", shape, x_BHWC, window=_attribute(window, stride, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _gradient(x_BHWC, gradient_BhwC, attribute: tuple[int, int, int], definition):
    return ffi.call("max_pool_gradient", x_BHWC.shape, x_BHWC, gradient_BhwC, window=_attribute(*attribute))


def _second_gradient(attribute, definition, x, cotangent):
    # The gradient is linear in the gradient of the maxima, and constant in x between ties.
    return None, jax.jvp(definition, (x,), (cotangent,))[1]


_gradient.defvjp(lambda x, gradient, *static: (_gradient(x, gradient, *static), x), _second_gradient)


def _backward(size, window, stride, padding, definition, x, gradient):
    return (_gradient(x, gradient, (window, stride, padding), definition),)


max_pool.defvjp(lambda x, *static: (max_pool(x, *static), x), _backward)
