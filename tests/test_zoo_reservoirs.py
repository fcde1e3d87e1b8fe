"""Tests of reservoirs: echo states and spiking neurons against loops, NARMA-10 against its equation, the cards."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import reservoirs
from models import reservoir


def test_echo_states_equal_the_equation():
    network = reservoir.random_echo_state(np.random.default_rng(1), 2, 30, density=0.2, scale=0.5)
    recurrent, inputs, bias = (np.asarray(leaf, np.float64) for leaf in network)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(recurrent)).max(), 1, rtol=1e-5)
    assert 0.1 < (recurrent != 0).mean() < 0.3
    assert np.abs(inputs).max() <= 0.5 and np.abs(bias).max() <= 0.5 and np.abs(inputs).max() > 0.4
    random = np.random.default_rng(0)
    u, start = random.normal(size=(6, 2)), random.normal(size=30)
    for radius, first in ((0.7, None), (1.3, start)):
        x, expected = np.zeros(30) if first is None else first, []
        for t in range(6):
            x = np.tanh(radius * recurrent.T @ x + inputs.T @ u[t] + bias)
            expected.append(x)
        given = None if first is None else jnp.asarray(first, jnp.float32)
        found = reservoir.echo_states(network, jnp.asarray(u, jnp.float32), radius, given)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_narma10_equals_its_equation():
    u, target = reservoirs.narma10(np.random.default_rng(3), 60)
    y = np.concatenate([[0], target])
    assert not y[:10].any() and 0 <= u.min() and u.max() <= 0.5
    for t in range(9, 60):
        past = sum(y[t - i] for i in range(10))
        assert y[t + 1] == pytest.approx(0.3 * y[t] + 0.05 * y[t] * past + 1.5 * u[t - 9] * u[t] + 0.1)
    assert reservoirs.nrmse(np.full(60, target.mean()), target) == pytest.approx(1)
    assert reservoirs.nrmse(target, target) == 0


def test_diverging_sequences_are_drawn_again():
    class Largest:
        """First draws the largest inputs, for which NARMA-10 diverges."""

        calls = 0

        def uniform(self, low, high, count):
            self.calls += 1
            return np.full(count, high if self.calls == 1 else low + 0.1)

    random = Largest()
    u, y = reservoirs.narma10(random, 400)
    assert random.calls == 2 and (u == 0.1).all() and y.max() < 1


def test_spiking_neurons_equal_the_equations():
    """Compares potentials, synapses, traces and the refractory period with a loop over neurons."""
    times = reservoir.Times(membrane=5.0, synapse=2.0, trace=4.0, silent=2)
    random = np.random.default_rng(0)
    recurrent, inputs = random.normal(0, 0.4, (6, 6)), random.normal(0, 0.8, (3, 6))
    currents = random.uniform(0, 1, (40, 2, 3))
    liquid = reservoir.Liquid(jnp.asarray(recurrent, jnp.float32), jnp.asarray(inputs, jnp.float32))
    spikes, traces = reservoir.liquid_states(liquid, jnp.asarray(currents, jnp.float32), times)
    for example in range(2):
        v, s, trace, silent = np.zeros(6), np.zeros(6), np.zeros(6), np.zeros(6)
        for t in range(40):
            fired = np.zeros(6)
            for n in range(6):
                v[n] = np.exp(-1 / 5) * v[n] + currents[t, example] @ inputs[:, n] + s @ recurrent[:, n]
                if silent[n]:
                    v[n], silent[n] = 0, silent[n] - 1
                elif v[n] >= 1:
                    v[n], silent[n], fired[n] = 0, 2, 1
            s, trace = np.exp(-1 / 2) * s + fired, np.exp(-1 / 4) * trace + fired
            np.testing.assert_array_equal(spikes[t, example], fired)
            np.testing.assert_allclose(traces[t, example], trace, rtol=1e-4, atol=1e-6)
    assert 10 < spikes.sum() < 300
    # With a constant current of 0.6 the potential reaches 1 at the second step; then the neuron is silent for two.
    one = reservoir.Liquid(jnp.zeros((1, 1)), jnp.full((1, 1), 0.6))
    fired = reservoir.liquid_states(one, jnp.ones((9, 1, 1)), reservoir.Times(silent=2))[0]
    assert fired[:, 0, 0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0]


def test_synapses_of_a_random_liquid():
    liquid = reservoir.random_liquid(np.random.default_rng(0), 7, (5, 6, 10))
    between = np.asarray(liquid.recurrent)
    signs = np.sign(between).sum(1)
    inhibitory = (between < 0).any(1)
    assert (
        inhibitory.sum() == 60 and not ((between < 0) & ~inhibitory[:, None]).any() and (signs[inhibitory] <= 0).all()
    )
    assert not np.diagonal(between).any()
    places = np.stack(np.unravel_index(np.arange(300), (5, 6, 10)), -1)
    apart = ((places[:, None] - places[None]) ** 2).sum(-1)
    for squared in (1, 4, 9):
        for kinds, chance in (((0, 0), 0.3), ((0, 1), 0.2), ((1, 0), 0.4), ((1, 1), 0.1)):
            pairs = (apart == squared) & (inhibitory[:, None] == kinds[0]) & (inhibitory[None] == kinds[1])
            expected, spread = chance * np.exp(-squared / 4), np.sqrt(0.25 / pairs.sum())
            assert abs((between != 0)[pairs].mean() - expected) < 4 * spread
    assert 0.2 < (np.asarray(liquid.inputs) != 0).mean() < 0.4


def test_row_traces_and_chunked_evaluation(monkeypatch):
    """A neuron that spikes at each positive input has the trace of the input; chunks do not change the features."""
    random = np.random.default_rng(0)
    pixels = (random.uniform(size=(5, 784)) < 0.5).astype(np.float32)
    decay = np.exp(-2 / reservoir.TIMES.trace)

    def trace(image, last):
        return sum(decay ** (last - 1 - row) * image.reshape(28, 28)[row] for row in range(last))

    expected = [np.concatenate([trace(image, last) for last in (7, 14, 21, 28)]) for image in pixels]
    np.testing.assert_allclose(reservoirs.row_traces(pixels, 2), expected, rtol=1e-5)
    liquid = reservoir.random_liquid(np.random.default_rng(0), 28, (2, 2, 5))
    whole, rate = reservoirs.traces(liquid, pixels, 2)
    monkeypatch.setattr(reservoirs, "CHUNK", 2)
    parts, _ = reservoirs.traces(liquid, pixels, 2)
    assert whole.shape == (5, 4 * 20) and 0 < rate < 1
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-6)


def test_echo_state_card():
    result = reservoirs.run_echo_state(0, radii=(0.2, 0.9), units=40, train=300, test=200)
    assert result["best"] == int(np.argmin(result["validation"])) and max(result["test"]) < 0.9
    assert result["apart"][0] < 1e-5
    findings = reservoirs.report_echo_state([result, result])
    assert findings.numbers["test_error"]["mean"] == result["test"][result["best"]]
    assert findings.baseline["test_error"] == {"mean": result["delays"], "std": 0.0}
    assert ("not below" in findings.text) == (result["test"][result["best"]] >= result["delays"])
    lasting = reservoirs.report_echo_state([result | {"apart": [1.0, 1.0], "delays": 0.1}]).text
    assert "does not forget" in lasting and "not below" in lasting


@pytest.mark.slow
def test_liquid_state_card():
    result = reservoirs.run_liquid_state(0, shape=(2, 3, 5), examples=200, steps=2)
    assert result["liquid"] > 0.3 and 0.01 < result["spikes_per_step"] < 0.4
    findings = reservoirs.report_liquid_state([result])
    assert findings.numbers["test_accuracy"]["mean"] == result["liquid"]
    words = {0.9: "connections between the neurons help.", 0.805: "was not confirmed", 0.7: "even hurt"}
    for score, expected in words.items():
        other = result | {"liquid": score, "unconnected": 0.8, "pixels": 0.85}
        text = reservoirs.report_liquid_state([other]).text
        assert expected in text and ("not more than" in text) == (score < 0.85)


@pytest.mark.slow
def test_echo_state_network_predicts_narma10():
    result = reservoirs.run_echo_state(0)
    best = result["test"][result["best"]]
    assert best < 0.35 and best < 0.8 * result["delays"] and min(result["test"][0], result["test"][-1]) > 1.3 * best
    forgets = dict(zip(result["radii"], result["apart"], strict=True))
    assert max(left for radius, left in forgets.items() if radius < 1) < 1e-2


@pytest.mark.slow
def test_the_spiking_reservoir_classifies_digits():
    result = reservoirs.run_liquid_state(0)
    assert result["liquid"] > result["pixels"] + 0.01
