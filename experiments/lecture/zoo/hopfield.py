"""The Hopfield network: recall of corrupted patterns, and storage capacity."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import data
from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from models import hopfield
from train.tasks import hebb

SIDE = 20  # MNIST's digits occupy the central 20x20 pixels of an image.
FLIPPED = 0.3  # The fraction of flipped units in a corrupted pattern.
LOADS = (0.04, 0.06, 0.08, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.2)  # Patterns per unit.
LIGHT = LOADS[0]
# For infinitely many units the fraction of wrong units jumps at the load 0.138 from 1.6 % to one half (Amit, Gutfreund
# & Sompolinsky 1985, "Storing infinite numbers of patterns in a spin-glass model of neural networks"). With finitely
# many units the transition is gradual; BEGINS and LOST are the fractions of wrong units at its start and its end.
THEORY, BEGINS, LOST = 0.138, 0.016, 0.1


def digit_patterns(random, count: int) -> np.ndarray:
    """One digit of each of the first `count` classes as a pattern of -1 and 1, [count, SIDE * SIDE]."""
    images, labels = data.load("mnist5k").splits["train"]
    chosen = [random.choice(np.flatnonzero(labels == digit)) for digit in range(count)]
    low = (images.shape[1] - SIDE) // 2
    middle = images[chosen, low : low + SIDE, low : low + SIDE, 0]
    return np.where(middle > 64, 1.0, -1.0).astype(np.float32).reshape(count, -1)


def damaged(random, patterns: np.ndarray, share: float = FLIPPED) -> np.ndarray:
    """Flips a random fraction `share` of the units of each pattern."""
    order = random.random(patterns.shape).argsort(axis=1).argsort(axis=1)
    return np.where(order < round(share * patterns.shape[1]), -patterns, patterns)


@jax.jit
def energies(weights, states, key, sweeps):
    """The energy of the states [B, N] before and after each update of `hopfield.recall`, [sweeps * N + 1, B]."""
    orders = jax.vmap(lambda n: jax.random.permutation(jax.random.fold_in(key, n), states.shape[1]))(sweeps)

    def one(states, unit):
        after = hopfield.update(weights, states, unit)
        return after, hopfield.energy(weights, after)

    return jnp.concatenate([hopfield.energy(weights, states)[None], jax.lax.scan(one, states, orders.reshape(-1))[1]])


@functools.partial(jax.jit, static_argnames="limit")
def wrong_units(patterns, loaded, starts, key, *, limit: int):
    """The fraction of wrong units after recall. Only the first `loaded` of the patterns [P, N] are stored; row i of
    `starts` [B, N] is a corrupted copy of pattern i modulo `loaded`."""
    stored = patterns * (jnp.arange(len(patterns)) < loaded)[:, None]
    weights, _ = hebb.train_step(jnp.zeros((patterns.shape[1],) * 2), stored)
    states, _ = hopfield.recall(weights, starts, key, limit=limit)
    return (states != patterns[jnp.arange(len(starts)) % loaded]).mean()


def run_hopfield(seed: int, *, sizes=(200, 1000), loads=LOADS, probes: int = 16, digits: int = 3, limit: int = 40):
    """Recalls corrupted digits, and random patterns at increasing loads."""
    random, key = np.random.default_rng(seed), jax.random.key(seed)
    patterns = digit_patterns(random, digits)
    weights, _ = jax.jit(hebb.train_step)(jnp.zeros((SIDE**2,) * 2), patterns)
    starts = damaged(random, patterns)
    states, sweeps = jax.jit(hopfield.recall)(weights, starts, key)
    trace = np.asarray(energies(weights, starts, key, jnp.arange(int(sweeps))), np.float64)
    curves = {}
    for size in sizes:
        drawn = random.choice([-1.0, 1.0], (round(max(loads) * size), size)).astype(np.float32)
        for share in (0.0, FLIPPED):
            errors = []
            for n, load in enumerate(loads):
                loaded = max(1, round(load * size))
                start = damaged(random, drawn[np.arange(probes) % loaded], share)
                errors.append(wrong_units(drawn, loaded, start, jax.random.fold_in(key, n), limit=limit))
            curves[f"{size} {share}"] = rounded(errors)
    return {
        "digits": [rounded(rows, 0) for rows in (patterns, starts, states)],
        "energies": rounded(trace[:: max(1, len(trace) // 300), 0], 0),
        "updates": len(trace) - 1,
        "largest_rise": float(np.diff(trace, axis=0).max()),
        "loads": list(loads),
        "sizes": list(sizes),
        "curves": curves,
    }


def crossing(loads, errors, level: float) -> float | None:
    """The interpolated load at which the error first rises above `level`; None if it never does."""
    above = np.flatnonzero(np.asarray(errors) > level)
    if not len(above) or above[0] == 0:
        return float(loads[0]) if len(above) else None
    n = above[0]
    return float(np.interp(level, errors[n - 1 : n + 1], loads[n - 1 : n + 1]))


def draw_hopfield(results: list[dict]):
    first, mean = results[0], {}
    for name in first["curves"]:
        mean[name] = np.mean([result["curves"][name] for result in results], axis=0)
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=6.0)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        above, below = halves
        left, right = above.subfigures(1, 2, width_ratios=(1, 1))
        shown = np.array(first["digits"]).reshape(3, -1, SIDE, SIDE)
        panels = left.subplots(shown.shape[1], 3, squeeze=False)
        for (row, column), axes in np.ndenumerate(panels):
            axes.imshow(shown[column, row], "gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(
                    ("stored", "corrupted", "recalled")[column], fontsize=10, loc="center", fontweight="normal"
                )
        axes = right.subplots()
        axes.plot(np.linspace(0, first["updates"], len(first["energies"])), np.array(first["energies"]) / 1000)
        axes.set(xlabel="updates")
        axes.set_title("energy / 1000", fontsize=10, fontweight="normal")
        axes = below.subplots()
        small, large = min(first["sizes"]), max(first["sizes"])
        lines = (
            (large, 0.0, "train", "-", f"{large} units, from the pattern"),
            (small, 0.0, "train", ":", f"{small} units, from the pattern"),
            (large, FLIPPED, "eval", "-", f"{large} units, {FLIPPED:.0%} flipped"),
            (small, FLIPPED, "eval", ":", f"{small} units, {FLIPPED:.0%} flipped"),
        )
        for size, share, colour, style, label in lines:
            percent = 100 * mean[f"{size} {share}"]
            axes.plot(first["loads"], percent, style, marker=".", color=figures.COLOURS[colour], label=label)
        axes.axvline(THEORY, color="#666666", linewidth=1)
        axes.annotate(f"{THEORY}", (THEORY, 0.97), xycoords=("data", "axes fraction"), va="top", ha="right", fontsize=9)
        axes.set(xlabel="stored patterns per unit", ylabel="wrong units, %", ylim=(0, 52))
        axes.legend(fontsize=8, loc="upper left")
    return figure


def report_hopfield(results: list[dict]) -> Findings:
    first = results[0]
    large, light = max(first["sizes"]), first["loads"].index(LIGHT)
    from_damaged = topic.mean_and_std([result["curves"][f"{large} {FLIPPED}"][light] for result in results])
    loads = {}
    for level in (BEGINS, LOST):
        crossings = [crossing(result["loads"], result["curves"][f"{large} 0.0"], level) for result in results]
        loads[level] = None if None in crossings else topic.mean_and_std(crossings)
    shown = [np.array(result["digits"]) for result in results]
    wrong = [(digits[2] != digits[0]).mean(-1) for digits in shown]
    exact = topic.mean_and_std([(per_digit == 0).mean() for per_digit in wrong])
    rise = max(result["largest_rise"] for result in results)
    numbers = {
        "wrong_units": from_damaged,
        "wrong_pixels_of_digits": topic.mean_and_std([per_digit.mean() for per_digit in wrong]),
        "digits_recalled_exactly": exact,
        "load_at_which_errors_pass_1.6_percent": loads[BEGINS],
        "load_at_which_errors_pass_10_percent": loads[LOST],
        "largest_rise_of_energy": rise,
    }
    start = topic.mean_and_std([(digits[1] != digits[0]).mean() for digits in shown])
    baseline = {"wrong_units": start, "wrong_pixels_of_digits": start}
    works = "recalls" if from_damaged["mean"] < 0.01 else "does not fully recall"
    text = (
        f"With {LIGHT:g} random patterns per unit the network {works} patterns with {FLIPPED:.0%} of the units flipped "
        f"({from_damaged['mean']:.1%} of the units wrong) and {exact['mean']:.0%} of its {len(wrong[0])} digits "
        f"exactly; in {first['updates']:,} updates the energy "
        f"{'never rose' if rise <= 0 else f'rose by up to {rise:g}'}. "
    )
    begins, lost = loads[BEGINS], loads[LOST]
    if begins and lost:
        near = "close to" if abs(begins["mean"] - THEORY) < 0.015 else "not close to"
        text += (
            f"With {large} units, stored patterns begin to decay at a load of {begins['mean']:.3f}, {near} the "
            f"theoretical {THEORY}, and are lost at {lost['mean']:.3f}: unlike for infinitely many units, the "
            "transition is gradual."
        )
    else:
        text += f"No collapse was seen up to a load of {max(first['loads'])}."
    caption = (
        f"above: three digits stored in {SIDE**2} units, seed 0, and the energy during recall of the first; below: "
        f"wrong units after recall by load, with {' and '.join(map(str, first['sizes']))} units"
    )
    return Findings(text, numbers, baseline, draw_hopfield(results), caption, "before recall")


HOPFIELD = Card(
    name="hopfield",
    title="Hopfield network (HN)",
    diagram=Diagram((Layer("backfed", 8),), form="circle"),
    idea="Every unit is connected to all others, and each stored image is a local minimum of the network's energy, or "
    "close to one, if there are few. Starting from a corrupted image, the state descends to a minimum, usually that of "
    "the original image: an associative memory.",
    formula=r"w_{ij} = \sum_\mu \xi_i^\mu \xi_j^\mu, \quad E = -\frac{1}{2} \sum_{i \ne j} w_{ij} s_i s_j",
    rule="Hebb's rule: for each pattern, a weight increases if its two units are equal and decreases otherwise; in "
    "recall, units are updated one at a time to the sign of their weighted input.",
    reference="Hopfield, 1982, Neural networks and physical systems with emergent collective computational abilities",
    run=run_hopfield,
    report=report_hopfield,
)


CARDS = (HOPFIELD,)
