"""Tests of gradients against the chain rule, initial weights against equations, and short runs of both topics."""

import contextlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.cli.app import UsageError
from experiments.lecture import backpropagation, deep_nets, initialization, topic, vanishing_gradient
from models.initializers import fans, glorot_uniform, kaiming_normal
from train.workdir import Workdir


def plain(model, inputs=784):
    """Parameters of a DeepMLP (zero biases, weights from N(0, 2 / fan_in)), seven inputs and labels."""
    random, names = np.random.default_rng(0), deep_nets.layer_names(model.depth)
    sizes = [inputs, *[model.width] * (model.depth - 1), 10]
    params = {
        name: {"kernel": random.normal(0, math.sqrt(2 / m), (m, n)).astype(np.float32), "bias": np.zeros(n, np.float32)}
        for name, m, n in zip(names, sizes[:-1], sizes[1:], strict=True)
    }
    return params, random.normal(size=(7, inputs, 1, 1)).astype(np.float32), np.arange(7)


def test_the_text_on_backpropagation_follows_the_numbers():
    assert backpropagation.agreeing_digits(5e-6) == pytest.approx(5.301, abs=1e-3)
    assert backpropagation.agreeing_digits(0.0) == 16 and backpropagation.agreeing_digits(30.0) == 0
    errors = {"c1": [2e-7, 1e-15], "all": [5.7e-6, 1.1e-14]}
    accuracy = {"backpropagation": {"mean": 0.9663, "std": 0.002}, "autodiff": {"mean": 0.9671, "std": 0.002}}
    say = backpropagation.description
    text = say(errors, accuracy, {"backpropagation": 16.4, "autodiff": 9.1}, steps=400, over="the mean over 3 seeds")
    assert "5.7·10⁻⁶ in single and 1.1·10⁻¹⁴ in double precision: about 5 and 14 digits agree" in text[0]
    assert "for 400 steps, LeNet reaches accuracies that differ by 0.08 percentage points" in text[1]
    assert "shows the mean over 3 seeds (" in text[1] and "takes longer with the equations" in text[2]
    accuracy["autodiff"] = accuracy["backpropagation"]
    text = say(errors, accuracy, {"backpropagation": 9.0, "autodiff": 9.1}, steps=400, over="one seed")
    assert len(text) == 2 and "reaches the same accuracy both ways. " in text[1] and "shows one seed (" in text[1]


@pytest.mark.parametrize("name", initialization.SHAPES)
def test_initial_weights_follow_the_equations(name):
    """m is the fan-in and n the fan-out; both include the window of a convolution."""
    shape = initialization.SHAPES[name]
    m, n = (784, 128) if name.startswith("dense") else (3 * 3 * 64, 3 * 3 * 128)
    assert fans(shape) == (m, n)
    key = jax.random.key(1)
    for draw, bound in ((glorot_uniform, math.sqrt(6 / (m + n))), (initialization.standard, 1 / math.sqrt(m))):
        w = np.asarray(draw(key, shape), np.float64)
        assert w.shape == shape and np.abs(w).max() <= bound * (1 + 1e-6)
        assert np.abs(w).max() > 0.999 * bound and abs(w.mean()) < 0.01 * bound
        np.testing.assert_allclose(w.var(), bound**2 / 3, rtol=0.02)  # U(-b, b) has variance b^2 / 3.
    for slope in (0.0, 0.25, 1.0):
        w = np.asarray(initialization.kaiming(slope)(key, shape), np.float64)
        expected = 2 / ((1 + slope**2) * m)
        np.testing.assert_allclose(w.var(), expected, rtol=0.02)
        assert abs(w.mean()) < 0.02 * math.sqrt(expected)
        np.testing.assert_allclose((w**4).mean() / w.var() ** 2, 3.0, rtol=0.05)  # Kurtosis of a normal distribution.
    np.testing.assert_array_equal(initialization.kaiming(0.0)(key, shape), kaiming_normal(key, shape))


def test_kaiming_preserves_the_signal_of_leaky_relu():
    """E[s^2] of the pre-activations is the same in each layer, for any slope (He et al. 2015, eq. 15)."""
    for slope in (0.0, 0.25, 0.9):
        s = np.asarray(jax.random.normal(jax.random.key(0), (200, 900)))
        w = np.asarray(initialization.kaiming(slope)(jax.random.key(1), (900, 900)))
        after = np.where(s > 0, s, slope * s) @ w
        np.testing.assert_allclose((after**2).mean(), (s**2).mean(), rtol=0.05)


def test_gradient_norms_against_the_chain_rule():
    """A three-layer sigmoid network by hand: delta_l = (W delta_{l+1}) s (1 - s), with gradient h delta^T."""
    model = deep_nets.DeepMLP(3, 5, "sigmoid")
    params, images, labels = plain(model)
    w1, w2, w3 = (np.asarray(params[name]["kernel"], np.float64) for name in ("dense1", "dense2", "logits"))
    x = images.reshape(7, -1)
    h1 = 1 / (1 + np.exp(-x @ w1))
    h2 = 1 / (1 + np.exp(-h1 @ w2))
    scores = np.exp(h2 @ w3)
    delta3 = scores / scores.sum(1, keepdims=True) - np.eye(10)[labels]
    delta2 = delta3 @ w3.T * h2 * (1 - h2)
    delta1 = delta2 @ w2.T * h1 * (1 - h1)
    expected = [np.linalg.norm(h.T @ delta / 7) for h, delta in ((x, delta1), (h1, delta2), (h2, delta3))]
    np.testing.assert_allclose(deep_nets.gradient_norms(params, images, labels, model=model), expected, rtol=1e-4)
    for ours, theirs in zip(deep_nets.hidden_activations(params, images, model=model), (h1, h2), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    found = deep_nets.hidden_gradients(params, images, labels, model=model)
    for ours, theirs in zip(found, (delta1, delta2), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-7)


def test_relu_layers_share_one_product():
    """Without biases a ReLU network is homogeneous in each kernel, so <W, dL/dW> is the same for all layers. That is
    why the ratio of the norms does not vanish even when Glorot initialization makes all of them small."""
    model = deep_nets.DeepMLP(4, 16, "relu")
    params, images, labels = plain(model)
    grads = deep_nets.gradients(params, images, labels, model=model)
    products = [float((params[n]["kernel"] * grads[n]["kernel"]).sum()) for n in params]
    assert abs(products[0]) > 1e-3
    np.testing.assert_allclose(products, products[0], rtol=1e-3)


def test_tasks_differ_only_in_their_weights():
    digits = deep_nets.digits()
    assert abs(float(digits.prepare(digits.images).mean())) < 1e-3
    images, labels = deep_nets.some(digits, 100)
    assert images.shape == (100, 28, 28, 1) and np.bincount(labels).tolist() == [10] * 10
    tasks = deep_nets.tasks(2, 8, ["relu", "tanh"], digits, optax.sgd(0.1))
    for kind, other in (("relu", "tanh"), ("tanh", "relu")):
        one, two = tasks[kind, "glorot"], tasks[kind, "kaiming"]
        assert one.train_step is two.train_step is not tasks[other, "glorot"].train_step
        assert one.init is tasks[other, "glorot"].init is not two.init
    for name, bounded in (("glorot", True), ("kaiming", False)):
        kernel = jax.jit(tasks["relu", name].init)(jax.random.key(5)).params["dense1"]["kernel"]
        assert (float(jnp.abs(kernel).max()) <= math.sqrt(6 / (784 + 8))) == bounded
    curve = deep_nets.train(tasks["relu", "kaiming"], digits, steps=5, seed=0, every=2)
    assert [row["step"] for row in curve] == [0, 2, 4, 5] and curve[-1]["loss"] < curve[0]["loss"]


def test_formatting_of_numbers_and_verdicts():
    words = {1.2e-12: "1.2·10⁻¹²", 0.034: "0.034", 3.75: "3.8", 250.0: "250", 4.2e6: "4.2·10⁶", 0.0: "0"}
    assert {value: deep_nets.power_of_ten(value) for value in words} == words
    assert deep_nets.tick(1e-11) == "10⁻¹¹"
    expected = {0.1: "does not learn", 0.3: "learns little", 0.9: "learns"}
    assert {value: deep_nets.verdict(value) for value in expected} == expected


def test_relative_norms():
    """A network whose ReLUs are all inactive has no gradient at all."""
    found = vanishing_gradient.relative([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [np.inf, 1.0, np.inf]])
    np.testing.assert_array_equal(found, [[0.5, 1.5, 1.0], [0.0, 0.0, 0.0], [np.nan, 0.0, np.nan]])


def test_numbers_over_seeds(tmp_path):
    with contextlib.closing(Workdir(str(tmp_path))) as workdir:
        several, single = (topic.Topic(workdir, {"seeds": seeds}) for seeds in (3, 1))
    value = {"mean": 0.956, "std": 0.0123}
    assert [several.percent(value), single.percent(value)] == ["95.6 ± 1.2 %", "95.6 %"]
    assert [several.number(value), several.number(value, 10, 1)] == ["0.96 ± 0.01", "9.6 ± 0.1"]
    assert several.over_seeds() == "mean ± standard deviation over 3 seeds"
    assert [several.over_seeds("mean"), single.over_seeds("mean")] == ["mean over 3 seeds", "one seed"]
    assert [vanishing_gradient.listed(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(topic, "start_cache", lambda: None)

    def run(name, module, where="w", **options):
        options = {key: default for key, (default, _) in module.OPTIONS.items()} | {"seeds": 1, **options}
        assert topic.run(name, module.experiment, workdir=str(tmp_path / where), options=options) == 0
        numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
        lesson = json.loads((tmp_path / where / "lesson.json").read_text())
        assert all(
            (tmp_path / where / "figures" / f"{drawn}.png").stat().st_size > 5000 for drawn, *_ in lesson["figures"]
        )
        tables = {title: rows for title, _, rows in lesson["tables"]}
        return numbers, " ".join(lesson["text"]), tables, lesson["guesses"]

    return run


@pytest.mark.slow
def test_vanishing_gradient(start, monkeypatch):
    monkeypatch.setattr(vanishing_gradient, "AFTER", 0)
    monkeypatch.delitem(vanishing_gradient.LINES, "rectified_tanh")
    monkeypatch.setattr(vanishing_gradient, "RATES", (1.0,))
    numbers, text, tables, guesses = start("vanishing_gradient", vanishing_gradient, steps=2, hidden_layers=2)
    assert numbers["layers"] == 3 and len(numbers["ratio"]) == 6
    ratio = {name: value["mean"] for name, value in numbers["ratio"].items()}
    assert numbers[vanishing_gradient.MEASURED[1]] == numbers["ratio"]  # AFTER is 0 here.
    assert ratio["sigmoid_glorot"] < 0.5 < ratio["relu_kaiming"]
    assert set(numbers["accuracy"]) == {"relu", "sigmoid"} and set(numbers["sigmoid_rates"]) == {"1"}
    assert "the network with ReLU does not learn" in text or numbers["accuracy"]["relu"]["mean"] >= 0.2
    rows = {(name, init): cells for name, init, *cells in tables["Gradient norms, one seed"]}
    assert float(rows["ReLU", "Kaiming"][0]) == pytest.approx(ratio["relu_kaiming"], rel=0.1)
    learned = [100 * numbers["accuracy"][name]["mean"] for name in ("relu", "sigmoid")]
    assert "The training accuracies are {:.1f} % and {:.1f} % (one seed)".format(*learned) in text
    assert [guess[-1] for guess in guesses] == pytest.approx([-math.log10(ratio["sigmoid_glorot"]), learned[1]])
    with pytest.raises(UsageError, match="--hidden_layers=51"):
        start("vanishing_gradient", vanishing_gradient, where="deep", hidden_layers=51)


@pytest.mark.slow
def test_initialization(start, monkeypatch):
    monkeypatch.setattr(initialization, "WIDTH_TANH", 100)
    numbers, text, tables, guesses = start("initialization", initialization, steps=3, width=16, depths="4")
    for what, order in (("activations", 1), ("gradients", -1)):
        ratio = {name: value["mean"] for name, value in numbers["tanh"][what]["first_over_last"].items()}
        assert order * ratio["standard"] > order * ratio["glorot"]
        assert len(numbers["tanh"][what]["std_by_layer"]["glorot"]) == 5
    for _, what, m, n, expected, found in tables["Random weights and their equations"]:
        assert (m, n) in ((784, 128), (9 * 64, 9 * 128))
        np.testing.assert_allclose(float(found), float(expected), rtol=0.02, err_msg=what)
    deep = numbers["relu"]["4"]
    assert deep["glorot"]["signal"]["mean"] < 0.7 < deep["kaiming"]["signal"]["mean"]
    assert deep["glorot"]["steps_to_half"] is None
    assert "Here the network with 4 layers does not learn from Glorot initialization" in text
    glorot, kaiming = tables["ReLU networks, one seed"]
    assert glorot[:3] == ["4", "Glorot", "0.5"] and kaiming[:3] == ["4", "Kaiming", "1"] and glorot[4] == "not reached"
    assert glorot[5] == f"{100 * deep['glorot']['accuracy']['mean']:.1f} %"
    (spread,) = (rows for title, rows in tables.items() if title.startswith("tanh network"))
    assert [row[:2] for row in spread[:2]] == [["activations", "older rule"], ["activations", "Glorot initialization"]]
    older = [float(value) for value in spread[0][2:]]
    np.testing.assert_allclose(older, numbers["tanh"]["activations"]["std_by_layer"]["standard"], rtol=0.06)
    assert guesses[0][-1] == pytest.approx(100 * older[-1] / older[0], rel=0.1)
    assert guesses[1][0] == "layers4" and guesses[1][-1] == pytest.approx(100 * deep["glorot"]["accuracy"]["mean"])
    for depths in ("2", "", "22,x"):
        with pytest.raises(UsageError, match=f"--depths={depths}: must be comma-separated"):
            start("initialization", initialization, where=f"bad{depths}", depths=depths)
