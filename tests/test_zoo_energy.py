"""Tests of the zoo's energy-based networks: Hopfield network, Boltzmann machines, deep belief network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import deep_belief, drawing, energy, hopfield, restricted
from models import boltzmann, mlp
from models import hopfield as network
from models.boltzmann import Boltzmann, Restricted
from train.tasks import boltzmann as learning
from train.tasks import hebb


def reported(card, results):
    """Returns the findings of a card, after checking that they have the form that the page needs."""
    assert drawing.svg(card.diagram, card.title).startswith("<svg")
    findings = card.report(results)
    values = [*findings.numbers.values(), *findings.baseline.values()]
    assert all(isinstance(value, (float, type(None))) or value.keys() == {"mean", "std"} for value in values)
    findings.figure.draw_without_rendering()
    assert findings.text.endswith(".") and findings.caption
    return findings


def logistic(x):
    return 1 / (1 + np.exp(-x))


# --- The Hopfield network.
def patterns_of(units, count, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], (count, units)).astype(np.float32)


def test_hebbian_learning():
    patterns = patterns_of(6, 3)
    expected = sum(np.outer(pattern, pattern) for pattern in patterns)
    np.fill_diagonal(expected, 0)
    weights, sums = jax.jit(hebb.train_step)(jnp.zeros((6, 6)), np.vstack([patterns, np.zeros((2, 6), np.float32)]))
    np.testing.assert_array_equal(weights, expected)
    assert sums["count"] == 3
    one_by_one = jnp.zeros((6, 6))
    for pattern in patterns:
        one_by_one, _ = jax.jit(hebb.train_step)(one_by_one, pattern[None])
    np.testing.assert_array_equal(one_by_one, expected)


def test_recall_updates_units_sequentially_and_never_raises_the_energy():
    patterns, key = patterns_of(24, 7), jax.random.key(3)
    weights = np.array(jax.jit(hebb.train_step)(jnp.zeros((24, 24)), patterns)[0])
    starts = hopfield.damaged(np.random.default_rng(1), patterns)
    assert ((starts != patterns).sum(1) == 7).all()  # 30 % of 24 units.
    recall = jax.jit(network.recall)
    states, sweeps = recall(weights, starts, key, limit=100)
    energies = hopfield.energies(weights, starts, key, jnp.arange(int(sweeps)))
    by_hand, expected, order = starts.copy(), [], jax.jit(lambda key: jax.random.permutation(key, 24))
    for n in range(int(sweeps)):
        for unit in np.asarray(order(jax.random.fold_in(key, n))):
            for state in by_hand:
                field = sum(weights[unit, j] * state[j] for j in range(24))
                state[unit] = np.sign(field) if field else state[unit]
            expected.append([-0.5 * state @ weights @ state for state in by_hand])
    np.testing.assert_array_equal(states, by_hand)
    np.testing.assert_array_equal(energies[1:], expected)
    assert np.diff(energies, axis=0).max() <= 0 and 1 < sweeps < 24
    assert ((states @ weights) * states).min() >= 0  # A fixed point.
    assert recall(weights, starts, key, limit=1)[1] == 1


def test_a_unit_without_a_field_keeps_its_state():
    state = np.array([[1.0, -1.0, 1.0]], np.float32)
    after = jax.jit(network.sweep)(jnp.zeros((3, 3)), state, jnp.arange(3))
    np.testing.assert_array_equal(after, state)


def test_the_load_at_which_recall_collapses():
    loads = (0.1, 0.2, 0.3)
    assert hopfield.crossing(loads, [0.0, 0.05, 0.25], 0.1) == pytest.approx(0.225)
    assert hopfield.crossing(loads, [0.0, 0.05, 0.06], 0.1) is None
    assert hopfield.crossing(loads, [0.2, 0.3, 0.4], 0.1) == 0.1


# --- The Boltzmann machine.
def small_machine(units=4, seed=0):
    random = np.random.default_rng(seed)
    weights = np.triu(random.normal(size=(units, units)), 1).astype(np.float32)
    return Boltzmann(jnp.asarray(weights + weights.T), jnp.asarray(random.normal(size=units), jnp.float32))


def joint(machine: Boltzmann):
    """All states and their probabilities, by loops in float64."""
    weights, biases = (np.asarray(leaf, np.float64) for leaf in machine)
    states = np.array([[n >> bit & 1 for bit in reversed(range(len(biases)))] for n in range(2 ** len(biases))])
    scores = [sum(weights[i, j] * s[i] * s[j] for i in range(len(s)) for j in range(i)) + biases @ s for s in states]
    chances = np.exp(scores)
    return states, chances / chances.sum()


def test_boltzmann_probabilities_against_enumeration():
    machine = small_machine()
    states, chances = joint(machine)
    np.testing.assert_array_equal(boltzmann.all_states(4), states)
    for visible in (4, 2):
        found = jax.jit(boltzmann.log_probabilities, static_argnames="visible")(machine, visible=visible)
        np.testing.assert_allclose(np.exp(found), chances.reshape(2**visible, -1).sum(1), rtol=1e-5)
    on_probability = jax.jit(boltzmann.on_probability)
    for unit in range(4):
        on = states.copy()
        on[:, unit] = 1
        both = chances + chances[[int("".join(map(str, s)), 2) ^ 1 << (3 - unit) for s in states]]
        with_one = np.array([chances[int("".join(map(str, s)), 2)] for s in on])
        found = on_probability(machine, states.astype(np.float32), unit)
        np.testing.assert_allclose(found, with_one / both, rtol=1e-5)
    data = np.array([0.5, 0.25, 0.25, 0])
    model = np.array([0.1, 0.2, 0.3, 0.4])
    by_hand = 0.5 * np.log(5) + 0.25 * np.log(0.25 / 0.2) + 0.25 * np.log(0.25 / 0.3)
    assert float(boltzmann.divergence(data, np.log(model))) == pytest.approx(by_hand, rel=1e-5)


def test_the_learning_step_follows_the_exact_gradient():
    """Compares clamped minus free statistics with enumeration; the chains start in equilibrium."""
    machine, rows, random = small_machine(), 6000, np.random.default_rng(0)
    states, chances = joint(machine)
    seen = np.array([[1, 0], [1, 1], [0, 0]])
    drawn = states[random.choice(len(states), rows, p=chances)].astype(np.float32)
    state = learning.init(jax.random.key(1), machine, jnp.asarray(drawn))
    batch = np.tile(seen, (rows // 3, 1)).astype(np.float32)
    after, sums = jax.jit(learning.boltzmann_step, static_argnames="sweeps")(state, batch, rate=0.5, sweeps=8)
    of_data = np.zeros(len(states))
    for pattern in seen:
        fits = (states[:, :2] == pattern).all(1)
        of_data += fits * chances / (fits * chances).sum() / len(seen)
    change = of_data - chances
    pairs = np.einsum("n,ni,nj->ij", change, states, states) * (1 - np.eye(4))
    np.testing.assert_allclose((after.params.weights - machine.weights) / 0.5, pairs, atol=0.03)
    np.testing.assert_allclose((after.params.biases - machine.biases) / 0.5, change @ states, atol=0.03)
    assert np.abs(pairs).max() > 0.1 and after.step == 1 and sums["count"] == rows
    np.testing.assert_allclose(after.chains.mean(0), chances @ states, atol=0.03)
    assert (after.chains != drawn).mean() > 0.1


def test_bars_and_stripes():
    patterns = energy.bars_and_stripes(2)
    assert len(patterns) == 6 and len(energy.bars_and_stripes(3)) == 14
    chances = energy.uniform_over(patterns)
    np.testing.assert_array_equal(boltzmann.all_states(4)[chances > 0], patterns)
    assert chances.sum() == pytest.approx(1)


# --- The restricted Boltzmann machine.
def small_restricted(seed=0, shape=(3, 2)):
    random = np.random.default_rng(seed)
    return Restricted(*(random.normal(size=s).astype(np.float32) for s in (shape, shape[:1], shape[1:])))


def restricted_joint(machine: Restricted):
    """All states of both layers and the unnormalized probability of each pair, by loops in float64."""
    weights, a, b = (np.asarray(leaf, np.float64) for leaf in machine)
    visible, hidden = (boltzmann.all_states(size).astype(np.float64) for size in weights.shape)
    scores = np.array([[v @ weights @ h + a @ v + b @ h for h in hidden] for v in visible])
    return visible, hidden, np.exp(scores), scores


def test_restricted_probabilities_and_free_energies_against_enumeration():
    @jax.jit
    def found(machine, v, h):
        given = boltzmann.hidden_probabilities(machine, v), boltzmann.visible_probabilities(machine, h)
        energies = boltzmann.free_energy(machine, v), boltzmann.log_partition(machine)
        return *given, *energies, boltzmann.log_likelihood(machine, v)

    for shape in ((3, 2), (1, 2)):
        machine = small_restricted(shape=shape)
        visible, hidden, chances, _ = restricted_joint(machine)
        v, h = visible.astype(np.float32), hidden.astype(np.float32)
        given_v, given_h = chances / chances.sum(1, keepdims=True), chances / chances.sum(0)
        of_hidden, of_visible, free, partition, likelihood = found(machine, v, h)
        np.testing.assert_allclose(of_hidden, given_v @ hidden, rtol=1e-5)
        np.testing.assert_allclose(of_visible, given_h.T @ visible, rtol=1e-5)
        np.testing.assert_allclose(free, -np.log(chances.sum(1)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(partition, np.log(chances.sum()), rtol=1e-5)
        np.testing.assert_allclose(np.exp(likelihood), chances.sum(1) / chances.sum(), rtol=1e-5)


def test_free_energy_equals_scikit_learn():
    expected = pytest.importorskip("sklearn.neural_network").BernoulliRBM(n_components=2)
    machine = small_restricted()
    expected.components_ = np.asarray(machine.weights).T
    expected.intercept_hidden_, expected.intercept_visible_ = np.asarray(machine.hidden), np.asarray(machine.visible)
    states = boltzmann.all_states(3)
    free_energy = jax.jit(boltzmann.free_energy)(machine, states)
    np.testing.assert_allclose(free_energy, expected._free_energy(states), rtol=1e-5)
    found = jax.jit(boltzmann.hidden_probabilities)(machine, states)
    np.testing.assert_allclose(found, expected._mean_hiddens(states), rtol=1e-5)


def contrast_by_hand(machine, data, model):
    """The difference of statistics between two distributions over all visible states."""
    visible, hidden, chances, _ = restricted_joint(machine)
    on = chances / chances.sum(1, keepdims=True) @ hidden
    change = data - model
    return Restricted(np.einsum("n,ni,nj->ij", change, visible, on), change @ visible, change @ on)


def change(state, before, rate=0.5):
    """The change of the parameters in a step, divided by the rate."""
    return [(np.asarray(new) - np.asarray(old)) / rate for new, old in zip(state.params, before, strict=True)]


def close(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **tolerance)


def test_contrastive_divergence_against_enumeration():
    """Tests the exact gradient, the expectation of CD-k, and estimates by CD-k and PCD over many rows. PCD with chains
    in equilibrium is unbiased; CD-k is biased, and its bias falls with k."""
    rows, random = 8000, np.random.default_rng(0)
    weights = 2 + np.arange(6, dtype=np.float32).reshape(3, 2) / 5  # Most units are 1 together or 0 together.
    machine = Restricted(weights, np.full(3, -2, np.float32), np.full(2, -3, np.float32))
    _, _, chances, _ = restricted_joint(machine)
    seen = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0]], np.float32)
    data = np.zeros(8)
    np.add.at(data, [7, 1, 1, 2], 0.25)
    model = chances.sum(1) / chances.sum()
    exact = contrast_by_hand(machine, data, model)
    step_of_chain = chances / chances.sum(1, keepdims=True) @ (chances / chances.sum(0)).T
    np.testing.assert_allclose(model @ step_of_chain, model, rtol=1e-5)  # A Gibbs step preserves the equilibrium.
    batch, distances = np.tile(seen, (rows // 4, 1)), []
    for k in (1, 3):
        expected = contrast_by_hand(machine, data, data @ np.linalg.matrix_power(step_of_chain, k))
        close(
            jax.jit(boltzmann.expected_contrast, static_argnames="steps")(machine, seen, steps=k), expected, atol=1e-5
        )
        distances.append(max(np.abs(a - b).max() for a, b in zip(expected, exact, strict=True)))
    assert distances[0] > 0.2 > distances[1]
    state = learning.init(jax.random.key(1), machine, jnp.zeros((0, 3)))
    after, _ = jax.jit(learning.cd_step, static_argnames="steps")(state, batch, rate=0.5, steps=3)
    close(change(after, machine), expected, atol=0.02)

    chains = jnp.asarray(boltzmann.all_states(3)[random.choice(8, rows, p=model)])
    state = learning.init(jax.random.key(5), machine, chains)
    after, _ = jax.jit(learning.pcd_step)(state, seen, rate=0.5)
    close(change(after, machine), exact, atol=0.02)
    assert (after.chains != chains).mean() > 0.1 and after.step == 1
    np.testing.assert_allclose(after.chains.mean(0), model @ boltzmann.all_states(3), atol=0.02)
    uphill, _ = jax.jit(learning.exact_step)(state, seen, rate=0.5)
    close(change(uphill, machine), exact, atol=1e-4)


def test_visible_biases_start_at_the_means():
    means = np.array([0.2, 0.5, 0.0, 1.0], np.float32)
    machine = jax.jit(boltzmann.init_restricted, static_argnames="hidden")(jax.random.key(0), means, hidden=5)
    np.testing.assert_allclose(logistic(np.asarray(machine.visible)), [0.2, 0.5, 0.01, 0.99], rtol=1e-5)
    assert machine.weights.shape == (4, 5) and 0.003 < float(machine.weights.std()) < 0.03
    train, test = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 0]])
    assert restricted.independent_pixels(train, test) == pytest.approx(2 * np.log(3 / 5))


def test_labels_of_the_nearest_examples():
    examples = np.array([[0, 0], [1, 1], [3, 0]], np.float32)
    found = restricted.nearest_labels(np.array([[0.9, 0.8], [0.2, 0.1], [2, 0]]), examples, np.array([7, 8, 9]))
    np.testing.assert_array_equal(found, [8, 7, 9])


def test_cosine():
    gradient = {"a": jnp.array([[1.0, 0.0]]), "b": jnp.array([2.0])}
    assert restricted.cosine(gradient, jax.tree.map(lambda leaf: 3 * leaf, gradient)) == pytest.approx(1)
    assert restricted.cosine(gradient, {"a": jnp.array([[0.0, 5.0]]), "b": jnp.array([0.0])}) == 0


# --- The deep belief network.
def test_the_network_is_initialized_from_the_machines():
    pixels = np.random.default_rng(0).random((4, 6)).astype(np.float32)
    first, second = small_restricted(1, (6, 5)), small_restricted(2, (5, 3))
    model = mlp.MLP(2, hidden=(5, 3), activation="sigmoid")
    params = deep_belief.with_layers(jax.jit(model.init)(jax.random.key(0), pixels)["params"], [first, second])
    logits = jax.jit(model.apply)({"params": params}, pixels)
    above = logistic(logistic(pixels @ first.weights + first.hidden) @ second.weights + second.hidden)
    kernel, bias = (np.asarray(params["logits"][name]) for name in ("kernel", "bias"))
    np.testing.assert_allclose(logits, above @ kernel + bias, rtol=1e-4, atol=1e-6)


def test_few_labels_are_balanced_over_classes():
    labels = np.arange(60) % 3
    rows = deep_belief.few(labels, 12, seed=0)
    assert len(set(rows)) == 12 and (np.bincount(labels[rows]) == 4).all()
    assert not np.array_equal(rows, deep_belief.few(labels, 12, seed=1))


# --- The cards.
@pytest.mark.slow
def test_report_of_hopfield():
    result = hopfield.run_hopfield(0, sizes=(30,), loads=(hopfield.LIGHT, 0.4), probes=4, limit=5)
    findings = reported(hopfield.HOPFIELD, [result])
    assert "never rose" in findings.text and findings.baseline["wrong_units"]["mean"] == pytest.approx(hopfield.FLIPPED)
    worse = {**result, "largest_rise": 2.0, "curves": {name: [0.2, 0.4] for name in result["curves"]}}
    assert "rose by up to 2" in hopfield.report_hopfield([worse]).text


@pytest.mark.slow
def test_report_of_boltzmann():
    result = energy.run_boltzmann(0, side=2, hidden=1, steps=2, every=1)
    assert "did not learn" in reported(energy.BOLTZMANN, [result, result]).text
    clear = {**result, "machine": {**result["machine"], "curve": [2.0, 1.0, 0.1], "share": 0.9}}
    assert "machine learned them" in energy.report_boltzmann([clear]).text


@pytest.mark.slow
def test_report_of_restricted():
    result = restricted.run_restricted(
        0, side=2, hidden=2, steps=2, every=1, examples=100, sizes=(2, 3), epochs=1, gibbs=2
    )
    result["likelihood"] = {"CD-1": -150.0, "PCD": -140.0}
    assert "PCD is better, as" in reported(restricted.RESTRICTED, [result]).text
    result["likelihood"]["CD-1"] = -130.0
    assert "PCD is not better, unlike" in restricted.report_restricted([result, result]).text


@pytest.mark.slow
def test_report_of_deep_belief():
    result = deep_belief.run(0, hidden=(4, 3), epochs=1, labels=(10, 20), steps=1, examples=100, batch_size=10)
    for accuracy, relu, words in (
        ([0.8, 0.9], [0.5, 0.9], "pre-training helps"),
        ([0.8, 0.9], [0.8, 0.9], "does not clearly help"),
    ):
        changed = {"pretrained": accuracy, "random_start": [0.5, 0.85], "relu": relu}
        assert words in reported(deep_belief.DEEP_BELIEF, [{**result, "accuracy": changed}]).text


# --- The claims.
@pytest.mark.slow
def test_hopfield_recalls_and_collapses():
    findings = hopfield.report_hopfield([hopfield.run_hopfield(0)])
    assert findings.numbers["wrong_units"]["mean"] < 0.01
    assert 0.12 < findings.numbers["load_at_which_errors_pass_1.6_percent"]["mean"] < 0.15
    assert 0.14 < findings.numbers["load_at_which_errors_pass_10_percent"]["mean"] < 0.18
    assert findings.numbers["largest_rise_of_energy"] <= 0


@pytest.mark.slow
def test_a_boltzmann_machine_learns_bars_and_stripes():
    numbers, baseline = energy.report_boltzmann([energy.run_boltzmann(0)])[1:3]
    assert numbers["kl_nats"]["mean"] < 0.15 and baseline["kl_nats_before_learning"]["mean"] > 3
    assert numbers["kl_nats"]["mean"] < baseline["kl_nats"]["mean"]
    assert numbers["probability_of_patterns"]["mean"] > 0.85


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_contrastive_divergence_on_digits():
    numbers, baseline = restricted.report_restricted([restricted.run_restricted(0)])[1:3]
    mean = {name: value["mean"] for name, value in numbers.items()}
    assert mean["cosine_cd1_exact_gradient"] < 0.85 and mean["cosine_cd50_exact_gradient"] > 0.95
    assert mean["kl_nats_cd1"] > mean["kl_nats_pcd"] + 0.1
    assert mean["digits_log_likelihood_pcd"] > mean["digits_log_likelihood_cd1"] + 1
    assert mean["digits_log_likelihood_cd1"] > baseline["digits_log_likelihood_independent_pixels"]["mean"] + 15
    assert mean["largest_share_of_a_digit_in_samples_cd1"] > 0.8 > mean["largest_share_of_a_digit_in_samples_pcd"]


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_pretraining_helps_with_few_labels():
    numbers, baseline = deep_belief.report([deep_belief.run(0, labels=(100,))])[1:3]
    assert numbers["accuracy_100_labels"]["mean"] > baseline["accuracy_100_labels"]["mean"] + 0.02
