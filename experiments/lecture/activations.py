"""Activation functions, their derivatives and their saturation:
python -m experiments.lecture.activations --workdir=W
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.lecture import topic
from experiments.reporting import figures
from models import layers

LECTURE = ("tanh", "sigmoid", "relu", "rectified_tanh", "leaky_relu")
ACTIVATIONS = {name: layers.ACTIVATIONS[name] for name in LECTURE}
THRESHOLD = 0.1  # Inputs whose derivative is below this fraction of the largest one count as saturated.
STDS = (1, 3)  # Standard deviations of the normal inputs.
POINTS = 100_000
FUNCTION, DERIVATIVE = figures.COLOURS["train"], figures.COLOURS["eval"]


def derivative(name: str, z) -> np.ndarray:
    """The derivative of the activation `name` at each z [N], by automatic differentiation."""
    return np.asarray(jax.jit(jax.vmap(jax.grad(ACTIVATIONS[name])))(jnp.asarray(z, jnp.float32)))


@functools.cache
def extremes(name: str) -> tuple[float, float]:
    """The smallest and the largest derivative at z = -5, -4.999, ... 5."""
    slopes = derivative(name, np.arange(-5_000, 5_001) / 1000)
    return float(slopes.min()), float(slopes.max())


@functools.cache
def normal_points(std: float, count: int = POINTS) -> np.ndarray:
    """The quantiles of N(0, std^2) at the midpoints of `count` equal probability intervals; the mean of a function over
    them approximates its expectation."""
    middles = (jnp.arange(count) + 0.5) / count
    return std * np.asarray(jax.scipy.special.ndtri(middles))


def saturated(name: str, *, std: float, positive: bool = False) -> float:
    """The fraction of inputs from N(0, std^2), or only of the `positive` ones, at which the derivative is below
    THRESHOLD times its maximum."""
    z = normal_points(std)
    small = derivative(name, z) < THRESHOLD * extremes(name)[1]
    return float(small[z > 0].mean() if positive else small.mean())


def measure() -> dict[str, dict[str, float]]:
    """For each activation, the extremes of its derivative and the saturated fractions of normal inputs; for the widest
    distribution also the saturated fraction of positive inputs."""
    found = {}
    for name in ACTIVATIONS:
        smallest, largest = extremes(name)
        shares = {f"saturated_std{s}": saturated(name, std=s) for s in STDS}
        widest = saturated(name, std=STDS[-1], positive=True)
        shares |= {f"saturated_positive_std{STDS[-1]}": widest}
        found[name] = {"largest_derivative": largest, "smallest_derivative": smallest, **shares}
    return found


def titled(name: str) -> str:
    names = {"sigmoid": "logistic function", "relu": "ReLU", "leaky_relu": "leaky ReLU"}
    return names.get(name, name.replace("_", " "))


def curves(title: str):
    """One panel per activation: the function and its derivative, shaded gray where the derivative is small."""
    z = np.arange(-500, 501) / 100
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=6.4)
        topic.headline(figure, title)
        panels = figure.subplots(3, 2, sharex=True, sharey=True).ravel()
        for axes, name in zip(panels, ACTIVATIONS, strict=False):
            slope = derivative(name, z)
            small = slope < THRESHOLD * extremes(name)[1]
            axes.fill_between(z, -1.2, 2.2, where=small, color="#e3e3e3", linewidth=0)
            axes.plot(z, ACTIVATIONS[name](jnp.asarray(z, jnp.float32)), color=FUNCTION)
            axes.plot(z, slope, color=DERIVATIVE, linestyle=(0, (4, 1.5)))
            axes.set_title(titled(name))
            axes.set(xlim=(-5, 5), ylim=(-1.2, 2.2), xticks=[-4, -2, 0, 2, 4], yticks=[-1, 0, 1, 2])
            axes.tick_params(labelbottom=True)
        for axes in panels[len(ACTIVATIONS) - 2 : len(ACTIVATIONS)]:
            axes.set_xlabel("input z")
        for axes in panels[len(ACTIVATIONS) :]:  # The empty panel holds the legend.
            axes.set_axis_off()
            for y, text, colour in (
                (1.6, "function", FUNCTION),
                (0.9, "derivative (dashed)", DERIVATIVE),
                (0.2, f"gray: derivative below\n{THRESHOLD:g} times its maximum", "#666666"),
            ):
                axes.text(-4.6, y, text, color=colour, va="top", fontsize=11, fontweight="bold")
    return figure


def bars(found, title: str):
    """The saturated fractions, with a pair of bars per activation."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=4.2)
        axes = figure.add_subplot()
        for offset, s, colour in zip((-0.2, 0.2), STDS, ("#56B4E9", "#D55E00"), strict=True):
            shares = [100 * found[name][f"saturated_std{s}"] for name in found]
            axes.barh(np.arange(len(found)) + offset, shares, 0.38, color=colour, label=f"standard deviation {s}")
            for row, share in enumerate(shares):
                axes.text(share + 1, row + offset, f"{share:.3g} %", va="center", fontsize=10, color="#333333")
        axes.set_yticks(range(len(found)), [titled(name) for name in found])
        axes.invert_yaxis()
        axes.set(xlim=(0, 100), xlabel="saturated inputs, %")
        figure.legend(loc="outside lower center", ncols=len(STDS), frameon=False)
        topic.headline(figure, title)
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    narrow, wide = STDS
    found = this_topic.cached("shares", measure)

    def percent(name: str, key: str) -> str:
        return f"{100 * found[name][key]:.3g} %"

    keep = [name for name in found if not found[name][f"saturated_positive_std{wide}"]]
    kept = " and ".join(map(titled, keep)) or "no function"
    title = f"Not saturated for any z > 0: {kept}" if keep else "For z > 0 every function saturates"
    caption = f"each function and its derivative; gray where the derivative is below {THRESHOLD:g} times its maximum"
    this_topic.figure("functions", curves(title), title="Functions and derivatives", caption=caption)

    growth = {name: found[name][f"saturated_std{wide}"] - found[name][f"saturated_std{narrow}"] for name in found}
    most = max(growth, key=lambda name: growth[name])
    shares = f"{percent(most, f'saturated_std{wide}')} of them instead of {percent(most, f'saturated_std{narrow}')}"
    title = f"With inputs {wide / narrow:g} times as wide, {titled(most)} saturates for {shares}"
    caption = f"percentage of normally distributed inputs z whose derivative is below {THRESHOLD:g} times its maximum"
    this_topic.figure("saturation", bars(found, title), title="Saturation", caption=caption)

    text = (
        f"Larger weighted sums saturate the S-shaped functions: for inputs with standard deviation {wide} instead of "
        f"{narrow}, the saturated percentage of tanh rises from {percent('tanh', f'saturated_std{narrow}')} to "
        f"{percent('tanh', f'saturated_std{wide}')}, that of the logistic function from "
        f"{percent('sigmoid', f'saturated_std{narrow}')} to {percent('sigmoid', f'saturated_std{wide}')}. The logistic "
        "function is wider, so it saturates less often, but even its largest slope is only a quarter of that of tanh.",
        f"For ReLU it is {percent('relu', f'saturated_std{wide}')} at any scale: the negative inputs. Of the positive "
        f"inputs none is saturated for {kept}, but {percent('rectified_tanh', f'saturated_positive_std{wide}')} are "
        f"for the rectified tanh at standard deviation {wide}. The leaky ReLU counts as "
        "saturated for negative inputs, too, but its slope of 0.01 is never 0. The percentages are computed from the "
        "normal distribution, so they have no uncertainty (std: standard deviation).",
    )
    header = ["function", "largest derivative", f"saturated, std {narrow}", f"saturated, std {wide}"]
    header += [f"std {wide}, z > 0 only"]
    keys = [*(f"saturated_std{std}" for std in STDS), f"saturated_positive_std{wide}"]
    rows = [
        [titled(name), f"{numbers['largest_derivative']:.3g}", *(percent(name, key) for key in keys)]
        for name, numbers in found.items()
    ]
    largest, share = found["sigmoid"]["largest_derivative"], 100 * found["tanh"][f"saturated_std{wide}"]
    guesses = [
        topic.Guess("functions", "How large is the largest derivative of the logistic function?", "", 0, 1, largest),
        topic.Guess(
            "saturation",
            f"Inputs are normally distributed with standard deviation {wide}. For what percentage of them is tanh "
            "saturated?",
            "%",
            0,
            100,
            share,
        ),
    ]
    return topic.TopicResult(text, found, [("Derivatives and saturation", header, rows)], guesses)


if __name__ == "__main__":
    topic.main("activations", experiment)
