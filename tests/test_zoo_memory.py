"""Tests of the neural Turing machine: its equations and the LSTM's against NumPy, the copy task, a full run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import memory as zoo
from models import memory
from train.state import parameter_count

B, N, W, H = 3, 5, 4, 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def cells(random):
    return random.standard_normal((B, N, W)).astype(np.float32)


@pytest.fixture
def weighting(random):
    return softmax(random.standard_normal((B, N))).astype(np.float32)


def close(found, expected, **tolerance):
    np.testing.assert_allclose(found, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_read_is_equation_2(cells, weighting):
    expected = np.zeros((B, W))
    for b, i in np.ndindex(B, N):
        expected[b] += weighting[b, i] * cells[b, i]
    close(memory.read(cells, weighting), expected)


def test_write_is_equations_3_and_4(cells, weighting, random):
    erase, add = (random.uniform(0, 1, (B, W)).astype(np.float32) for _ in range(2))
    expected = np.zeros((B, N, W))
    for b, i in np.ndindex(B, N):
        kept = cells[b, i] * (1 - weighting[b, i] * erase[b])
        expected[b, i] = kept + weighting[b, i] * add[b]
    close(memory.write(cells, weighting, erase, add), expected)
    one = np.eye(N, dtype=np.float32)[[0, 2, 4]]  # A sharp head that erases everything replaces only its row.
    after = np.asarray(memory.write(cells, one, np.ones((B, W), np.float32), add))
    for b, row in enumerate((0, 2, 4)):
        close(after[b, row], add[b])
        close(np.delete(after[b], row, 0), np.delete(cells[b], row, 0))


def test_content_is_equations_5_and_6(cells, random):
    key, strength = random.standard_normal((B, W)).astype(np.float32), np.array([0.0, 1.5, 20.0], np.float32)
    cosine, expected = np.zeros((B, N)), np.zeros((B, N))
    for b in range(B):
        for i in range(N):
            u, v = key[b], cells[b, i]
            cosine[b, i] = u @ v / (np.sqrt(u @ u) * np.sqrt(v @ v))
        raised = np.exp(strength[b] * cosine[b])
        expected[b] = raised / raised.sum()
    close(memory.similarity(key, cells), cosine)
    close(memory.by_content(key, strength, cells), expected, rtol=1e-4)
    close(memory.by_content(key, strength, cells)[0], np.full(N, 1 / N))  # With strength 0 all rows are equal.


def test_interpolation_is_equation_7(weighting, random):
    before, gate = softmax(random.standard_normal((B, N))).astype(np.float32), np.array([0, 0.25, 1], np.float32)
    expected = [g * new + (1 - g) * old for g, new, old in zip(gate, weighting, before, strict=True)]
    close(memory.interpolated(weighting, before, gate), expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_shift_is_equation_8(rows, random):
    weighting = softmax(random.standard_normal((B, rows))).astype(np.float32)
    shift = softmax(random.standard_normal((B, 3))).astype(np.float32)
    expected = np.zeros((B, rows))
    for b, i, j in np.ndindex(B, rows, rows):
        # s(i - j) for the shifts -1, 0 and 1, modulo the number of rows; with few rows, several shifts coincide.
        share = sum(shift[b, n] for n, move in enumerate(memory.SHIFTS) if (i - j - move) % rows == 0)
        expected[b, i] += weighting[b, j] * share
    close(memory.shifted(weighting, shift), expected)


def test_the_last_shift_moves_a_head_forward():
    one = np.eye(4, dtype=np.float32)[[3]]
    close(memory.shifted(one, np.array([[0, 0, 1]], np.float32)), [[1, 0, 0, 0]])
    close(memory.shifted(one, np.array([[1, 0, 0]], np.float32)), [[0, 0, 1, 0]])


def test_sharpening_is_equation_9(weighting):
    power = np.array([1.0, 2.0, 7.5], np.float32)
    expected = [w**p / (w**p).sum() for w, p in zip(weighting, power, strict=True)]
    close(memory.sharpened(weighting, power), expected, rtol=1e-4)


def test_gradients_are_finite_where_weightings_and_memory_are_zero():
    def loss(weighting, cells, power):
        found = memory.by_content(cells[:, 0], power, cells) + memory.sharpened(weighting, power)
        return (found * jnp.arange(float(N))[None]).sum()

    one, zero = jnp.eye(N)[:1], jnp.zeros((1, N, W))
    assert all(np.isfinite(x).all() for x in jax.jit(jax.grad(loss, (0, 1, 2)))(one, zero, jnp.ones(1)))


def by_hand(raw, before, cells):
    """The weighting of a head from its layer's outputs [W + 6] for one example, by the paper's equations."""
    key, strength, gate = np.tanh(raw[:W]), softplus(raw[W]), sigmoid(raw[W + 1])
    power, shift = 1 + softplus(raw[W + 2]), softmax(raw[W + 3 :])
    cosine = cells @ key / (np.linalg.norm(cells, axis=1) * np.linalg.norm(key))
    between = gate * softmax(strength * cosine) + (1 - gate) * before
    moved = sum(share * np.roll(between, move) for share, move in zip(shift, (-1, 0, 1), strict=True))
    return moved**power / (moved**power).sum()


def lstm_by_hand(layer, x, output, cell):
    sums = x @ layer["input"]["kernel"] + layer["input"]["bias"] + output @ layer["recurrent"]
    i, f, o, g = np.split(sums, 4)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def test_lstm_equals_its_equations(random):
    model, x = memory.LSTM(outputs=3, units=H), random.standard_normal((B, 4, 2)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    layer, logits = params["layer1"], params["logits"]
    assert layer["input"]["kernel"].shape == (2, 4 * H) and layer["recurrent"].shape == (H, 4 * H)
    np.testing.assert_array_equal(layer["input"]["bias"], [0, 0, 1, 1, 0, 0, 0, 0])  # Forget gates are initially open.
    found = jax.jit(model.apply)({"params": params}, x)
    for b in range(B):
        output = cell = np.zeros(H)
        for t in range(4):
            output, cell = lstm_by_hand(layer, x[b, t], output, cell)
            close(found[b, t], output @ logits["kernel"] + logits["bias"], rtol=1e-4)


def test_machine_equals_its_equations(random):
    model = memory.NeuralTuringMachine(outputs=3, units=H, rows=N, width=W)
    x = random.standard_normal((2, 4, 2)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes)
    found = jax.jit(functools.partial(model.apply, method="with_weightings"))({"params": params}, x)
    np.testing.assert_array_equal(found[0], jax.jit(model.apply)({"params": params}, x))
    cell, size = params["cell"], W + 6
    for b in range(2):
        output, state, seen, cells = np.zeros(H), np.zeros(H), np.zeros(W), np.full((N, W), memory.BLANK)
        reads = writes = np.eye(N)[0]
        for t in range(4):
            output, state = lstm_by_hand(cell["controller"], np.concatenate([x[b, t], seen]), output, state)
            raw = output @ cell["heads"]["kernel"] + cell["heads"]["bias"]
            writes = by_hand(raw[size : 2 * size], writes, cells)
            erase, add = sigmoid(raw[2 * size : 2 * size + W]), np.tanh(raw[2 * size + W :])
            cells = cells * (1 - np.outer(writes, erase)) + np.outer(writes, add)
            reads = by_hand(raw[:size], reads, cells)
            seen = reads @ cells
            logits = np.concatenate([output, seen]) @ cell["logits"]["kernel"] + cell["logits"]["bias"]
            for values, expected in zip(found, (logits, reads, writes), strict=True):
                close(values[b, t], expected, rtol=1e-3, atol=1e-4)


def test_sequences():
    batch = jax.device_get(zoo.sequences(jax.random.key(0), count=200, longest=3, shortest=1, bits=2))
    assert batch.inputs.shape == (200, 7, 3) and batch.targets.shape == (200, 7, 2) and batch.mask.shape == (200, 7)
    seen = set()
    for inputs, targets, mask in zip(*batch, strict=True):
        (length,) = np.flatnonzero(inputs[:, 2])
        seen.add(int(length))
        expected_mask, expected = np.zeros(7), np.zeros((7, 2))
        expected_mask[length + 1 : 2 * length + 1] = 1
        expected[length + 1 : 2 * length + 1] = inputs[:length, :2]
        np.testing.assert_array_equal(mask, expected_mask)
        np.testing.assert_array_equal(targets, expected)
        assert not inputs[length:, :2].any() and set(np.unique(inputs)) <= {0, 1}
    assert seen == {1, 2, 3}
    fixed = zoo.sequences(jax.random.key(0), count=20, longest=3)
    assert (np.asarray(fixed.inputs)[:, 3, -1] == 1).all() and 0.4 < np.asarray(fixed.inputs)[:, :3, :-1].mean() < 0.6


def test_wrong_bits():
    batch = zoo.sequences(jax.random.key(0), count=4, longest=2)
    logits = np.asarray(batch.targets) - 0.5
    np.testing.assert_array_equal(zoo.wrong_bits(logits, batch), np.zeros(4))
    logits[1, 3, 0] *= -1
    logits[1, 0, 0] *= -1  # Nothing counts before the end marker.
    logits[2] *= -1
    np.testing.assert_array_equal(zoo.wrong_bits(logits, batch), [0, 1, 2 * zoo.BITS, 0])


@pytest.mark.parametrize(
    "machine, lstm, verdict",
    [
        ((0.0, 0.9), (5.0, 40.0), "to longer sequences; the LSTM does not"),
        ((0.0, 7.0), (5.0, 40.0), "with some errors"),
        ((1.0, 1.0), (0.0, 40.0), "did not learn to copy"),
        ((0.0, 20.0), (5.0, 40.0), "no advantage"),
        ((0.0, 20.0), (5.0, 45.0), "fewer errors than the LSTM, but it does not copy them"),
        ((0.0, 0.0), (0.0, 2.0), "to longer sequences; the LSTM makes more errors"),
    ],
)
def test_report(machine, lstm, verdict):
    """The verdict depends on the wrong bits in sequences of 8 and 16 vectors."""
    steps, rows = 33, 24
    made = {"steps": 10, "longest": 8, "input": np.zeros((steps, 7)).tolist()}
    made |= {name: np.full((steps, rows), 1 / rows).tolist() for name in ("reads", "writes")}
    for name, (short, long) in (("machine", machine), ("lstm", lstm)):
        made[name] = {"length_8": short, "length_16": long, "weights": 9, "output": np.zeros((steps, 6)).tolist()}
    findings = zoo.report([made])
    assert verdict in findings.text
    assert findings.numbers["wrong_bits_of_48"]["mean"] == machine[0]
    assert findings.baseline["wrong_bits_of_96"]["mean"] == lstm[1]


def test_both_networks_have_about_equally_many_weights():
    machine, lstm = (
        parameter_count(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3, zoo.BITS + 1)))["params"])
        for model in zoo.networks(zoo.LONGEST).values()
    )
    assert abs(machine / lstm - 1) < 0.02


def test_loss_and_gradient_of_a_training_step():
    """Compares the loss and its gradient with NumPy; only bits inside the mask count."""
    batch = zoo.sequences(jax.random.key(0), count=2, longest=2, shortest=1)
    model = memory.LSTM(zoo.BITS, 2)
    params = jax.jit(model.init)(jax.random.key(0), batch.inputs)["params"]
    (loss, (_, sums)), gradients = jax.jit(functools.partial(zoo.autodiff, model=model))(params, {}, batch, None)
    p, y = (
        sigmoid(np.asarray(jax.jit(model.apply)({"params": params}, batch.inputs), np.float64)),
        np.asarray(batch.targets),
    )
    mask = np.broadcast_to(np.asarray(batch.mask)[:, :, None], p.shape)
    close(loss, -((y * np.log(p) + (1 - y) * np.log(1 - p)) * mask).sum() / mask.sum())
    close(gradients["logits"]["bias"], ((p - y) * mask).sum((0, 1)) / mask.sum())
    assert float(sums["count"]) == mask.sum() and float(sums["wrong"]) == (((p > 0.5) != y) * mask).sum()


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_machine_copies_sequences_of_twice_the_length():
    findings = zoo.report([zoo.run(0)])
    short, long = f"wrong_bits_of_{zoo.LONGEST * zoo.BITS}", f"wrong_bits_of_{2 * zoo.LONGEST * zoo.BITS}"
    assert findings.numbers[short]["mean"] < 0.5 and findings.numbers[long]["mean"] < 15
    assert findings.baseline[long]["mean"] > 20
    assert "generalizes to longer" in findings.text
