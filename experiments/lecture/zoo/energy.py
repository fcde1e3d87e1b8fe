"""The Boltzmann machine, on images small enough for enumeration."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from models import boltzmann
from train.tasks import boltzmann as learning


def bars_and_stripes(side: int) -> np.ndarray:
    """All binary images whose rows, or whose columns, are constant, [2^(side + 1) - 2, side * side]."""
    rows = boltzmann.all_states(side)
    stripes = np.repeat(rows, side, axis=1)
    bars = np.tile(rows, (1, side))
    return np.unique(np.concatenate([stripes, bars]), axis=0)


def uniform_over(patterns: np.ndarray) -> np.ndarray:
    """The uniform distribution over the patterns, as probabilities of all binary images in the order of
    `boltzmann.all_states`."""
    places = patterns @ (2.0 ** np.arange(patterns.shape[1])[::-1])
    chances = np.zeros(2 ** patterns.shape[1], np.float32)
    chances[places.astype(int)] = 1 / len(patterns)
    return chances


@functools.partial(jax.jit, static_argnames=("step", "count"))
def advance(state, batch, rate, *, step, count: int):
    """The state after `count` steps of a learning rule on the same batch."""
    return jax.lax.scan(lambda state, _: (step(state, batch, rate=rate)[0], None), state, None, length=count)[0]


@functools.partial(jax.jit, static_argnames=("rows", "units"))
def start(key, *, rows: int, units: int) -> learning.State:
    """A machine with small random weights, and Markov chains in random states."""
    keys = [jax.random.fold_in(key, n) for n in range(3)]
    chains = jax.random.bernoulli(keys[0], 0.5, (rows, units)).astype(jnp.float32)
    return learning.init(keys[1], boltzmann.init(keys[2], units), chains)


@jax.jit
def compared(machine, target):
    """The KL divergence from a target distribution over visible states to a machine's distribution, and the machine's
    probability of the target's support."""
    log_model = boltzmann.log_probabilities(machine, len(target).bit_length() - 1)
    return boltzmann.divergence(target, log_model), jnp.where(target > 0, jnp.exp(log_model), 0).sum()


sample = jax.jit(boltzmann.sample, static_argnames="sweeps")
STEP = functools.partial(learning.boltzmann_step, sweeps=5)
CLEAR = 0.5  # A machine has learned the patterns if their total probability is at least this.


def run_boltzmann(seed: int, *, side: int = 3, hidden: int = 8, steps: int = 4000, every: int = 100, rate: float = 0.2):
    """Learns bars and stripes with and without hidden units; the learning rate decays linearly to 0."""
    patterns, key = bars_and_stripes(side), jax.random.key(seed)
    target, visible = uniform_over(patterns), patterns.shape[1]
    batch = jnp.asarray(np.tile(patterns, (8, 1)))
    result: dict[str, Any] = {"side": side, "hidden": hidden, "steps": [], "patterns": len(patterns)}
    for name, extra in (("machine", hidden), ("visible_only", 0)):
        units, curve = visible + extra, []
        state = start(key, rows=len(batch), units=units)
        for done in range(0, steps + 1, every):
            nats, share = compared(state.params, target)
            curve.append(nats)
            if done < steps:
                state = advance(state, batch, rate * (1 - done / steps), step=STEP, count=every)
        drawn = np.asarray(sample(state.params, state.chains, jax.random.fold_in(key, 3), np.arange(units), sweeps=200))
        result[name] = {"curve": rounded(curve), "share": float(share), "drawn": rounded(drawn[:24, :visible], 0)}
    result["steps"] = list(range(0, steps + 1, every))
    return result


def nats_axis(axes) -> None:
    """Sets ticks of a logarithmic axis without math text, which the figures do not use."""
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def draw_boltzmann(results: list[dict]):
    first = results[0]
    patterns = {tuple(pattern) for pattern in bars_and_stripes(first["side"]).tolist()}
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=4.6)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        above, below = halves
        axes = above.subplots()
        for name, colour, label in (
            ("visible_only", "eval", "without hidden units"),
            ("machine", "train", f"{first['hidden']} hidden units"),
        ):
            curves = np.array([result[name]["curve"] for result in results])
            topic.draw_spread(axes, first["steps"], curves, colour, label=label)
        axes.set(xlabel="step", ylabel="KL divergence, nats", xlim=(0, first["steps"][-1]), yscale="log")
        nats_axis(axes)
        axes.legend(fontsize=9)
        panels = below.subplots(2, 12)
        below.suptitle("samples of the machine; orange: neither bars nor stripes", fontsize=10, x=0.01, ha="left")
        for axes, image in zip(panels.flat, first["machine"]["drawn"], strict=True):
            axes.imshow(np.reshape(image, (first["side"],) * 2), "gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            wrong = tuple(image) not in patterns
            for spine in axes.spines.values():
                spine.set(
                    visible=True, color=figures.COLOURS["eval"] if wrong else "#999999", linewidth=3 if wrong else 1
                )
    return figure


def report_boltzmann(results: list[dict]) -> Findings:
    first = results[0]

    def over_seeds(name: str) -> dict:
        ends = topic.mean_and_std([result[name]["curve"][-1] for result in results])
        return {"kl_nats": ends, "probability_of_patterns": topic.mean_and_std([r[name]["share"] for r in results])}

    numbers, plain = over_seeds("machine"), over_seeds("visible_only")
    start = topic.mean_and_std([result["machine"]["curve"][0] for result in results])
    end, share = numbers["kl_nats"]["mean"], numbers["probability_of_patterns"]["mean"]
    fell = "decreased" if end < start["mean"] else "did not decrease"
    learned = "learned" if share >= CLEAR else "did not learn"
    text = (
        f"The KL divergence from the {first['patterns']} bars and stripes, computed by enumeration, {fell} from "
        f"{start['mean']:.2f} to {end:.2f} nats: the machine {learned} them; their total probability is {share:.0%}. "
        f"Without hidden units these are {plain['kl_nats']['mean']:.2f} nats and "
        f"{plain['probability_of_patterns']['mean']:.0%}, so the hidden units "
        f"{'help' if end < plain['kl_nats']['mean'] else 'do not help here'}."
    )
    caption = (
        f"bars and stripes of {first['side']}x{first['side']} pixels; KL divergence from the data by step, mean and "
        "standard deviation over seeds; below: 24 samples of the machine with hidden units, seed 0"
    )
    baseline = {**plain, "kl_nats_before_learning": start}
    return Findings(text, numbers, baseline, draw_boltzmann(results), caption, "without hidden units")


BOLTZMANN = Card(
    name="boltzmann",
    title="Boltzmann machine (BM)",
    diagram=Diagram((Layer("backfed", 4), Layer("probabilistic", 4)), form="circle"),
    idea="A Hopfield network with stochastic units, which prefer states of lower energy, and with hidden units. It "
    "learns a distribution from which samples resemble the training images.",
    formula=(
        r"p(s) = \frac{e^{-E(s)}}{Z}, \quad \Delta w_{ij} = \eta (\langle s_i s_j \rangle_{\text{clamped}} - "
        r"\langle s_i s_j \rangle_{\text{free}})"
    ),
    rule="A weight changes by the difference of two correlations of its units: with the visible units clamped to the "
    "data, and with all units sampled freely.",
    reference="Ackley, Hinton & Sejnowski, 1985, A learning algorithm for Boltzmann machines",
    run=run_boltzmann,
    report=report_boltzmann,
)

CARDS = (BOLTZMANN,)
