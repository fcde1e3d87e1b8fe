"""Tests reductions after narrow matrix products with many rows, against float64.

On CPUs, jaxlib 0.10.2 computes wrong last rows of `jit(vmap(lambda v: ((W @ v) ** 2).sum()))` for W of [2 or 3, 3] and
more than 32,768 rows (jax-ml/jax#39103). The compiled steps of this project have no reduction after a product of that
form; these tests cover the closest cases.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from data import augment
from train.tasks import losses

ROWS = (32_769, 40_961)


@pytest.mark.parametrize("rows", ROWS)
def test_loss_and_gradient_of_a_narrow_dense_layer(rows):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(rows, 1, 1, 3)).astype(np.float32), rng.integers(0, 3, rows)
    model = models.create("perceptron", 3)
    params = model.init(jax.random.key(0), images[:1])["params"]

    @jax.jit
    def loss_and_gradient(params):
        def mean(params):
            loss_B = losses.cross_entropy(model.apply({"params": params}, images), jnp.asarray(labels))
            return loss_B.mean(), loss_B

        return jax.value_and_grad(mean, has_aux=True)(params)

    (_, loss_B), gradient = loss_and_gradient(params)
    (layer,) = params.values()
    x_BI, onehot = images.reshape(rows, 3).astype(np.float64), np.eye(3)[labels]
    s_BC = x_BI @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
    p_BC = np.exp(s_BC) / np.exp(s_BC).sum(1, keepdims=True)
    np.testing.assert_allclose(loss_B, -np.log((p_BC * onehot).sum(1)), atol=1e-5)
    np.testing.assert_allclose(*(gradient.popitem()[1]["kernel"], x_BI.T @ (p_BC - onehot) / rows), atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_squares_of_color_noise(rows):
    """Color noise multiplies a matrix with a different vector for each image."""
    covariance, std = 500 * np.array([[4, 1, 0.5], [1, 3, 0.2], [0.5, 0.2, 2]]), np.full(3, 40.0)
    noise = functools.partial(augment.colour_noise, covariance=covariance, std=std, scale=0.1)
    images, keys = jnp.zeros((rows, 1, 1, 3)), jax.random.split(jax.random.key(0), rows)
    found = jax.jit(lambda images, keys: (noise(images, keys) ** 2).sum((1, 2, 3)))(images, keys)
    alone = np.asarray(noise(images, keys), np.float64)
    assert alone.std() > 0.05
    np.testing.assert_allclose(found, (alone**2).sum((1, 2, 3)), rtol=1e-4, atol=1e-6)
