"""The restricted Boltzmann machine: three learning rules on images small enough for enumeration, and on digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import data
from data import batches
from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.energy import advance, bars_and_stripes, nats_axis, uniform_over
from experiments.reporting import figures
from models import boltzmann
from train.tasks import boltzmann as learning

RULES = {
    "CD-1": functools.partial(learning.cd_step, steps=1),
    "PCD": functools.partial(learning.pcd_step, steps=1),
    "exact gradient": learning.exact_step,
}
COLOURS = {"CD-1": "eval", "PCD": "train", "exact gradient": "test"}
CONTRASTS = (1, 2, 5, 10, 50)  # Gibbs steps of contrastive divergence that are compared with the exact gradient.


def binary_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split of mnist5k as float32 [N, 784], 1.0 where a pixel is brighter than half, and labels."""
    images, labels = data.load("mnist5k").splits[split]
    return (images.reshape(len(images), -1) > 127).astype(np.float32), labels


def nearest_labels(images: np.ndarray, examples: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The label of the example [N, V] that is nearest to each image [S, V]."""
    return labels[((examples**2).sum(1) - 2 * images @ examples.T).argmin(1)]


@functools.partial(jax.jit, static_argnames="step")
def epoch(state, examples, rows, rate, *, step):
    """The state after one step on each batch of examples, given by indices `rows` [steps, B]."""
    return jax.lax.scan(lambda state, picked: (step(state, examples[picked], rate=rate)[0], None), state, rows)[0]


def orders(seed: int, done: int, examples: int, batch_size: int) -> np.ndarray:
    """The indices [steps, batch_size] of the batches of epoch `done`."""
    per_epoch = examples // batch_size
    steps = range(done * per_epoch, (done + 1) * per_epoch)
    return np.stack([batches.rows(seed, step, batch_size=batch_size, examples=examples) for step in steps])


@functools.partial(jax.jit, static_argnames=("hidden", "rows"))
def start(key, means_V, *, hidden: int, rows: int) -> learning.State:
    """A machine with small random weights, and chains of random pixels with the given means."""
    keys = [jax.random.fold_in(key, n) for n in range(3)]
    machine = boltzmann.init_restricted(keys[0], means_V, hidden)
    chains = jax.random.bernoulli(keys[1], means_V[None], (rows, len(means_V))).astype(jnp.float32)
    return learning.init(keys[2], machine, chains)


def fit(examples, hidden: int, *, step, key, seed: int, epochs: int, rate: float, batch_size: int = 50, watch=None):
    """The state after `epochs` epochs of a learning rule on the examples [N, V]; the rate decays linearly to 0.
    `watch(state)` is called before the first and after every epoch."""
    examples = np.asarray(examples)
    state = start(key, examples.mean(0), hidden=hidden, rows=batch_size)
    for done in range(epochs):
        if watch:
            watch(state)
        rows = orders(seed, done, len(examples), batch_size)
        state = epoch(state, examples, rows, rate * (1 - done / epochs), step=step)
    if watch:
        watch(state)
    return state


def cosine(a, b) -> float:
    """The cosine of the angle between two gradients."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64) for tree in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@jax.jit
def kl(machine, target, states):
    """The KL divergence in nats from a target distribution over all states [S, V] to a machine's distribution."""
    return boltzmann.divergence(target, boltzmann.log_likelihood(machine, states))


@jax.jit
def gradients(machine, visible):
    """The exact gradient, and the expected estimates of contrastive divergence for each of CONTRASTS."""
    expected = [boltzmann.expected_contrast(machine, visible, steps=steps) for steps in CONTRASTS]
    return boltzmann.exact_gradient(machine, visible), expected


@jax.jit
def mean_free_energy(machine, visible):
    return boltzmann.free_energy(machine, visible).mean()


@jax.jit
def mean_log_likelihood(machine, visible):
    return boltzmann.log_likelihood(machine, visible).mean()


@functools.partial(jax.jit, static_argnames=("count", "steps"))
def samples(machine, key, *, count: int, steps: int):
    """The pixel probabilities [count, V] after Gibbs sampling from noise."""
    noise = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (count, len(machine.visible))).astype(jnp.float32)
    drawn = boltzmann.gibbs(machine, noise, jax.random.fold_in(key, 1), steps=steps)
    return boltzmann.visible_probabilities(machine, boltzmann.hidden_probabilities(machine, drawn))


def enumerated(seed: int, *, side: int, hidden: int, steps: int, every: int, rate: float) -> dict[str, Any]:
    """Bars and stripes: the KL divergence by step for each learning rule, and the cosine similarity of the exact
    gradient and the expectation of CD-k halfway through exact learning."""
    patterns, key = bars_and_stripes(side), jax.random.key(seed)
    batch, target = np.tile(patterns, (8, 1)), uniform_over(patterns)
    every_state, begin = boltzmann.all_states(side * side), start(key, batch.mean(0), hidden=hidden, rows=len(batch))
    result: dict[str, Any] = {"steps": list(range(0, steps + 1, every)), "side": side, "curves": {}}
    for name, step in RULES.items():
        state, curve = begin, []
        for done in result["steps"]:
            curve.append(kl(state.params, target, every_state))
            if name == "exact gradient" and done == result["steps"][len(result["steps"]) // 2]:
                middle = state.params
            if done < steps:
                state = advance(state, batch, rate * (1 - done / steps), step=step, count=every)
        result["curves"][name] = rounded(curve)
    exact, expected = gradients(middle, patterns)
    result["cosines"] = [cosine(estimate, exact) for estimate in expected]
    return result


def independent_pixels(train: np.ndarray, test: np.ndarray) -> float:
    """The mean log likelihood in nats of the test images under independent pixels with the training frequencies."""
    on = (train.sum(0) + 1) / (len(train) + 2)
    return float((test * np.log(on) + (1 - test) * np.log(1 - on)).sum(1).mean())


def run_restricted(
    seed: int,
    *,
    side: int = 3,
    hidden: int = 8,
    steps: int = 4000,
    every: int = 100,
    examples: int | None = None,
    sizes: tuple[int, int] = (14, 128),
    epochs: int = 20,
    gibbs: int = 500,
):
    """Three learning rules on bars and stripes, evaluated by enumeration; then CD-1 and PCD on digits, with few hidden
    units for the exact likelihood and with more for samples and free energies."""
    result: dict[str, Any] = {"small": enumerated(seed, side=side, hidden=hidden, steps=steps, every=every, rate=0.2)}
    (train, labels), (test, _), key = binary_digits("train"), binary_digits("test"), jax.random.key(seed)
    every_digit = slice(None, None, len(train) // (examples or len(train)))  # The digits are ordered by class.
    train, labels = train[every_digit], labels[every_digit]
    some, (few, many) = train[:: -(-len(train) // len(test))], sizes
    result |= {"few": few, "many": many, "independent": independent_pixels(train, test), "likelihood": {}, "digits": {}}
    result["share_in_training"] = float(np.bincount(labels).max() / len(labels))
    for name in ("CD-1", "PCD"):
        step = RULES[name]
        small = fit(train, few, step=step, key=jax.random.fold_in(key, 10), seed=seed, epochs=epochs, rate=0.05)
        result["likelihood"][name] = float(mean_log_likelihood(small.params, test))
        energies: list[list[float]] = []

        def watch(state, energies=energies):
            energies.append([mean_free_energy(state.params, split) for split in (some, test)])

        state = fit(
            train, many, step=step, key=jax.random.fold_in(key, 11), seed=seed, epochs=epochs, rate=0.05, watch=watch
        )
        drawn = np.asarray(samples(state.params, jax.random.fold_in(key, 12), count=100, steps=gibbs))
        result["digits"][name] = {
            "free_energy": rounded(energies, 3),
            "samples": rounded(drawn[:10], 2),
            "counts": np.bincount(nearest_labels(drawn, train, labels), minlength=10).tolist(),
        }
    return result


def draw_restricted(results: list[dict]):
    first = results[0]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=6.2)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.1))
        above, below = halves
        left, right = above.subplots(1, 2, width_ratios=(1.25, 1))
        for name, colour in COLOURS.items():
            curves = np.array([result["small"]["curves"][name] for result in results])
            topic.draw_spread(left, first["small"]["steps"], curves, colour, label=name)
        left.set(xlabel="step", ylabel="KL divergence, nats", yscale="log")
        nats_axis(left)
        left.set_title("Bars and stripes", fontsize=10)
        left.legend(fontsize=8)
        for name in first["digits"]:
            both = np.array([result["digits"][name]["free_energy"] for result in results])
            topic.draw_spread(right, range(both.shape[1]), both[..., 1] - both[..., 0], COLOURS[name])
        right.set(xlabel="epoch", ylabel="free energy, nats", ylim=(0, None))
        right.set_title("Digits: test − training", fontsize=10)
        panels = below.subplots(4, 5)
        for (row, column), axes in np.ndenumerate(panels):
            name = list(first["digits"])[row // 2]
            samples = first["digits"][name]["samples"]
            image = np.reshape(samples[row % 2 * panels.shape[1] + column], (28, 28))
            axes.imshow(image, "gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if column == 0 and row % 2 == 0:
                axes.set_ylabel(name, fontsize=10, y=0, color=figures.COLOURS[COLOURS[name]])
    return figure


def report_restricted(results: list[dict]) -> Findings:
    first = results[0]

    def over_seeds(read) -> dict:
        return topic.mean_and_std([read(result) for result in results])

    ends = {name: over_seeds(lambda r, name=name: r["small"]["curves"][name][-1]) for name in RULES}
    likelihood = {name: over_seeds(lambda r, name=name: r["likelihood"][name]) for name in first["likelihood"]}
    cosines = {k: over_seeds(lambda r, n=n: r["small"]["cosines"][n]) for n, k in enumerate(CONTRASTS)}
    energies = [np.array(result["digits"]["PCD"]["free_energy"]) for result in results]
    before, gap = (topic.mean_and_std([each[at, 1] - each[at, 0] for each in energies]) for at in (0, -1))
    same = {
        name: over_seeds(lambda r, name=name: max(r["digits"][name]["counts"]) / sum(r["digits"][name]["counts"]))
        for name in first["digits"]
    }
    numbers = {
        "kl_nats_pcd": ends["PCD"],
        "kl_nats_cd1": ends["CD-1"],
        "digits_log_likelihood_pcd": likelihood["PCD"],
        "digits_log_likelihood_cd1": likelihood["CD-1"],
        "largest_share_of_a_digit_in_samples_pcd": same["PCD"],
        "largest_share_of_a_digit_in_samples_cd1": same["CD-1"],
        "free_energy_test_minus_training": gap,
        **{f"cosine_cd{k}_exact_gradient": value for k, value in cosines.items()},
    }
    baseline = {
        "kl_nats_exact_gradient": ends["exact gradient"],
        "kl_nats_before_learning": over_seeds(lambda r: r["small"]["curves"]["PCD"][0]),
        "digits_log_likelihood_independent_pixels": over_seeds(lambda r: r["independent"]),
        "largest_share_of_a_digit_in_training": first["share_in_training"],
        "free_energy_test_minus_training_before_learning": before,
    }
    better = likelihood["PCD"]["mean"] > likelihood["CD-1"]["mean"]
    one, most = cosines[CONTRASTS[0]]["mean"], cosines[CONTRASTS[-1]]["mean"]
    text = (
        f"The cosine similarity of the expected update and the exact gradient is {one:.2f} for CD-1 and {most:.2f} for "
        f"CD-{CONTRASTS[-1]}{'' if most > one else ': more steps do not help here'}. On bars and stripes the final KL "
        f"divergence is {ends['CD-1']['mean']:.2f} nats with CD-1, {ends['PCD']['mean']:.2f} with PCD and "
        f"{ends['exact gradient']['mean']:.2f} with the exact gradient. On test digits the log likelihood with "
        f"{first['few']} hidden units is {likelihood['PCD']['mean']:.1f} nats with PCD and "
        f"{likelihood['CD-1']['mean']:.1f} with CD-1, compared with {first['independent']:.1f} for independent pixels: "
        f"PCD is {'better, as' if better else 'not better, unlike what'} the literature reports. In 100 samples "
        f"with {first['many']} hidden units the fraction of the most frequent digit is {same['CD-1']['mean']:.0%} with "
        f"CD-1 and {same['PCD']['mean']:.0%} with PCD."
    )
    caption = (
        f"above: exact KL divergence by step, and the free energy of test minus training digits with {first['many']} "
        "hidden units, which increases with overfitting; below: digits from Gibbs sampling started at noise, seed 0"
    )
    return Findings(text, numbers, baseline, draw_restricted(results), caption)


RESTRICTED = Card(
    name="restricted_boltzmann",
    title="Restricted Boltzmann machine (RBM)",
    diagram=Diagram((Layer("backfed", 5), Layer("probabilistic", 4))),
    idea="A Boltzmann machine with connections only between visible and hidden units, so that all units of a layer can "
    "be sampled in parallel. It learns by comparing the data with samples drawn by a few Gibbs steps that start at "
    "the data.",
    formula=(
        r"p(h_j = 1 | v) = \sigma\left( b_j + \sum_i v_i w_{ij} \right), \quad \Delta w = \eta (\langle v h "
        r"\rangle_{\text{data}} - \langle v h \rangle_k)"
    ),
    rule="Contrastive divergence: a weight changes by the difference of two correlations of its units, with the data "
    "and after k steps of Gibbs sampling (CD-k). Persistent contrastive divergence (PCD) continues the sampling of the "
    "previous update instead of starting at the data.",
    reference="Hinton, 2002, Training products of experts by minimizing contrastive divergence",
    run=run_restricted,
    report=report_restricted,
)

CARDS = (RESTRICTED,)
