"""Schedules and optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import optimizers


@pytest.mark.parametrize(
    "name, expected",
    [("constant", [1, 1, 1]), ("step", [1, 0.1, 0.01]), ("cosine", [1, 0.5, 0]), ("one_cycle", [0.04, 2 / 3, 0])],
)
def test_schedules(name, expected):
    rate = optimizers.schedule(name, learning_rate=1.0, steps=100)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], expected, atol=1e-6)


def test_warm_up_and_coupled_weight_decay():
    rate = optimizers.schedule("step", learning_rate=1.0, steps=100, warmup_steps=10)
    np.testing.assert_allclose([rate(0), rate(5), rate(49), rate(50), rate(75)], [0, 0.5, 1, 0.1, 0.01], atol=1e-6)
    optimizer = optimizers.create("sgd", lambda step: 0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
    updates, _ = optimizer.update(jnp.ones(()), optimizer.init(jnp.array(2.0)), jnp.array(2.0))
    assert float(updates) == pytest.approx(-0.1 * (1 + 0.5 * 2))


def test_groups_scale_rate_and_decay_of_the_first_pattern_that_fits():
    groups = [("bias$", 2.0, 0.0), ("^a/", 1.0, 3.0)]
    optimizer = optimizers.create(
        "sgd", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.5, groups=groups
    )
    params = {"a": {"kernel": jnp.array(2.0), "bias": jnp.array(2.0)}, "b": {"kernel": jnp.array(2.0)}}
    state = optimizer.init(params)
    for scale in (1.0, 1.9):  # The second step's momentum holds 0.9 of the first.
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert float(updates["a"]["kernel"]) == pytest.approx(-0.1 * (1 + 0.5 * 3 * 2) * scale)
        assert float(updates["a"]["bias"]) == pytest.approx(-0.2 * scale)
        assert float(updates["b"]["kernel"]) == pytest.approx(-0.1 * (1 + 0.5 * 2) * scale)
