"""Compares the C kernels for batch norm with shortcut and (leaky) ReLU with flax.linen's and XLA's operations."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from models import layers
from models.cpu_kernels import ffi


class Normalized(nn.Module):
    """f(norm(x) + shortcut), by `layers.batch_norm` or, with `plain`, by its definition in terms of flax.linen."""

    slope: float
    plain: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, shortcut=None, train: bool = True):
        norm = layers.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="bn")
        if not self.plain:
            return layers.batch_norm(norm, x, shortcut=shortcut, slope=self.slope)
        y = norm(x) if shortcut is None else norm(x) + shortcut
        return jnp.where(y <= 0, self.slope * y, y)


def drawn(shape, *, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 2, shape), jnp.float32)


def variables(channels: int):
    norm = {"scale": drawn((channels,), seed=1), "bias": drawn((channels,), seed=2)}
    return {"params": {"bn": norm}, "batch_stats": {"bn": {"mean": jnp.ones(channels), "var": jnp.ones(channels)}}}


@functools.partial(jax.jit, static_argnums=(0, 3))
def both(module, values, operands, train: bool = True):
    """The output, the new running statistics, and the gradients with respect to parameters and operands."""

    def loss(params, *operands):
        y, changed = module.apply(values | {"params": params}, *operands, train=train, mutable=["batch_stats"])
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), (y, changed)

    everything = tuple(range(1 + len(operands)))
    gradients, (y, changed) = jax.grad(loss, everything, has_aux=True)(values["params"], *operands)
    return y, changed["batch_stats"], gradients


def assert_close(found, expected, tolerance: float):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, float(jnp.abs(b).max())))


@pytest.mark.parametrize(
    ("slope", "shape", "shortcut"),
    [
        (0.0, (4, 5, 6, 16), False),
        (0.0, (4, 5, 6, 16), True),
        (0.2, (3, 1, 2, 70), False),
        (0.2, (2, 3, 3, 150), True),
        (1.0, (40, 7), False),
        (1.0, (3, 4, 16), True),
    ],
)
def test_the_kernels_equal_flax_batch_norm(slope, shape, shortcut):
    operands = [drawn(shape, seed=n) for n in range(1 + shortcut)]
    found, expected = (both(Normalized(slope, plain), variables(shape[-1]), operands) for plain in (False, True))
    assert "ffi_call" in str(
        jax.make_jaxpr(lambda x: both(Normalized(slope, False), variables(shape[-1]), x))(operands)
    )
    assert_close(found, expected, 4e-6)


@pytest.mark.parametrize(("slope", "dtype"), [(-0.5, jnp.float32), (0.0, jnp.bfloat16)])
def test_xla_computes_negative_slopes_with_a_shortcut_and_other_dtypes(slope, dtype):
    operands = [drawn((3, 4, 16)), drawn((3, 4, 16), seed=1)]
    values = variables(16)
    values["params"] = jax.tree.map(lambda leaf: leaf.astype(dtype), values["params"])
    found, expected = (both(Normalized(slope, plain), values, operands) for plain in (False, True))
    assert "ffi_call" not in str(jax.make_jaxpr(lambda x: both(Normalized(slope, False), values, x))(operands))
    assert_close(found, expected, 1e-6 if dtype == jnp.float32 else 1e-2)


def test_evaluation_and_initialization_equal_flax():
    operands = [drawn((4, 5, 6, 16)), drawn((4, 5, 6, 16), seed=1)]
    found, expected = (both(Normalized(0.0, plain), variables(16), operands, train=False) for plain in (False, True))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    first, other = (Normalized(0.0, plain).init(jax.random.key(0), *operands) for plain in (False, True))
    jax.tree.map(np.testing.assert_array_equal, first, other)


def test_statistics_and_gradients_use_the_batch_of_all_devices():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    operands, values = [drawn((8, 3, 5, 16)), drawn((8, 3, 5, 16), seed=1)], variables(16)

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=(P("data"), P(), P(), P("data")),
        check_vma=False,
    )
    def on_four(values, operands):
        module = Normalized(0.0, plain=False, axis_name="data")

        def loss(params, *operands):
            y, changed = module.apply(values | {"params": params}, *operands, mutable=["batch_stats"])
            return (y * y).sum(), (y, changed)

        (of_params, *of_operands), (y, changed) = jax.grad(loss, (0, 1, 2), has_aux=True)(values["params"], *operands)
        return y, changed, jax.lax.psum(of_params, "data"), of_operands

    def on_one(params, *operands):
        y, changed = Normalized(0.0, plain=True).apply(values | {"params": params}, *operands, mutable=["batch_stats"])
        return (y * y).sum(), (y, changed)

    (of_params, *of_operands), (y, changed) = jax.grad(on_one, (0, 1, 2), has_aux=True)(values["params"], *operands)
    assert_close(on_four(values, operands), (y, changed, of_params, of_operands), 1e-5)


@pytest.mark.slow
def test_second_order_gradients_equal_flax():
    values, operands = variables(5), [drawn((3, 2, 2, 5)), drawn((3, 2, 2, 5), seed=1)]

    def squared_gradients(plain, operands, params):
        def loss(operands):
            y, _ = Normalized(0.2, plain).apply(values | {"params": params}, *operands, mutable=["batch_stats"])
            return jnp.tanh(y).sum()

        return sum((gradient**2).sum() for gradient in jax.grad(loss)(operands))

    found, expected = (
        jax.grad(functools.partial(squared_gradients, plain), (0, 1))(operands, values["params"])
        for plain in (False, True)
    )
    assert_close(found, expected, 1e-5)


def test_nan_and_infinity_propagate_as_in_the_definition():
    x = drawn((4, 2, 2, 16)).at[1, 0, 0, 3].set(jnp.nan)
    shortcut = jnp.zeros_like(x).at[0, 1, 1, 5].set(-jnp.inf)
    y, statistics, _ = both(Normalized(0.0, plain=False), variables(16), [x, shortcut])
    assert np.isnan(y[..., 3]).all() and np.isfinite(np.delete(y, 3, -1)).all()
    assert y[0, 1, 1, 5] == 0 and np.isnan(statistics["bn"]["var"][3])


def test_constant_channels_have_no_negative_variance():
    values = 1000.1 + 37.7 * jnp.arange(64, dtype=jnp.float32)  # For some, the mean of squares is rounded down.
    x = jnp.broadcast_to(values, (4, 8, 8, 64))
    y, statistics, _ = both(Normalized(1.0, plain=False), variables(64), [x])
    assert (statistics["bn"]["var"] >= 0.9).all() and np.isfinite(y).all()


def test_without_the_kernels_flax_is_used(monkeypatch):
    monkeypatch.setattr(ffi, "_disabled", True)
    operands = [drawn((4, 5, 6, 16)), drawn((4, 5, 6, 16), seed=1)]
    found, expected = (both(Normalized(0.2, plain), variables(16), operands) for plain in (False, True))
    assert "ffi_call" not in str(jax.make_jaxpr(lambda x: both(Normalized(0.2, False), variables(16), x))(operands))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
