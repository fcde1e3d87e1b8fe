"""One contract for every network, and the counts of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import layers, table

NAMES = sorted(models.REGISTRY)
COUNTS = {"perceptron": 7_850, "logistic": 785, "mlp": 235_146, "lenet": 61_706, "cnn": 94_058}


def classes_of(name):
    return 2 if name == "logistic" else 10


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    model = models.create(name, classes_of(name))
    images = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    variables = model.init(jax.random.key(1), images, train=False)
    traces = []

    @jax.jit
    def loss(params):
        traces.append(1)
        rest = {k: v for k, v in variables.items() if k != "params"}
        logits, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        )
        return (logits**2).sum() + logits.sum()

    logits = model.apply(variables, images, train=False)
    assert logits.shape == (4, 1 if name == "logistic" else 10) and logits.dtype == jnp.float32
    for _ in range(2):
        grads = jax.grad(loss)(variables["params"])
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert any(bool((g != 0).any()) for g in jax.tree.leaves(grads))
    assert len(traces) == 1


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    found = table.layers(models.create(name, classes_of(name)), (28, 28, 1))
    assert sum(layer.parameters for layer in found) == COUNTS[name]


def test_multiply_adds_of_lenet():
    found = {layer.name: layer.multiply_adds for layer in table.layers(models.create("lenet", 10), (28, 28, 1))}
    assert found == {"c1": 117_600, "c3": 240_000, "c5": 48_000, "f6": 10_080, "logits": 840}


def test_training_differs_from_evaluation_with_batch_norm_and_dropout():
    for name, options in (("cnn", {}), ("mlp", {"dropout": 0.5})):
        model = models.create(name, 10, **options)
        images = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
        variables = model.init(jax.random.key(1), images, train=False)
        rngs = {"dropout": jax.random.key(2)}
        train, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        assert not np.allclose(train, model.apply(variables, images, train=False))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'lenett'; known: cnn, .*did you mean lenet\?"):
        models.create("lenett", 10)
    with pytest.raises(ValueError, match="takes no option 'depth'"):
        models.create("mlp", 10, depth=3)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
def test_max_pool_equals_a_loop_and_sends_the_gradient_to_the_first_maximum(shape):
    x = np.round(np.random.default_rng(0).normal(size=shape), 0).astype(np.float32)  # Rounded: many ties.
    expected, grad = np.zeros((shape[0], shape[1] // 2, shape[2] // 2, shape[3]), np.float32), np.zeros(shape)
    for b, i, j, c in np.ndindex(expected.shape):
        window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        di, dj = np.unravel_index(window.argmax(), (2, 2))
        expected[b, i, j, c] = window.max()
        grad[b, 2 * i + di, 2 * j + dj, c] += 1
    np.testing.assert_array_equal(layers.max_pool(jnp.asarray(x), 2), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: layers.max_pool(x, 2).sum())(jnp.asarray(x)), grad)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((64, 1000))
    y = layers.Dropout(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert abs(float((y == 0).mean()) - 0.25) < 0.01 and abs(float(y.mean()) - 1) < 0.01
    np.testing.assert_array_equal(layers.Dropout(0.25).apply({}, x, False), x)


def test_activations():
    x = jnp.array([-2.0, 0.5])
    np.testing.assert_allclose(layers.activation("rectified_tanh")(x), [0.0, np.tanh(0.5)], rtol=1e-6)
    np.testing.assert_allclose(layers.activation("leaky_relu", slope=0.1)(x), [-0.2, 0.5], rtol=1e-6)
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        layers.activation("swish")
