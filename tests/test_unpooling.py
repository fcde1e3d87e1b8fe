"""Compares max pooling with indices and unpooling with explicit loops: ties, odd sizes, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers


def pool_in_loops(x, window):
    batch, height, width, channels = x.shape
    shape = (batch, -(-height // window), -(-width // window), channels)
    maxima, places = np.empty(shape, x.dtype), np.empty((*shape, 2), int)
    for b, i, j, c in np.ndindex(shape):
        best = None
        for y in range(i * window, min(height, (i + 1) * window)):
            for z in range(j * window, min(width, (j + 1) * window)):
                if best is None or x[b, y, z, c] > best:
                    best, places[b, i, j, c] = x[b, y, z, c], (y, z)
        maxima[b, i, j, c] = best
    return maxima, places


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("size", [(5, 7), *(pytest.param(size, marks=pytest.mark.slow) for size in ((6, 4), (1, 2)))])
def test_pooling_and_unpooling_against_loops(size, window):
    # Few values, so that ties and all-negative windows are common.
    x = np.random.default_rng(0).integers(-3, 1, (2, *size, 3)).astype(np.float32)
    expected, places = pool_in_loops(x, window)
    maxima, indices = layers.max_pool_with_indices(jnp.asarray(x), window)
    np.testing.assert_array_equal(maxima, expected)
    assert indices.dtype == jnp.uint8 and indices.shape == maxima.shape
    y = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    unpooled = np.zeros_like(x)
    for b, i, j, c in np.ndindex(y.shape):
        unpooled[(b, *places[b, i, j, c], c)] = y[b, i, j, c]
    np.testing.assert_array_equal(layers.unpool(jnp.asarray(y), indices, size, window), unpooled)
    # Both are linear for given indices, so each is the gradient of the other.
    back = jax.grad(lambda x: (layers.max_pool_with_indices(x, window)[0] * y).sum())(jnp.asarray(x))
    np.testing.assert_array_equal(back, unpooled)
    z = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    forth = jax.grad(lambda y: (layers.unpool(y, indices, size, window) * z).sum())(jnp.asarray(y))
    taken = [z[(b, *places[b, i, j, c], c)] for b, i, j, c in np.ndindex(y.shape)]
    np.testing.assert_array_equal(forth, np.reshape(taken, y.shape))


def test_indices_of_one_pixel_windows_have_the_shape_of_the_maxima():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    maxima, indices = layers.max_pool_with_indices(x, 1)
    np.testing.assert_array_equal(layers.unpool(maxima, indices, (2, 3), 1), x)
