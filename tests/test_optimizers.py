"""Tests of learning rate schedules and optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import optimizers


@pytest.mark.parametrize(
    "name, expected",
    [("constant", [1, 1, 1]), ("step", [1, 0.1, 0.01]), ("cosine", [1, 0.5, 0]), ("one_cycle", [0.04, 2 / 3, 0])],
)
def test_schedules(name, expected):
    rate = optimizers.schedule(name, learning_rate=1.0, steps=100)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], expected, atol=1e-6)


def test_drops_at_the_same_step_are_multiplied():
    rate = optimizers.schedule("step", learning_rate=1.0, steps=10, drops=(0.9, 0.5, 0.52))
    np.testing.assert_allclose([rate(4), rate(5), rate(8), rate(9)], [1, 0.01, 0.01, 0.001], rtol=1e-5)


def test_warm_up_and_coupled_weight_decay():
    rate = optimizers.schedule("step", learning_rate=1.0, steps=100, warmup_steps=10)
    np.testing.assert_allclose([rate(0), rate(5), rate(49), rate(50), rate(75)], [0, 0.5, 1, 0.1, 0.01], atol=1e-6)
    optimizer = optimizers.create("sgd", lambda step: 0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
    updates, _ = optimizer.update(jnp.ones(()), optimizer.init(jnp.array(2.0)), jnp.array(2.0))
    assert float(updates) == pytest.approx(-0.1 * (1 + 0.5 * 2))


def test_groups_scale_rate_and_decay_by_the_first_matching_pattern():
    groups = [("bias$", 2.0, 0.0), ("^a/", 1.0, 3.0)]
    optimizer = optimizers.create(
        "sgd", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.5, groups=groups
    )
    params = {"a": {"kernel": jnp.array(2.0), "bias": jnp.array(2.0)}, "b": {"kernel": jnp.array(2.0)}}
    state = optimizer.init(params)
    for scale in (1.0, 1.9):  # The momentum of the second step contains 0.9 of the first.
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert float(updates["a"]["kernel"]) == pytest.approx(-0.1 * (1 + 0.5 * 3 * 2) * scale)
        assert float(updates["a"]["bias"]) == pytest.approx(-0.2 * scale)
        assert float(updates["b"]["kernel"]) == pytest.approx(-0.1 * (1 + 0.5 * 2) * scale)


def test_muon_orthogonalizes_updates_of_kernels_and_uses_adam_for_vectors():
    optimizer = optimizers.create("muon", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    params = {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}
    scale = jnp.array([1.0, 3.0, 0.1, 10.0])  # The scales of gradients by output must not matter.
    gradients = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 2, 4)) * scale[None, None, None], "bias": -scale}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    singular = np.linalg.svd(np.asarray(updates["kernel"]).reshape(18, 4), compute_uv=False)
    full = 0.1 * optimizers.MUON_RMS * 18**0.5  # Five iterations come within 35 % of it.
    assert full * 0.65 < singular.min() and singular.max() < full * 1.35, singular / full
    adam = optax.nadam(0.1)
    np.testing.assert_allclose(updates["bias"], adam.update(-scale, adam.init(scale))[0], rtol=1e-4)
    assert np.sum(np.asarray(updates["kernel"]) * np.asarray(gradients["kernel"])) < 0


@pytest.mark.parametrize("groups", [(), [("bias$", 2.0, 0.0), ("^a/", 1.0, 3.0)]])
def test_muons_weight_decay_is_decoupled(groups):
    params = {"a": {"kernel": jnp.eye(3, 4), "bias": jnp.full(4, 2.0)}, "b": {"kernel": jnp.ones((4, 2))}}
    gradients = jax.tree.map(lambda w: w + 0.5, params)
    found = []
    for decay in (0.0, 0.5):
        optimizer = optimizers.create(
            "muon", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=decay, groups=groups
        )
        state = optimizer.init(params)
        for _ in range(2):  # The decay does not enter the momentum.
            updates, state = optimizer.update(gradients, state, params)
        found.append(updates)
    taken = jax.tree.map(lambda plain, decayed: plain - decayed, *found)
    share = {"a": {"kernel": 3.0, "bias": 0.0}, "b": {"kernel": 1.0}} if groups else jax.tree.map(lambda _: 1.0, params)
    jax.tree.map(lambda t, w, s: np.testing.assert_allclose(t, 0.1 * 0.5 * s * w, atol=1e-6), taken, params, share)


@pytest.mark.parametrize("groups", [(), [("bias$", 2.0, 0.0)]])
def test_muons_state_has_the_structure_of_older_checkpoints(groups):
    """The leaves have the same paths as in older versions, where coupled weight decay came before Muon."""
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    optimizer = optimizers.create(
        "muon", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.5, groups=groups
    )
    bare = optimizers.create("muon", lambda step: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    older = optax.chain(optax.add_decayed_weights(0.5), bare, *[optax.stateless(lambda g, w: g)] * bool(groups))
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(older.init(params))


def test_adamws_weight_decay_is_decoupled():
    w, g, moments = np.array([2.0, -1.0]), np.array([0.3, -0.001]), (0.8, 0.999)
    optimizer = optimizers.create("adamw", lambda step: 0.1, momentum=moments[0], nesterov=False, weight_decay=0.5)
    state, first, second = optimizer.init(jnp.array(w)), 0.0, 0.0
    for step in (1, 2):  # Algorithm 2 of Loshchilov & Hutter, with the decay multiplied by the learning rate.
        first, second = moments[0] * first + (1 - moments[0]) * g, moments[1] * second + (1 - moments[1]) * g**2
        scaled = first / (1 - moments[0] ** step) / (np.sqrt(second / (1 - moments[1] ** step)) + 1e-8)
        updates, state = optimizer.update(jnp.array(g), state, jnp.array(w), gradient_norm=None)
        np.testing.assert_allclose(updates, -0.1 * (scaled + 0.5 * w), rtol=1e-5)


@pytest.mark.parametrize("groups", [(), [("bias$", 2.0, 0.0)]])
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_large_gradients_are_clipped_before_all_other_transformations(name, groups):
    params = {"a": {"kernel": jnp.eye(3, 4), "bias": jnp.full(4, 2.0)}}
    large = jax.tree.map(lambda w: 3 * w + 0.5, params)
    norm = float(optax.tree.norm(large))
    small = jax.tree.map(lambda g: g / norm, large)
    options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.5, "groups": groups}

    def after(gradients, clip_norm):
        optimizer = optimizers.create(name, lambda step: 0.1, clip_norm=clip_norm, **options)
        state = optimizer.init(params)
        for _ in range(2):
            given = optax.tree.norm(gradients)
            updates, state = optimizer.update(gradients, state, params, gradient_norm=given)
        return updates

    clipped, expected, untouched = after(large, 1.0), after(small, 0.0), after(small, 1.01)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), clipped, expected)
    jax.tree.map(np.testing.assert_array_equal, untouched, expected)
    theirs, _ = optax.clip_by_global_norm(1.0).update(large, optax.EmptyState())
    ours, _ = optimizers.clip_by_norm(1.0).update(large, optax.EmptyState(), gradient_norm=jnp.float32(norm))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), ours, theirs)
