"""Tests of recurrent cells against the papers' equations in NumPy, the adding problem, state gradients, the cards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from experiments.lecture.zoo import adding
from experiments.lecture.zoo import recurrent as zoo
from experiments.reporting import classification_report
from models import recurrent, summary
from models.errors import ModelError
from train.parallel import data_parallel
from train.parallel.devices import AXIS
from train.state import State
from train.tasks import classification

CARDS = {card.name: card for card in zoo.CARDS}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(cell, state, x, w, u, b):
    """One step in NumPy, with a separate matrix for each gate."""
    w, u, b = (np.split(each, recurrent.CELLS[cell].parts, axis=-1) for each in (w, u, b))
    s, h = [x @ kernel + bias for kernel, bias in zip(w, b, strict=True)], state[0]
    if cell == "rnn":
        return (np.tanh(s[0] + h @ u[0]),)
    if cell == "lstm":
        i, f, o = (sigmoid(s[n] + h @ u[n]) for n in range(3))
        c = f * state[1] + i * np.tanh(s[3] + h @ u[3])
        return o * np.tanh(c), c
    r, z = sigmoid(s[0] + h @ u[0]), sigmoid(s[1] + h @ u[1])
    return (z * h + (1 - z) * np.tanh(s[2] + (r * h) @ u[2]),)


def weights(layer):
    return tuple(
        np.asarray(x, np.float64) for x in (layer["input"]["kernel"], layer["recurrent"], layer["input"]["bias"])
    )


def drawn(model, shape):
    """Parameters from N(0, 0.5^2), so that no bias is zero and gates are neither open nor closed."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def rest_by_hand(cell, state, xs, layer):
    """The outputs at all times for a sequence xs [T, B, D], starting from `state`."""
    found = []
    for x in xs:
        state = by_hand(cell, state, x, *layer)
        found.append(state[0])
    return np.stack(found)


def start(cell, batch, units):
    return (np.zeros((batch, units)),) * recurrent.CELLS[cell].states


@pytest.mark.parametrize("cell, length", [("rnn", 6), ("lstm", 1), ("lstm", 6), ("gru", 6)])
def test_the_networks_equal_the_papers_equations(cell, length):
    """With two layers and rows of 3x2 values."""
    model, shape = models.create(cell, 4, hidden=(5, 3)), (2, length, 3, 2)
    params, x = drawn(model, shape), np.random.default_rng(1).normal(size=shape).astype(np.float32)
    h = x.reshape(2, length, 6).swapaxes(0, 1).astype(np.float64)
    for name, units in (("layer1", 5), ("layer2", 3)):
        h = rest_by_hand(cell, start(cell, 2, units), h, weights(params[name]))
    expected = h[-1] @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", recurrent.CELLS)
def test_initial_weights(cell):
    """Each gate is initialized separately by Glorot's rule; biases are 0 except for the gate that keeps the state."""
    layer = recurrent.Recurrent(cell, 30, 2.5)
    params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 20)))["params"]
    parts = recurrent.CELLS[cell].parts
    for kernel, inputs in ((params["input"]["kernel"], 20), (params["recurrent"], 30)):
        each = np.split(np.asarray(kernel), parts, axis=1)
        for gate in each:
            limit = np.sqrt(6 / (inputs + 30))
            assert 0.97 * limit < np.abs(gate).max() <= limit and gate.shape == (inputs, 30)
        assert len({gate.tobytes() for gate in each}) == parts
    bias = np.asarray(params["input"]["bias"]).reshape(parts, 30)
    open_gates = {"rnn": [0], "lstm": [0, 2.5, 0, 0], "gru": [0, 2.5, 0]}[cell]
    np.testing.assert_array_equal(bias, np.repeat(np.reshape(open_gates, (-1, 1)), 30, axis=1))


def test_multiply_adds_include_the_recurrent_products():
    layers = {layer.name: layer for layer in summary.layers(models.create("gru", 10, hidden=(8,)), (7, 3, 2))}
    assert layers["layer1/input"].multiply_adds == 7 * 6 * 24 and layers["layer1"].multiply_adds == 7 * 8 * 24
    assert layers["layer1"].shape == (7, 8) and layers["layer1"].parameters == 8 * 24


def test_a_network_without_hidden_layers_is_refused():
    with pytest.raises(ModelError, match=r"gru needs at least one hidden layer, not hidden=\(\)"):
        models.create("gru", 10, hidden=()).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_a_closed_gate_keeps_the_state_and_an_open_one_adds_to_it():
    """The constant error carousel: with a forget gate of 1 and an input gate of 0 the cell state is unchanged."""
    wide = jnp.array([[-200.0, 200, 0, 3]]), jnp.zeros((1, 4))
    h, c = recurrent.lstm_step((jnp.ones((1, 1)), jnp.full((1, 1), 0.7)), *wide)
    assert float(c[0, 0]) == np.float32(0.7) and float(h[0, 0]) == pytest.approx(0.5 * np.tanh(0.7))
    (h,) = recurrent.gru_step((jnp.full((1, 1), 0.3),), jnp.array([[0.0, 200, 9]]), jnp.ones((1, 3)))
    assert float(h[0, 0]) == np.float32(0.3)


@pytest.mark.parametrize("cell", recurrent.CELLS)
def test_gradients_with_respect_to_the_state_equal_finite_differences(cell):
    model, (xs, targets) = models.create(cell, 1, hidden=(3,)), adding.sequences(np.random.default_rng(0), 2, 24)
    params = drawn(model, xs.shape)
    found = adding.state_gradients(params, xs, targets, cell=cell)
    layer, inputs = weights(params["layer1"]), xs[..., 0].swapaxes(0, 1).astype(np.float64)
    logits = params["logits"]["kernel"][:, 0].astype(np.float64), float(params["logits"]["bias"][0])

    def error(state, t):
        """Each sequence's squared error, continued from the state after step t."""
        h = rest_by_hand(cell, state, inputs[t + 1 :], layer)[-1] if t + 1 < len(inputs) else state[0]
        return (h @ logits[0] + logits[1] - targets) ** 2

    for t in (5, 20, 23):
        state = start(cell, 2, 3)
        for x in inputs[: t + 1]:
            state = by_hand(cell, state, x, *layer)
        for part, array in enumerate(state):
            for unit in range(3):
                step = np.zeros_like(array)
                step[:, unit] = 1e-5
                low, high = ([*state[:part], array + sign * step, *state[part + 1 :]] for sign in (-1, 1))
                expected = (error(high, t) - error(low, t)) / 2e-5
                np.testing.assert_allclose(found[part][t, :, unit], expected, rtol=2e-3, atol=2e-6)
    norms = np.sqrt(sum(np.asarray(part, np.float64) ** 2 for part in found).sum(-1)).mean(1)
    np.testing.assert_allclose(adding.reach(params, xs, targets, cell=cell), norms / norms[-1], rtol=1e-4)


@pytest.mark.parametrize("length", [24, 41])
def test_adding_problem(length):
    xs, targets = adding.sequences(np.random.default_rng(3), 4000, length)
    numbers, marks = xs[:, :, 0, 0], xs[:, :, 1, 0]
    assert xs.shape == (4000, length, 2, 1) and xs.dtype == targets.dtype == np.float32
    np.testing.assert_allclose(targets, 0.5 + (numbers * (marks == 1)).sum(1) / 4, rtol=1e-5, atol=1e-6)
    assert (
        (marks[:, [0, -1]] == -1).all()
        and ((marks == 1).sum(1) == 2).all()
        and ((marks == 0).sum(1) == length - 4).all()
    )
    places = np.flatnonzero((marks == 1).any(0))
    assert places[0] == 1 and places[-1] == length // 2 - 1 and len(places) == length // 2 - 1
    assert np.abs(numbers).max() <= 1 and abs(numbers.mean()) < 0.01
    # For the guess 0.5: (X1 + X2) / 4 has variance 2 / 3 / 16, and |X1 + X2| < 0.16 has probability 0.08 (2 - 0.08).
    assert ((targets - 0.5) ** 2).mean() == pytest.approx(1 / 24, rel=0.05)
    assert (np.abs(targets - 0.5) < adding.RIGHT).mean() == pytest.approx(0.1536, abs=0.02)


def test_weight_images_of_a_report_are_image_rows():
    model, random = models.create("lstm", 10, hidden=(3,)), np.random.default_rng(0)
    (name, *_) = (layer.name for layer in summary.layers(model, (5, 4, 2)))
    kernel = random.normal(size=(8, 12)).astype(np.float32)
    state = State({"layer1": {"input": {"kernel": kernel}}}, {}, (), jnp.zeros(()), jax.random.key(0))
    templates = classification_report.weight_images(state, "lstm", name, (5, 4, 2))
    assert templates.shape == (12, 1, 4, 2)
    row = random.normal(size=(4, 2))
    np.testing.assert_allclose((templates * row).sum((1, 2, 3)), row.ravel() @ kernel, rtol=1e-5)


@pytest.mark.parametrize("name", ["gru", pytest.param("vit_tiny", marks=pytest.mark.slow)])
def test_no_reduction_over_devices_is_missing(name):
    """The initial state of the scan over time must be marked as varying over devices."""
    options = {"hidden": (3,)} if name == "gru" else {"width": 4, "heads": 2, "blocks": 1, "dropout": 0.5}
    optimizer = optax.sgd(0.1)
    model = models.create(name, 4, **options, **({"axis_name": AXIS} if name == "vit_tiny" else {}))
    task = classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=(8, 8, 1),
        class_names=tuple("abcd"),
        train_prepare=lambda images, keys: images / 255.0,
        eval_prepare=lambda images: images / 255.0,
        axis=AXIS,
    )
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int32)}
    data_parallel.check_reductions(task.train_step, state, batch=batch, devices=2)


@functools.cache
def tiny(cell):
    """Results of two steps of the adding problem, with made-up accuracies."""
    learned = [adding.learn("gru", 24, seed=0, steps=2, batch=4, units=3)]
    both = {"own": {"accuracy": 0.75, "adding": learned}, "other": {"accuracy": 0.5, "adding": learned}}
    plain = {**both, "other": {"accuracy": 0.5}}
    return {"cell": cell, "lengths": [24], **(plain if cell == "rnn" else both)}


def check_report(card, result):
    own = result["own"]
    found = card.report([result, result])
    assert found.numbers["test_accuracy"] == {"mean": pytest.approx(own["accuracy"]), "std": 0.0}
    assert found.numbers["adding_24_right"]["mean"] == pytest.approx(own["adding"][0]["right"])
    assert found.baseline["test_accuracy"]["mean"] == pytest.approx(result["other"]["accuracy"])
    norms = [own["adding"][0][when] for when in ("before", "after")]
    assert [len(each) for each in norms] == [24, 24] and norms[0] != norms[1] and norms[1][-1] == 1
    seen = card.name == "rnn"  # Two steps learn nothing, so all networks fail.
    assert ("was confirmed" in found.text) == seen and ("was not confirmed" in found.text) != seen
    assert "fails on" in found.text
    assert f"{100 * own['accuracy']:.1f} %" in found.text


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_reports(cell):
    check_report(CARDS[cell], tiny(cell))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_short_runs(cell):
    result = CARDS[cell].run(0, digit_steps=1, adding_steps=2, units=3, lengths=(24,))
    assert result == CARDS[cell].run(0, digit_steps=1, adding_steps=2, units=3, lengths=(24,))
    check_report(CARDS[cell], result)


def better(result, rights):
    """Replaces the accuracies in the result, given as (own, other) for each length."""
    own, other = (
        [{**result[whose]["adding"][0], "right": pair[i]} for pair in rights]
        for i, whose in enumerate(("own", "other"))
    )
    return {
        **result,
        "lengths": [24] * len(rights),
        "own": {**result["own"], "adding": own},
        "other": {**result["other"], "adding": other},
    }


@pytest.mark.parametrize("rights, seen", [([(0.95, 0.1)], True), ([(0.95, 0.5)], False), ([(0.6, 0.1)], False)])
def test_the_claim_holds_only_if_the_gates_solve_what_the_plain_network_fails_on(rights, seen):
    text = CARDS["gru"].report([better(tiny("gru"), rights)]).text
    assert ("was confirmed" in text) == seen
    assert [zoo.verdict(right, 0.15) for right in (0.9, 0.89, 0.3, 0.29)] == [
        "solves",
        "partly solves",
        "partly solves",
        "fails on",
    ]


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_card(cell):
    found = CARDS[cell].report([CARDS[cell].run(0, lengths=(30,))])
    assert "was confirmed" in found.text
    assert found.numbers["test_accuracy"]["mean"] > (0.65 if cell == "rnn" else 0.955)
