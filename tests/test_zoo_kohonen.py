"""Tests of the self-organizing map: Kohonen's rule against a loop, its scores by enumeration, the card."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import maps
from models import kohonen as som
from train.tasks import kohonen


@pytest.mark.parametrize("rows,columns", [(3, 4), (1, 1), (1, 5)])
def test_a_step_follows_kohonens_rule(rows, columns):
    """Inputs are processed one by one; rate and radius depend on the number of finished steps."""
    random = np.random.default_rng(0)
    mean, std = random.normal(size=2), np.array([1.0, 0.0])
    state = kohonen.init(
        jax.random.key(0), rows, columns, jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    )
    weights = np.asarray(state.weights, np.float64)
    np.testing.assert_allclose(weights[..., 1], mean[1], rtol=1e-6)
    for n in range(2):
        inputs = random.normal(size=(3, 2))
        state, sums = kohonen.step(
            state,
            {"input": jnp.asarray(inputs, jnp.float32)},
            rate=lambda step: 0.5 / (step + 1),
            radius=lambda step: 2.0 - step,
        )
        rate, radius, loss = 0.5 / (n + 1), 2.0 - n, 0.0
        for x in inputs:
            apart = np.linalg.norm(weights - x, axis=-1)
            winner = np.unravel_index(apart.argmin(), apart.shape)
            loss += apart.min()
            for unit in np.ndindex(rows, columns):
                on_grid = (unit[0] - winner[0]) ** 2 + (unit[1] - winner[1]) ** 2
                weights[unit] += rate * np.exp(-on_grid / (2 * radius**2)) * (x - weights[unit])
        np.testing.assert_allclose(state.weights, weights, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(sums["loss"], loss, rtol=1e-4)
        assert sums["count"] == 3 and state.step == n + 1


def test_scores_by_enumeration():
    random = np.random.default_rng(1)
    weights, x = random.normal(size=(3, 4, 2)), random.normal(size=(50, 2))
    quantization, topographic = 0.0, 0
    for point in x:
        apart = sorted((np.linalg.norm(weights[unit] - point), unit) for unit in np.ndindex(3, 4))
        (distance, one), (_, two) = apart[:2]
        quantization += distance
        topographic += max(abs(one[0] - two[0]), abs(one[1] - two[1])) > 1
    sums = jax.jit(kohonen.scores)(jnp.asarray(weights, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(sums["quantization"], quantization, rtol=1e-4)
    assert sums["topographic"] == topographic and 0 < topographic < 50 and sums["count"] == 50


def test_adjacent_units():
    """On a grid of 3 x 4, unit 5 is adjacent to the eight around it; ends of consecutive rows are not adjacent."""
    found = [n for n in range(12) if som.are_adjacent(jnp.asarray(5), jnp.asarray(n), 4)]
    assert found == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert not som.are_adjacent(jnp.asarray(3), jnp.asarray(4), 4)


@pytest.mark.slow
def test_card():
    result = maps.run_kohonen(0, side=4, epochs=3, examples=200)
    findings = maps.report_kohonen([result, result])
    assert findings.numbers["topographic_error"] == {"mean": result["map"]["topographic"], "std": 0.0}
    assert result["map"]["topographic"] < result["k_means"]["topographic"] and result["map"]["accuracy"] > 0.4
    assert "preserves neighborhoods" in findings.text
    mixed = copy.deepcopy(result)
    mixed["map"]["topographic"] = mixed["k_means"]["topographic"]
    assert "does not clearly preserve neighborhoods" in maps.report_kohonen([mixed]).text


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_map_of_digits_preserves_neighborhoods():
    result = maps.run_kohonen(0)
    assert result["map"]["topographic"] < 0.3 < 0.8 < result["k_means"]["topographic"]
    assert result["map"]["quantization"] < 1.1 * result["k_means"]["quantization"]
    assert result["map"]["accuracy"] > 0.76
