"""Tests of the zoo's Markov chain over characters."""

import collections
import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import drawing, markov
from models import markov_chain
from train.tasks import markov_chain as counting

TEXT = np.array([0, 1, 2, 1, 0, 1, 1, 2, 0, 1, 2], np.int32)


def counted(text=TEXT, symbols=3, order=2):
    return jax.jit(counting.train_step)(markov_chain.no_counts(symbols, order), text)


def test_context_counts():
    counts, sums = counted()
    assert sums["count"] == len(TEXT) - 2
    for order, table in enumerate(counts):
        windows = [tuple(TEXT[t - order : t + 1].tolist()) for t in range(2, len(TEXT))]
        expected = np.zeros((3,) * (order + 1))
        for window, count in collections.Counter(windows).items():
            expected[window] = count
        np.testing.assert_array_equal(table, expected)
    twice, _ = jax.jit(counting.train_step)(counts, TEXT)
    np.testing.assert_array_equal(twice[2], 2 * counts[2])
    nothing, sums = counted(TEXT[:2])
    assert sums["count"] == 0 and not any(table.any() for table in nothing)


def test_smoothed_probabilities():
    counts, _ = counted()
    zero, one, two = (np.asarray(table, np.float64) for table in counts)
    alone = (zero + 1.5 / 3) / (zero.sum() + 1.5)
    np.testing.assert_allclose(markov_chain.probabilities(counts[:1], strength=1.5), alone, rtol=1e-6)
    found = np.asarray(markov_chain.probabilities(counts, strength=1.5))
    for a in range(3):
        for b in range(3):
            after_b = (one[b] + 1.5 * alone) / (one[b].sum() + 1.5)
            np.testing.assert_allclose(found[a, b], (two[a, b] + 1.5 * after_b) / (two[a, b].sum() + 1.5), rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    assert two[2, 2].sum() == 0 and found.min() > 0  # Even for a context without counts.


def test_bits_and_the_most_likely_chain():
    table = markov_chain.probabilities(counted()[0], strength=1.5)
    expected = [-np.log2(table[TEXT[t - 2], TEXT[t - 1], TEXT[t]]) for t in range(2, len(TEXT))]
    np.testing.assert_allclose(markov_chain.bits(table, TEXT), expected, rtol=1e-5)
    sharp = markov_chain.probabilities(counted()[0], strength=1e-6)  # Maximum likelihood is best on the counted text.
    assert markov_chain.bits(sharp, TEXT).mean() < markov_chain.bits(table, TEXT).mean()


def test_samples_follow_the_probabilities():
    table = markov_chain.probabilities(counted(order=1)[0], strength=1.5)
    sample = jax.jit(markov_chain.sample, static_argnames="length")(
        table, jnp.array([0]), jax.random.key(0), length=6000
    )
    follow = np.zeros((3, 3))
    np.add.at(follow, (sample[:-1], sample[1:]), 1)
    np.testing.assert_allclose(follow / follow.sum(1, keepdims=True), table, atol=0.03)
    sure = jnp.zeros((3, 3, 3)).at[0, 1, 2].set(1).at[1, 2, 0].set(1).at[2, 0, 1].set(1)
    drawn = markov_chain.sample(sure, jnp.array([0, 1]), jax.random.key(0), length=5)
    np.testing.assert_array_equal(drawn, [2, 0, 1, 2, 0])
    alone = markov_chain.sample(jnp.array([0.0, 1.0]), jnp.zeros(0, jnp.int32), jax.random.key(0), length=3)
    np.testing.assert_array_equal(alone, [1, 1, 1])


def test_text_encoding_and_split():
    text = markov.book()
    assert (
        len(text) > 15_000
        and text.startswith("chapter i. down the rabbit-hole alice was beginning")
        and "  " not in text
    )
    assert markov.decode(markov.encode(text)) == text and "macmillan" not in text
    train, test = markov.split(np.arange(103), 0, blocks=10, held_out=3)
    assert train.shape == (7, 10) and test.shape == (3, 10)
    assert sorted(np.concatenate([train, test]).reshape(-1).tolist()) == list(range(100))
    assert markov.share_of_words("e rabbit, zzz the ra", text) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_report():
    result = markov.run(0, orders=(0, 1, 2), length=200)
    assert drawing.svg(markov.MARKOV_CHAIN.diagram, "x").startswith("<svg")
    findings = markov.report([result])
    findings.figure.draw_without_rendering()
    assert "Each character of context lowers" in findings.text
    means = [findings.baseline["bits_order_0"]["mean"], *(findings.numbers[f"bits_order_{k}"]["mean"] for k in (1, 2))]
    assert findings.baseline["bits_all_characters_equal"] > means[0] > means[1] > means[2] > 1
    worse = copy.deepcopy(result)
    worse["bits"][2]["test"] = 5.0
    assert "does not always lower" in markov.report([result, worse]).text


@pytest.mark.slow
def test_longer_contexts_lower_the_cross_entropy():
    numbers, baseline = markov.report([markov.run(0)])[1:3]
    bits = [baseline["bits_order_0"]["mean"], *(numbers[f"bits_order_{k}"]["mean"] for k in (1, 2, 3))]
    assert (
        bits[0] > bits[1] + 0.4 and bits[1] > bits[2] + 0.2 and bits[3] > numbers["bits_of_counted_text"]["mean"] + 0.3
    )
