"""Parameter initializers, functions of (key, shape, dtype). Kernels are [height, width, in, out] or [in, out]."""

import math

import jax
import jax.numpy as jnp

from models.errors import ModelError


def _draw(sample, key, shape, dtype):
    """Draws a flat array with `sample` and reshapes it. The values are the same, but XLA takes ten times as long to
    compile a four-dimensional draw, which is a minute or more for a deep network."""
    return sample(key, (math.prod(shape),), dtype).reshape(shape)


def fans(shape) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of a kernel's shape; both include the size of the window. Raises ModelError for an
    empty kernel."""
    if 0 in shape:
        raise ModelError(f"a layer with a kernel of shape {'x'.join(map(str, shape))} has no weights")
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


def normal(std: float):
    """Returns an initializer from N(0, std^2), not truncated."""
    return lambda key, shape, dtype=jnp.float32: std * _draw(jax.random.normal, key, shape, dtype)


def kaiming_normal(key, shape, dtype=jnp.float32):
    """Draws from N(0, 2 / fan_in), not truncated (He et al. 2015, "Delving deep into rectifiers", eq. 10)."""
    return normal(math.sqrt(2 / fans(shape)[0]))(key, shape, dtype)


def uniform(limit: float):
    """Returns an initializer from U(-limit, limit)."""
    return lambda key, shape, dtype=jnp.float32: limit * (2 * _draw(jax.random.uniform, key, shape, dtype) - 1)


def fan_in_uniform(key, shape, dtype=jnp.float32):
    """Draws from U(-a, a), a = 1 / sqrt(fan_in), PyTorch's default. LeCun et al. 1998, "Efficient backprop", section
    4.6, use the standard deviation 1 / sqrt(fan_in). The variance is a third of LeCun's and a sixth of Kaiming's."""
    return uniform(1 / math.sqrt(fans(shape)[0]))(key, shape, dtype)


def glorot_uniform(key, shape, dtype=jnp.float32):
    """Draws from U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, "Understanding the
    difficulty", eq. 16)."""
    return uniform(math.sqrt(6 / sum(fans(shape))))(key, shape, dtype)


def dirac(key, shape, dtype=jnp.float32):
    """Identity initialization: the first min(in, out) filters each copy one input channel; `kaiming_normal` draws the
    others (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3.3). Height and width must be odd."""
    height, width, channels, filters = shape
    same = jnp.arange(min(channels, filters))
    kernel = kaiming_normal(key, shape, dtype).at[..., same].set(0)
    return kernel.at[height // 2, width // 2, same, same].set(1)
