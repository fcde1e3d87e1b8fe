"""Initial weights. Kernels are [height, width, in, out] or [in, out]; fan_in and fan_out count a kernel's window."""

import math

import jax
import jax.numpy as jnp


def _draw(sample, key, shape, dtype):
    """`sample`'s draw of `shape`, drawn flat: the values are the same, but XLA takes ten times as long to compile the
    counters of a four-dimensional draw, a minute and more for a deep network."""
    return sample(key, (math.prod(shape),), dtype).reshape(shape)


def fans(shape) -> tuple[int, int]:
    """(fan_in, fan_out): connections into an output unit and out of an input unit."""
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


def normal(std: float):
    """N(0, std^2), untruncated."""
    return lambda key, shape, dtype=jnp.float32: std * _draw(jax.random.normal, key, shape, dtype)


def kaiming_normal(key, shape, dtype=jnp.float32):
    """N(0, 2 / fan_in), untruncated (He et al. 2015, "Delving deep into rectifiers", eq. 10)."""
    return normal(math.sqrt(2 / fans(shape)[0]))(key, shape, dtype)


def uniform(limit: float):
    """U(+-limit)."""
    return lambda key, shape, dtype=jnp.float32: limit * (2 * _draw(jax.random.uniform, key, shape, dtype) - 1)


def fan_in_uniform(key, shape, dtype=jnp.float32):
    """U(+-1 / sqrt(fan_in)) (LeCun et al. 1998, "Efficient backprop", section 4.6, as torch has it: a third of the
    variance that keeps a linear layer's signal, a sixth of Kaiming's)."""
    return uniform(1 / math.sqrt(fans(shape)[0]))(key, shape, dtype)


def glorot_uniform(key, shape, dtype=jnp.float32):
    """U(+-sqrt(6 / (fan_in + fan_out))) (Glorot & Bengio 2010, "Understanding the difficulty", eq. 16)."""
    return uniform(math.sqrt(6 / sum(fans(shape))))(key, shape, dtype)


def dirac(key, shape, dtype=jnp.float32):
    """Kaiming's draw, but the first filters each pass one input through: a layer begins as the identity, with new
    features after it (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3.3). For kernels [odd, odd, in, out]."""
    height, width, channels, filters = shape
    same = jnp.arange(min(channels, filters))
    kernel = kaiming_normal(key, shape, dtype).at[..., same].set(0)
    return kernel.at[height // 2, width // 2, same, same].set(1)
