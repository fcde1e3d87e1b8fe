"""Compares the explicit equations with automatic differentiation, finite differences, loops and the slides' form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from models import layer_specs
from train import backpropagation
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.tasks import classification

ACTIVATIONS = ("tanh", "sigmoid", "relu", "rectified_tanh", "leaky_relu", "gelu")
NETWORKS = [
    ("perceptron", {}),
    pytest.param("lenet", {}, marks=pytest.mark.slow),
    *[("mlp", {"hidden": (20, 15), "activation": name}) for name in ACTIVATIONS],
]


def prepare(images, keys=None):
    del keys
    return images


def batch_of(shape, dtype, classes=10):
    random = np.random.default_rng(0)
    images = random.normal(size=shape).astype(dtype)
    images[:, :5] = 0  # Blank margins, as in digits: while biases are 0, ReLU inputs there are exactly 0.
    return {"image": images, "label": np.arange(shape[0], dtype=np.int32) % classes}


def tasks(name, options, *, axis=None, optimizer=None):
    """(the task with automatic differentiation, the task with the explicit equations)."""
    model = models.create(name, 10, **options)
    made = functools.partial(
        classification.create,
        model=model,
        optimizer=optimizer or optax.sgd(0.1, momentum=0.9),
        image_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        train_prepare=prepare,
        eval_prepare=prepare,
        axis=axis,
    )
    written_out = functools.partial(
        backpropagation.gradients, layers=model.layer_specs((28, 28, 1)), prepare=prepare, axis=axis
    )
    return made(), made(gradients=written_out)


def in_double(state):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)


@pytest.mark.parametrize("name, options", NETWORKS)
@pytest.mark.parametrize("double", [False, True])
def test_training_steps_equal_autodiff(name, options, double):
    with jax.enable_x64(double):
        dtype, bound = (np.float64, 1e-12) if double else (np.float32, 1e-5)
        batch = batch_of((6, 28, 28, 1), dtype)
        ours, theirs = (jax.jit(task.train_step) for task in reversed(tasks(name, options)))
        state = jax.jit(tasks(name, options)[0].init)(jax.random.key(1))
        state = in_double(state) if double else state
        (one, sums), (other, other_sums) = ours(state, batch), theirs(state, batch)
        # The optimizer's momentum after one step is the gradient.
        assert tree_error(one.opt_state, jax.device_get(other.opt_state)) < bound
        assert tree_error(sums, jax.device_get(other_sums)) < bound
        for _ in range(9 if double else 4):
            (one, _), (other, _) = ours(one, batch), theirs(other, batch)
        assert tree_error(one.params, jax.device_get(other.params)) < (1e-9 if double else 1e-5)


# Every kind of layer, including cases that the lecture's networks lack: strides, overlapping windows, remainders.
MIXED: list[layer_specs.Layer] = [
    layer_specs.Padding(((1, 0), (2, 1))),
    layer_specs.Convolution("first", 2),
    layer_specs.Activation("tanh"),
    layer_specs.MaxPooling(3, 2),
    layer_specs.Convolution("second"),
    layer_specs.Activation("sigmoid"),
    layer_specs.AveragePooling(2),
    layer_specs.Dense("logits"),
]


def mixed_params(random, dtype):
    shapes = {"first": (3, 2, 2, 4), "second": (2, 2, 4, 3), "logits": (3, 3)}
    return {
        name: {"kernel": random.normal(size=shape).astype(dtype), "bias": random.normal(size=shape[-1]).astype(dtype)}
        for name, shape in shapes.items()
    }


def test_every_layer_against_finite_differences():
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        params, x = mixed_params(random, np.float64), random.normal(size=(3, 14, 17, 2))
        batch = {"image": x, "label": np.array([0, 2, 1], np.int32)}
        run = functools.partial(backpropagation.gradients, layers=MIXED, prepare=prepare)
        key = jax.random.key(0)
        loss = jax.jit(lambda params: run(params, {}, batch, key)[0][0])
        (_, _), found = jax.jit(lambda params: run(params, {}, batch, key))(params)
        by_autodiff = jax.jit(jax.grad(loss))(params)
        assert tree_error(found, jax.device_get(by_autodiff)) < 1e-12
        step = 1e-6
        for name, leaves in params.items():
            for kind, leaf in leaves.items():
                for index in [tuple(random.integers(n) for n in leaf.shape) for _ in range(6)]:
                    sides = []
                    for sign in (1, -1):
                        moved = {n: dict(v) for n, v in params.items()}
                        moved[name][kind] = leaf.copy()
                        moved[name][kind][index] += sign * step
                        sides.append(float(loss(moved)))
                    assert found[name][kind][index] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)


def test_max_pooling_passes_the_error_to_the_first_of_equal_maxima():
    a = jnp.asarray([[2.0, 2.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]).reshape(1, 3, 3, 1)
    best, winner = backpropagation.max_pooling(a, 2, 1)
    np.testing.assert_array_equal(best[0, :, :, 0], [[2, 2], [2, 1]])
    delta = jnp.asarray([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 2, 2, 1)
    found = backpropagation.max_pooling_error(delta, winner, 2, 1, (3, 3))
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 10, 0], [100, 0, 1000], [0, 0, 0]])


def test_equations_in_the_form_of_the_slides():
    """For a = sigma(a * W - b) with a bias for each position, the gradient of b is -delta; for a shared bias it is the
    sum of -delta. The slides write +delta, which has the wrong sign."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        a, w = random.normal(size=(2, 6, 5, 2)), random.normal(size=(3, 2, 2, 3))
        b, target = random.normal(size=(4, 4, 3)), random.normal(size=(2, 4, 4, 3))

        def cost(w, b):
            z = backpropagation.correlate(jnp.asarray(a), w) - jnp.broadcast_to(b, (2, 4, 4, 3))
            return 0.5 * ((jnp.tanh(z) - target) ** 2).sum()

        by_w, by_b = jax.grad(cost, (0, 1))(jnp.asarray(w), jnp.asarray(b))
        z = backpropagation.correlate(jnp.asarray(a), w) - b[None]
        delta = backpropagation.squared_error(jnp.tanh(z), z, target, activation="tanh")
        np.testing.assert_allclose(backpropagation.bias_gradient(delta, shared=False), by_b, rtol=1e-10)
        np.testing.assert_allclose(backpropagation.weight_gradient(jnp.asarray(a), delta, 1, (3, 2)), by_w, rtol=1e-10)
        by_shared = jax.grad(lambda shared: cost(jnp.asarray(w), jnp.broadcast_to(shared, (4, 4, 3))))(jnp.zeros(3))
        z = backpropagation.correlate(jnp.asarray(a), w)
        delta = backpropagation.squared_error(jnp.tanh(z), z, target, activation="tanh")
        np.testing.assert_allclose(backpropagation.bias_gradient(delta), by_shared, rtol=1e-10)
        # The correlation equals the slide's sum.
        expected = np.zeros((2, 4, 4, 3))
        for i, j, k, m in np.ndindex(4, 4, 3, 2):
            expected[:, i, j] += a[:, i + k, j + m] @ w[k, m]
        np.testing.assert_allclose(backpropagation.correlate(jnp.asarray(a), w), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "through", [pytest.param(through, marks=pytest.mark.slow) for through in ("pmap", "shard_map")]
)
def test_several_devices_equal_one(through):
    batch = batch_of((8, 28, 28, 1), np.float32)
    one = tasks("lenet", {}, optimizer=optax.sgd(1.0))[1]
    several = tasks("lenet", {}, optimizer=optax.sgd(1.0), axis=axis_of(4))[1]
    state = jax.device_get(jax.jit(one.init)(jax.random.key(0)))
    data_parallel.check_reductions(several.train_step, state, batch=batch, devices=4)
    expected = jax.device_get(jax.jit(one.train_step)(state, batch)[0].params)
    found = data_parallel.parallelize(several.train_step, 4, donate=False, through=through)(state, batch)[0].params
    change, other = (jax.tree.map(np.subtract, jax.device_get(x), state.params) for x in (found, expected))
    assert tree_error(change, other) < 1e-5
