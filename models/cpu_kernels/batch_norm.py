"""Batch norm in training (Ioffe & Szegedy 2015, "Batch normalization", algorithm 1), fused with the addition of a
shortcut and ReLU or leaky ReLU.

As separate operations, these would pass over the feature maps about twice as often. There is no fallback to XLA here;
`ops.batch_norm` chooses between the two.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.cpu_kernels import ffi


def variance(moments):
    """Returns the variance from (mean, mean of squares). Negative values, which result from rounding, become 0; NaN
    stays NaN."""
    mean, square = moments
    found = square - mean * mean
    return jnp.where(found < 0, 0.0, found)


def leaky_relu(x, slope: float):
    """x where it is positive and slope x elsewhere; slope 0 is ReLU, and slope 1 is the identity."""
    # Not jnp.maximum: fused with a sum, it turns NaN into 0 on the CPU backend of jaxlib 0.10 to 0.12.
    return jnp.where(x <= 0, slope * x if slope else jnp.zeros((), x.dtype), x)


def formula(x, scale, bias, shortcut, axis: str | None, epsilon: float, slope: float):
    """Reference implementation in JAX, for second-order gradients; arguments as in `batch_norm`. Returns y."""
    mean, square = x.mean(0), (x * x).mean(0)
    if axis:
        mean, square = lax.pmean((mean, square), axis)
    a = scale * lax.rsqrt(variance((mean, square)) + epsilon)
    y = (x - mean[None]) * a[None] + bias[None]
    return leaky_relu(y if shortcut is None else y + shortcut, slope)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def batch_norm(x_NC, scale_C, bias_C, shortcut_NC, axis: str | None, epsilon: float, slope: float):
    """Returns f(batch norm of x + shortcut) and the moments of x, mean and mean of squares [2, C], which are not
    differentiated. f(v) is v where v > 0 and slope v elsewhere.

    Args:
      x_NC: float32; all positions of all images, by channel.
      scale_C: Batch norm's scale.
      bias_C: Batch norm's bias.
      shortcut_NC: Added before f; None for no shortcut.
      axis: Mesh axis over which the moments are averaged; None on one device.
      epsilon: Added to the variance.
      slope: Negative slope of f; 0 is ReLU, 1 is the identity.
    """
    moments_2C = ffi.call("batch_moments", (2, x_NC.shape[1]), x_NC)
    moments_2C = lax.pmean(moments_2C, axis) if axis else moments_2C
    operands = (x_NC, moments_2C, scale_C, bias_C, *(() if shortcut_NC is None else (shortcut_NC,)))
    y = ffi.call("batch_norm", x_NC.shape, *operands, epsilon=np.float32(epsilon), slope=np.float32(slope))
    return y, moments_2C


def _forward(x, scale, bias, shortcut, *static):
    y, moments = batch_norm(x, scale, bias, shortcut, *static)
    return (y, moments), (x, scale, bias, shortcut, moments, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gradients(operands, axis, epsilon, slope):
    """Returns the gradients of x, scale, bias and shortcut (None if there is none), from (the gradient of y, x,
    scale, bias, shortcut, moments, y)."""
    gradient, x, scale, bias, shortcut, moments, y = operands
    attributes = {"epsilon": np.float32(epsilon), "slope": np.float32(slope)}
    norm, means_shape = (x, moments, scale, bias), moments.shape
    if shortcut is None or slope == 1:
        means = ffi.call("batch_norm_sums", means_shape, gradient, *norm, **attributes)
        d_shortcut = None if shortcut is None else gradient
    else:
        means, gradient = ffi.call("batch_norm_sums", [means_shape, x.shape], gradient, *norm, y, **attributes)
        d_shortcut, attributes["slope"] = gradient, np.float32(1)
    of_all = lax.pmean(means, axis) if axis else means
    d_x = ffi.call("batch_norm_gradient", x.shape, gradient, *norm, of_all, **attributes)
    d_scale = len(x) * means[1] * lax.rsqrt(variance(moments) + np.float32(epsilon))
    return d_x, d_scale, len(x) * means[0], d_shortcut


def _gradients_of_formula(operands, axis, epsilon, slope):
    gradient, *arguments, _, _ = operands
    definition = functools.partial(formula, axis=axis, epsilon=epsilon, slope=slope)
    return jax.vjp(definition, *arguments)[1](gradient)


def _second_gradients(axis, epsilon, slope, operands, cotangents):
    return jax.vjp(lambda operands: _gradients_of_formula(operands, axis, epsilon, slope), operands)[1](cotangents)


_gradients.defvjp(lambda operands, *static: (_gradients(operands, *static), operands), _second_gradients)


def _backward(axis, epsilon, slope, saved, cotangents):
    return _gradients((cotangents[0], *saved), axis, epsilon, slope)


batch_norm.defvjp(_forward, _backward)
