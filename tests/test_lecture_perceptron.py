"""Tests of the topics on single units: Rosenblatt's rule, logistic regression, XOR, activations, softmax."""

import contextlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture import activations, perceptron, points, softmax, topic
from train.tasks import losses
from train.workdir import Workdir


def run_small(module, path, *, seeds=1, **options):
    """Returns the TopicResult of a short run, after checking that it has the form that the lecture page needs."""
    with contextlib.closing(Workdir(str(path))) as workdir:
        this_topic = topic.Topic(workdir, {"seeds": seeds, **options})
        result = module.experiment(this_topic)
    assert 2 <= len(result.text) <= 5 and json.loads(json.dumps(result.numbers)) == result.numbers
    if seeds == 1:  # Its standard deviation is unknown.
        assert not any("±" in str(part) for part in (result.text, result.tables))
    assert all(len(row) == len(header) for _, header, rows in result.tables for row in rows)
    for name, _, _ in this_topic.figures:
        assert (path / "figures" / f"{name}.png").stat().st_size > 10_000
    return result


def test_point_data_sets():
    x, y = points.draw("separable", 500, seed=1, split="train")
    height = x @ points.LINE[:2] + points.LINE[2]
    assert ((height > 0) == y).all() and np.abs(height).min() > 0.99 * points.GAP and 0.2 < y.mean() < 0.8
    x, y = points.draw("xor", 500, seed=1, split="train")
    assert ((x.prod(1) < 0) == y).mean() > 0.97
    again, _ = points.draw("xor", 500, seed=1, split="train")
    other, _ = points.draw("xor", 500, seed=1, split="test")
    assert (again == x).all() and not (other[:, None] == x[None]).all(-1).any()
    reference = pytest.importorskip("sklearn.datasets")
    for count in (7, 10):
        ours, theirs = (
            points.moons(np.random.default_rng(0), count, noise=0.0),
            reference.make_moons(count, shuffle=False),
        )
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-12)
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_rosenblatts_rule():
    """Single steps by hand; on separable points the number of corrections is within the bound of Novikoff's theorem."""
    params = {"w": jnp.array([1.0, -1.0]), "b": jnp.array(0.5)}
    correct = jax.jit(points.correct)
    for x, y, w, b in (
        ((2.0, 1.0), 1.0, (1.0, -1.0), 0.5),  # Correct: no change.
        ((2.0, 1.0), 0.0, (-1.0, -2.0), -0.5),
        ((0.0, 3.0), 1.0, (1.0, 2.0), 1.5),
        ((0.0, 0.5), 1.0, (1.0, -0.5), 1.5),  # On the boundary the output is 0.
    ):
        after = correct(params, np.array(x, np.float32), np.float32(y))
        np.testing.assert_allclose(after["w"], w)
        np.testing.assert_allclose(after["b"], b)

    x, y = points.draw("separable", 60, seed=0, split="train")
    params, corrections = {"w": jnp.zeros(2), "b": jnp.zeros(())}, 0
    for _ in range(100):
        wrong = 0
        for point, label in zip(x, y, strict=True):
            after = correct(params, point, label)
            wrong, params = wrong + int(after["b"] != params["b"]), after
        corrections += wrong
        if not wrong:
            break
    radius, gap = (x**2).sum(1).max() + 1, np.abs(x @ points.LINE[:2] + points.LINE[2]).min()
    assert not wrong and 0 < corrections <= radius * (points.LINE**2).sum() / gap**2
    fitted = points.fit(jax.random.key(0), x, y, method="perceptron", steps=100, hidden=1)
    assert ((points.score(fitted, x) > 0) == y).all()


def test_logistic_regression_is_gradient_descent():
    x, y = points.draw("moons", 40, seed=0, split="train")
    params = {"w": jnp.array([0.3, -0.7]), "b": jnp.array(0.2)}

    def loss(params):
        return losses.cross_entropy(points.score(params, x)[:, None], y.astype(np.int32)).mean()

    gradients, after = jax.jit(jax.grad(loss))(params), jax.jit(points.descend)(params, x, y, rate=0.5)
    for name in params:
        np.testing.assert_allclose(after[name], params[name] - 0.5 * gradients[name], rtol=1e-5)


@pytest.mark.slow
def test_xor_needs_the_hidden_layer(tmp_path):
    result = run_small(perceptron, tmp_path, steps=120, points=100, hidden=8)
    numbers, shown = result.numbers, result.widgets["playground"]
    right = {name: value["mean"] for name, value in numbers.items()}
    assert right["xor_mlp"] > 0.95 and max(right["xor_perceptron"], right["xor_logistic"]) < 0.8
    assert min(right[f"separable_{method}"] for method in perceptron.METHODS) > 0.95
    assert right["moons_mlp"] > right["moons_logistic"] > 0.7
    assert result.guesses[0].value == 100 * right["xor_perceptron"]
    x, y = points.draw("moons", 100, seed=0, split="train")
    assert [shown[name]["label"] for name in shown] == ["separable", "XOR", "two moons"]
    np.testing.assert_allclose(shown["moons"]["x"], x, atol=6e-5)
    np.testing.assert_array_equal(shown["moons"]["y"], y)


@pytest.mark.slow
def test_derivatives_and_saturation(tmp_path):
    z = np.linspace(-3, 3, 10)  # Without 0, where two functions have a kink.
    for name, function in activations.ACTIVATIONS.items():
        small = jax.jit(lambda z, f=function: (f(z + 1e-2) - f(z - 1e-2)) / 2e-2)(z)
        np.testing.assert_allclose(activations.derivative(name, z), small, atol=2e-3)
    for std in (1, 3):
        tail = math.erfc(math.atanh(math.sqrt(0.9)) / std / math.sqrt(2))
        half = math.erfc(2 * math.atanh(math.sqrt(0.9)) / std / math.sqrt(2))
        for name, share, positive in (
            ("tanh", tail, tail),
            ("sigmoid", half, half),  # sigmoid(2 z) = (1 + tanh z) / 2
            ("relu", 0.5, 0.0),
            ("leaky_relu", 0.5, 0.0),
            ("rectified_tanh", 0.5 + tail / 2, tail),
        ):
            assert activations.saturated(name, std=std) == pytest.approx(share, abs=1e-4)
            some = activations.saturated(name, std=std, positive=True)
            assert some == pytest.approx(positive, abs=1e-4)
    result = run_small(activations, tmp_path)
    numbers, (largest, share) = result.numbers, (guess.value for guess in result.guesses)
    assert largest == pytest.approx(0.25, abs=1e-6)
    assert share == pytest.approx(100 * math.erfc(math.atanh(math.sqrt(0.9)) / 3 / math.sqrt(2)), abs=0.01)
    assert numbers["sigmoid"]["largest_derivative"] == pytest.approx(0.25, abs=1e-6)
    assert numbers["leaky_relu"]["smallest_derivative"] == pytest.approx(0.01)


def test_softmax_and_entropy():
    logits = np.array([[1.0, 2.0, -1.0], [1000.0, 0.0, 999.0]])
    np.testing.assert_allclose(softmax.softmax(logits), jax.nn.softmax(logits), rtol=1e-6)
    np.testing.assert_allclose(softmax.softmax(logits, 4.0), jax.nn.softmax(logits / 4), rtol=1e-6, atol=1e-12)
    assert float(softmax.entropy(np.full(10, 0.1))) == pytest.approx(math.log(10))
    assert f"{softmax.entropy(np.eye(4)[0])}" == "0.0"
    nats = [float(softmax.entropy(softmax.softmax(logits[0], t))) for t in (1e-3, 0.25, 1.0, 4.0, 1e4)]
    assert nats == sorted(nats) and nats[0] == 0 and nats[-1] == pytest.approx(math.log(3))


def test_strongest_images():
    logits = np.array([[0.0, 5.0], [2.0, -1.0], [3.0, 4.0], [1.0, 9.0]])
    indices = softmax.strongest(logits, 2)
    np.testing.assert_array_equal(indices, [[2, 1], [3, 0]])
    np.testing.assert_allclose(softmax.own_share(indices, np.array([1, 0, 1, 0])), [0.5, 0.5])
    np.testing.assert_allclose(softmax.own_share(indices, np.array([1, 0, 0, 0])), [1.0, 0.5])


def test_examples_are_ordered_by_entropy(monkeypatch):
    """The predictions of 101 digits are the more certain the larger the first logit."""
    logits = np.zeros((101, 10))
    logits[:, 0] = np.random.default_rng(0).permutation(101) / 10
    monkeypatch.setattr(softmax, "digit_logits", lambda seed, steps: (None, logits))
    found = softmax.examples(0, 1)
    assert [round(10 * z[0]) for z in found["logits"]] == [0, 0, 1, 5, 25, 100]
    np.testing.assert_array_equal(logits[found["indices"]], found["logits"])
    images, labels = np.full((101, 28, 28, 1), 51, np.uint8), np.arange(101)
    data = softmax.widget(images, labels, found)
    assert data["labels"] == found["indices"] and data["logits"] == found["logits"]
    assert np.shape(data["digits"]) == (6, 28, 28) and np.unique(data["digits"]) == [0.2]


@pytest.mark.slow
def test_output_units(tmp_path):
    result = run_small(softmax, tmp_path, steps=15)
    share, untrained = result.numbers["share_of_own_class"]["mean"], result.numbers["share_untrained"]["mean"]
    assert share > 0.5 > untrained
    ((_, header, rows),) = result.tables
    assert header == ["network", "all units", "lowest unit, mean over seeds"]
    assert [row[0] for row in rows] == ["untrained", "trained"] and rows[1][1] == f"{100 * share:.1f} %"
    assert [guess.value for guess in result.guesses] == [result.numbers["entropy_T4"], 100 * share]
    least = softmax.entropy(softmax.softmax(result.widgets["temperature"]["logits"]))
    assert list(least) == sorted(least, reverse=True) and least[0] == pytest.approx(result.numbers["entropy_T1"])
    assert result.numbers["entropy_T0.25"] < result.numbers["entropy_T1"] < result.numbers["entropy_T4"] < math.log(10)
