"""Tests of support-vector machines: primal and dual steps against equations, solutions against scikit-learn and closed
forms, the card."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from experiments.lecture.zoo import margins
from models import support_vector as machines
from train.tasks import support_vector


def points(count=40, machines=1):
    random = np.random.default_rng(0)
    y = np.where(random.uniform(size=(count, machines)) < 0.5, -1, 1).astype(np.float32)
    return (random.normal(size=(count, 3)) + 0.7 * y[:, :1]).astype(np.float32), y


def test_a_primal_step_follows_the_subgradient():
    x, y = points(12, 2)
    state, cost = support_vector.primal_init(3, 2), 0.3
    step = jax.jit(functools.partial(support_vector.primal_step, cost=cost, examples=100))
    w, average, strength = np.zeros((4, 2)), np.zeros((4, 2)), 1 / (0.3 * 100)
    for t in range(1, 4):
        batch = slice(4 * t - 4, 4 * t)
        state, sums = step(state, {"input": x[batch], "label": y[batch]})
        gradient, loss = strength * w, 0.0
        for k in range(2):
            for a, b in zip(x[batch], y[batch, k], strict=True):
                margin = b * (a @ w[:3, k] + w[3, k])
                loss += max(0, 1 - margin) / 2
                if margin < 1:
                    gradient[:, k] -= b * np.append(a, 1) / 4
        w = w - 2 / (strength * (t + 1)) * gradient
        average += 2 / (t + 1) * (w - average)
        np.testing.assert_allclose(state.weights, w, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(state.average, average, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(sums["loss"], loss, rtol=1e-4)
    whole = 0.5 * (w**2).sum(0) + cost * np.maximum(0, 1 - y * (x @ w[:3] + w[3])).sum(0)
    np.testing.assert_allclose(support_vector.primal_objective(state.weights, x, y, cost), whole, rtol=1e-4)


def test_gradient_descent_reaches_the_objective_of_scikit_learn():
    x, y = points(60, 2)
    weights, theirs = margins.linear(x, y, cost=0.1, steps=2000, seed=0), margins.sklearn_linear(x, y, 0.1)
    ours, expected = (margins.primal_objective(w, x, y, 0.1) for w in (weights, theirs))
    assert (ours >= expected * (1 - 1e-4)).all() and (ours <= 1.01 * expected).all()
    zeros = margins.primal_objective(np.zeros((4, 2)), x, y, 0.1)
    assert (expected < 0.9 * zeros).all()


def test_a_dual_step_optimizes_the_best_pair():
    """i is the example with the largest excess whose coefficient can increase; among the examples whose coefficient can
    decrease, j gives the largest gain without bounds. The step maximizes the objective within the bounds (checked on a
    grid of 10,001 points)."""
    x, y = points(15)
    y, cost = y[:, 0], 0.6
    kernel = np.asarray(machines.gaussian_kernel(x, x, 0.4), np.float64)

    def objective(beta):
        return beta @ y - beta @ kernel @ beta / 2

    state = support_vector.dual_init(y)
    step = jax.jit(functools.partial(support_vector.dual_step, cost=cost))
    for _ in range(8):
        before = np.asarray(state.coefficients, np.float64)
        excess = y - kernel @ before
        upper, lower = np.maximum(0, cost * y), np.minimum(0, cost * y)
        i = max((n for n in range(15) if before[n] < upper[n] - 1e-6), key=lambda n: excess[n])
        others = [n for n in range(15) if before[n] > lower[n] + 1e-6 and excess[n] < excess[i]]
        gain = {n: (excess[i] - excess[n]) ** 2 / (kernel[i, i] + kernel[n, n] - 2 * kernel[i, n]) for n in others}
        j = max(gain, key=lambda n: gain[n])
        room = min(upper[i] - before[i], before[j] - lower[j])
        direction = np.eye(15)[i] - np.eye(15)[j]
        best = max(np.linspace(0, room, 10001), key=lambda move: objective(before + move * direction))
        state, sums = step(state, {"kernel": jnp.asarray(kernel, jnp.float32), "label": y})
        np.testing.assert_allclose(state.coefficients, before + best * direction, atol=2e-4)
        np.testing.assert_allclose(state.excess, y - kernel @ np.asarray(state.coefficients, float), atol=1e-5)
        low = min(excess[n] for n in range(15) if before[n] > lower[n] + 1e-6)
        np.testing.assert_allclose(sums["gap"], excess[i] - low, atol=1e-5)
    np.testing.assert_allclose(
        support_vector.dual_objective(state, y), objective(np.asarray(state.coefficients, float)), rtol=1e-4
    )


@pytest.mark.parametrize("cost", [0.5, 20.0])
def test_the_kernel_machine_equals_scikit_learn(cost):
    """Compares objective, coefficients, bias and scores of two machines at once, for a small and a large cost."""
    x, y = points(40, 2)
    machine, objectives, kernel, gaps, _ = margins.kernel_machine(x, y.T, cost=cost, gamma=0.3)
    scores = np.asarray(margins.SCORES(machine, x[:7]))
    assert gaps.max() < margins.TOLERANCE
    for k in range(2):
        expected, coefficients, bias = margins.sklearn_dual(kernel, y[:, k], cost)
        beta = np.asarray(machine.coefficients[k], np.float64)
        np.testing.assert_allclose(objectives[k], expected, rtol=2e-3)
        np.testing.assert_allclose(beta, coefficients, atol=2e-2 * cost)
        np.testing.assert_allclose(machine.bias[k], bias, atol=2e-2)
        assert abs(beta.sum()) < 1e-4 * cost and (beta * y[:, k] >= 0).all() and (beta * y[:, k] <= cost).all()
        reference = SVC(C=cost, gamma=0.3).fit(x, y[:, k])
        np.testing.assert_allclose(scores[:, k], reference.decision_function(x[:7]), atol=2e-2)


def test_two_examples_have_a_closed_form():
    """For a linear kernel, alpha = min(cost, 2 / |x_1 - x_2|^2), and the boundary is halfway between the examples."""
    x, y = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32), np.array([-1.0, 1.0], np.float32)
    for cost, alpha in ((10.0, 0.5), (0.2, 0.2)):
        states, gaps, _ = margins.dual(jnp.asarray(x @ x.T), jnp.asarray(y[None]), cost=cost)
        np.testing.assert_allclose(states.coefficients[0], [-alpha, alpha], rtol=1e-5)
    first = jax.tree.map(lambda leaf: leaf[0], margins.dual(jnp.asarray(x @ x.T), jnp.asarray(y[None]), cost=10.0)[0])
    np.testing.assert_allclose(support_vector.dual_bias(first, y, 10.0), -1, atol=1e-5)  # w = (1, 0), boundary at 1.


def test_with_one_class_a_dual_step_changes_nothing():
    x, y = points(5)
    state = support_vector.DualState(jnp.zeros(5), jnp.arange(5.0))  # The last can increase, but none can decrease.
    kernel = margins.KERNEL(x, x, 1.0)
    step = jax.jit(functools.partial(support_vector.dual_step, cost=1.0))
    after, sums = step(state, {"kernel": kernel, "label": jnp.ones(5)})
    assert not np.asarray(after.coefficients).any() and sums["gap"] == 0


@pytest.mark.slow
def test_card(monkeypatch):
    monkeypatch.setattr(margins, "CHUNKS", 4)
    result = margins.run_support_vector(0, examples=100, steps=300)
    assert result["linear"]["accuracy"] > 0.5 and result["kernel"]["accuracy"] > 0.5
    findings = margins.report_support_vector([result, result])
    assert findings.numbers["test_accuracy_kernel"] == {"mean": result["kernel"]["accuracy"], "std": 0.0}
    near, far = copy.deepcopy(result), copy.deepcopy(result)
    near["linear"]["excess"] = near["kernel"]["excess"] = 0.009
    far["linear"]["excess"] = 0.02
    assert "objectives are within 1 %" in margins.report_support_vector([near]).text
    assert "objectives are not all within 1 %" in margins.report_support_vector([near, far]).text


@pytest.mark.slow
def test_machines_match_scikit_learn_on_digits():
    result = margins.run_support_vector(0)
    assert -1e-4 < result["linear"]["excess"] <= 0.01 and result["kernel"]["excess"] <= 0.01
    for part, least in (("linear", 0.87), ("kernel", 0.95)):
        found = result[part]
        assert found["accuracy"] > least and abs(found["accuracy"] - found["sklearn_accuracy"]) <= 0.005
    first, _ = result["plane"]
    assert first["width"] == pytest.approx(first["sklearn_width"], rel=0.03)
