"""Tests of radial basis functions and the extreme learning machine: features against equations, the readout against
numpy.linalg.lstsq and the normal equations, and the cards."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import readouts
from experiments.lecture.zoo.flat_digits import as_hex, mosaic
from models import rbf, reservoir
from train.tasks import least_squares


def test_radial_basis_functions_equal_the_equation():
    random = np.random.default_rng(0)
    centers, x = random.normal(size=(5, 3)), random.normal(size=(7, 3))
    units = jax.jit(rbf.create)(centers.astype(np.float32))
    pairs = [np.sum((a - b) ** 2) for n, a in enumerate(centers) for b in centers[:n]]
    np.testing.assert_allclose(units.width, np.sqrt(np.mean(pairs)), rtol=1e-5)
    apart = ((x[:, None] - centers[None]) ** 2).sum(-1)
    distances = jax.jit(rbf.squared_distances)
    np.testing.assert_allclose(distances(jnp.asarray(x, jnp.float32), units.centres), apart, rtol=1e-4)
    found = np.asarray(jax.jit(rbf.features)(units, jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(found, np.exp(-apart / (2 * np.mean(pairs))), rtol=1e-4)
    far = jnp.asarray([[1e3, 1e3 + 1e-2]])
    assert float(distances(far, far)[0, 0]) == 0  # Rounding would give a negative distance here.


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_the_readout_equals_ridge_regression(penalty):
    """With one batch and with several; without a penalty it equals numpy.linalg.lstsq."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 6)).astype(np.float32), random.normal(size=(40, 2)).astype(np.float32)
    expected = np.linalg.solve(x.T.astype(float) @ x + penalty * np.eye(6), x.T.astype(float) @ y)
    if not penalty:
        np.testing.assert_allclose(expected, np.linalg.lstsq(x.astype(float), y, rcond=None)[0], rtol=1e-9)
    np.testing.assert_allclose(least_squares.fit(x, y, penalty), expected, rtol=1e-5, atol=1e-7)
    state = least_squares.init(6, 2, penalty)
    for rows in (slice(0, 1), slice(1, 30), slice(30, 40)):
        state, sums = least_squares.step(state, {"features": x[rows], "targets": y[rows]})
        assert float(sums["count"]) == len(x[rows])
    np.testing.assert_allclose(least_squares.weights(state), expected, rtol=1e-5, atol=1e-7)


def test_random_hidden_units_equal_the_equation():
    layer = reservoir.random_hidden(np.random.default_rng(0), 400, 50)
    kernel, bias = (np.asarray(leaf, np.float64) for leaf in layer)
    np.testing.assert_allclose(kernel.var(), 1 / 400, rtol=0.05)
    assert np.abs(bias).max() <= 1 and bias.min() < -0.7 and bias.max() > 0.7
    x = np.random.default_rng(0).normal(size=(3, 400))
    found = reservoir.hidden_features(layer, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, np.maximum(x @ kernel + bias, 0), rtol=1e-4, atol=1e-5)


def test_mosaic_of_images():
    """Four images in two columns: the second image is on the right, the third below the first."""
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28))
    found = mosaic(as_hex(images.reshape(4, 784) / 255), 2)
    np.testing.assert_array_equal(found, np.block([[images[0], images[1]], [images[2], images[3]]]))
    assert as_hex(np.array([[-1.0, 0.5, 2.0]])) == ["0080ff"]


@pytest.mark.slow
def test_radial_basis_card():
    result = readouts.run_rbf(0, counts=(20, 40), examples=300)
    findings = readouts.report_rbf([result, result])
    assert findings.numbers["test_accuracy"] == {"mean": result["k_means"][-1], "std": 0.0}
    assert result["k_means"][-1] > 0.7 and 0 < result["lstsq_difference"] < 1e-3
    assert f"{100 * result['pixels']:.1f} %" in findings.text
    worse = result | {"k_means": [0.5, 0.5], "random": [0.6, 0.6]}
    assert "10.0 points less than" in readouts.report_rbf([worse]).text


@pytest.mark.slow
def test_extreme_learning_card():
    result = readouts.run_extreme_learning(0, units=(20, 40), mlp_units=8, steps=2)
    assert [row["step"] for row in result["mlp"]["curve"]] == [0, 2] and result["machines"][1]["accuracy"] > 0.5
    findings = readouts.report_extreme_learning([result])
    assert findings.numbers["test_accuracy"]["mean"] == result["machines"][1]["accuracy"]
    assert "does not reach this" in findings.text
    slow, fast = copy.deepcopy(result), copy.deepcopy(result)
    slow["mlp"]["curve"][-1] |= {"accuracy": 1.0, "seconds": 3 * result["machines"][1]["seconds"]}
    fast["mlp"]["curve"][-1] |= {"accuracy": 1.0, "seconds": result["machines"][1]["seconds"] / 2}
    assert "3.0 times as long" in readouts.report_extreme_learning([slow]).text
    found = readouts.report_extreme_learning([fast])
    assert "50 % of that time" in found.text and "not faster" in found.text
    assert found.baseline["test_accuracy"]["mean"] == 1


@pytest.mark.slow
def test_radial_basis_functions_classify_digits():
    result = readouts.run_rbf(0)
    assert result["k_means"][-1] >= 0.925 and result["k_means"][-1] > result["pixels"] + 0.04
    assert result["lstsq_difference"] < 5e-3


@pytest.mark.slow
def test_random_hidden_units_classify_digits():
    result = readouts.run_extreme_learning(0)
    scores = [machine["accuracy"] for machine in result["machines"]]
    assert scores[-1] > 0.91 and scores[-1] > scores[0] + 0.05
    assert result["mlp"]["curve"][-1]["accuracy"] > 0.93
