"""Glorot and Kaiming initialization: python -m experiments.lecture.initialization --workdir=W

Random weights compared with their equations; activations and gradients of a tanh network by layer, as in Glorot &
Bengio 2010, "Understanding the difficulty", figures 6 and 7; and ReLU networks of 22 and 30 layers without batch norm,
as in He et al. 2015, "Delving deep into rectifiers", figures 2 and 3. "Xavier" in He et al. is N(0, 1/m), the variance
of Glorot & Bengio for m = n.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from experiments.cli import app
from experiments.lecture import deep_nets, topic
from experiments.reporting import figures
from models.initializers import fans, glorot_uniform, normal

OPTIONS = {
    "steps": (800, "Number of training steps per ReLU network."),
    "width": (128, "Number of units in each hidden layer of a ReLU network."),
    "depths": ("22,30", "Comma-separated depths of the ReLU networks, each between 3 and 100."),
}
SHAPES = {"dense, 784 to 128": (784, 128), "convolution 3x3, 64 to 128": (3, 3, 64, 128)}
SLOPES = (0.0, 0.25)  # 0.25 is the initial slope of PReLU in He et al.
RULES = {"standard": "older rule", "glorot": "Glorot initialization"}  # Of the tanh network.
QUANTITIES = {"activations": "activations", "gradients": "errors"}
RATE, MOMENTUM = 0.005, 0.9
WIDTH_TANH, EXAMPLES, BINS = 500, 200, 61  # Units per layer of the tanh network, digits, histogram bins.


def kaiming(slope: float):
    """N(0, 2 / ((1 + slope^2) fan_in)), for rectifiers with slope `slope` below zero (He et al. 2015, eq. 15)."""

    def init(key, shape, dtype=jnp.float32):
        return normal(math.sqrt(2 / ((1 + slope**2) * fans(shape)[0])))(key, shape, dtype)

    return init


def standard(key, shape, dtype=jnp.float32):
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), the earlier common heuristic (Glorot & Bengio 2010, eq. 1)."""
    limit = 1 / math.sqrt(fans(shape)[0])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def draws() -> list[list]:
    """Returns rows (weights, quantity, fan-in, fan-out, value by the equation, value of the drawn weights)."""
    rows, key = [], jax.random.key(0)
    for name, shape in SHAPES.items():
        n_in, n_out = fans(shape)
        said, drawn = math.sqrt(6 / (n_in + n_out)), jnp.abs(glorot_uniform(key, shape)).max()
        rows.append([name, "Glorot: largest weight", n_in, n_out, f"{said:.5f}", f"{drawn:.5f}"])
        for slope in SLOPES:
            said, drawn = 2 / ((1 + slope**2) * n_in), kaiming(slope)(key, shape).var()
            rows.append([name, f"Kaiming: variance, slope {slope:g}", n_in, n_out, f"{said:.5f}", f"{drawn:.5f}"])
    return rows


def at_the_start(task, model: deep_nets.DeepMLP, digits: deep_nets.Digits, *, seed: int) -> dict:
    """Activations and gradients of an untrained network: their standard deviation by hidden layer and histograms
    [layers, BINS] from -limit to limit; gradients are in units of the standard deviation of the last layer."""
    images, labels = deep_nets.some(digits, EXAMPLES)

    params = jax.jit(task.init)(jax.random.key(seed)).params
    activations = np.asarray(deep_nets.hidden_activations(params, images, model=model))
    gradients = np.asarray(deep_nets.hidden_gradients(params, images, labels, model=model))
    found = {}
    for name, values, limit in (("activations", activations, 1), ("gradients", gradients / gradients[-1].std(), 3)):
        histograms = [np.histogram(layer, BINS, (-limit, limit), density=True)[0].tolist() for layer in values]
        found[name] = {"std": values.std((1, 2)).tolist(), "limit": limit, "histograms": histograms}
    return found


def fit(task, model: deep_nets.DeepMLP, digits: deep_nets.Digits, *, steps: int, seed: int) -> dict:
    """Trains a ReLU network. Returns its training `curve` and its initial `signal`: the ratio of the root mean square
    activation of the last hidden layer to that of the first."""
    params, (images, _) = jax.jit(task.init)(jax.random.key(seed)).params, deep_nets.some(digits, EXAMPLES)
    seen = deep_nets.hidden_activations(params, images, model=model)
    first, last = (float(np.sqrt(np.mean(np.square(layer)))) for layer in (seen[0], seen[-1]))
    curve = deep_nets.train(task, digits, steps=steps, seed=seed, every=max(1, steps // 16))
    return {"curve": curve, "signal": last / first}


def draw_histograms(found: dict, what: str, unit: str, title: str):
    """Histograms for seed 0: one column per initialization, one row per hidden layer, the first on top."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False, "axes.spines.left": False}):
        figure = figures.new_figure(height=5.7)
        panels = figure.subplots(len(found["glorot"][0][what]["std"]), 2, sharex=True)
        topic.headline(figure, title, 50)
        figure.supxlabel(unit, fontsize=11)
        for column, (name, colour) in enumerate((("standard", "eval"), ("glorot", "train"))):
            kept = found[name][0][what]
            edges = np.linspace(-kept["limit"], kept["limit"], BINS + 1)
            panels[0, column].set_title(RULES[name].capitalize(), fontsize=11, fontweight="normal")
            for axes, heights, std in zip(panels[:, column], kept["histograms"], kept["std"], strict=True):
                axes.stairs(heights, edges, fill=True, color=figures.COLOURS[colour])
                axes.set(
                    xmargin=0,
                    xticks=np.linspace(edges[0] / 2, edges[-1] / 2, 3),
                    yticks=[],
                    ylim=(0, 1.45 * max(heights)),
                )
                label = f"layer {kept['std'].index(std) + 1}, standard deviation {std:.2f}"
                axes.text(0.5, 0.98, label, transform=axes.transAxes, va="top", ha="center", fontsize=10)
    return figure


def half_way(curve: list[dict]) -> float | None:
    """The step at which the linearly interpolated accuracy first reaches 50 %, or None."""
    for before, after in itertools.pairwise(curve):
        if after["accuracy"] >= 0.5:
            rise = max(after["accuracy"] - before["accuracy"], 1e-9)
            return before["step"] + max(0.0, (0.5 - before["accuracy"]) / rise) * (after["step"] - before["step"])
    return None


def half_right(net: dict) -> str:
    """How soon a network reaches 50 % accuracy, or a verdict if not all seeds reach it."""
    half = net["steps_to_half"]
    return f"reaches 50 % after {half['mean']:.0f} steps" if half else deep_nets.verdict(net["accuracy"]["mean"])


def describe(this_topic: topic.Topic, numbers: dict, checked: list[list]) -> topic.TopicResult:
    """Creates the topic's text, tables and guesses from the numbers."""
    ten, steps = deep_nets.power_of_ten, this_topic.options["steps"]
    spread = {what: each["std_by_layer"] for what, each in numbers["tanh"].items()}

    def change(what, name):
        """The largest factor between the standard deviations of two layers."""
        return max(spread[what][name]) / min(spread[what][name])

    ratios = numbers["tanh"]["activations"]["first_over_last"]
    left = {name: 100 / ratio["mean"] for name, ratio in ratios.items()}  # In layer 5, in percent of layer 1.
    steadier = all(change(what, "glorot") < change(what, "standard") for what in spread)
    text = [
        "In the tanh network, activations and errors change less from layer to layer with Glorot initialization than "
        f"with the older rule: from layer 1 to layer 5 the activations shrink to {left['glorot']:.0f} % instead of "
        f"{left['standard']:.0f} %. They still shrink, because tanh is only nearly linear: its value is always closer "
        "to 0 than its input."
        if steadier
        else "The claim is not confirmed: in the tanh network the older rule preserves the scale as well as Glorot "
        "initialization.",
        "The equations predict that each hidden layer of a ReLU network multiplies the signal, the root mean square "
        "activation, by √½ ≈ 0.71 with Glorot initialization, whose variance is 1 / n_in here, and by 1 with Kaiming "
        "initialization. The second table compares the signal in the last hidden layer, as a share of that in the "
        "first, with the networks before training.",
    ]
    rows, guesses = [], []
    for depth, nets in numbers["relu"].items():
        expected = {"glorot": 0.5 ** (int(depth) / 2 - 1), "kaiming": 1.0}
        for name, net in nets.items():
            half = f"{net['steps_to_half']['mean']:.0f}" if net["steps_to_half"] else "not reached"
            signal = [ten(expected[name]), ten(net["signal"]["mean"])]
            rows.append([depth, name.title(), *signal, half, this_topic.percent(net["accuracy"])])
        question = (
            f"A ReLU network of {depth} layers is trained from Glorot initialization. What is its training accuracy "
            f"after {steps} steps? Guessing gives {100 * deep_nets.CHANCE:.0f} %."
        )
        guesses.append(topic.Guess(f"layers{depth}", question, "%", 0, 100, 100 * nets["glorot"]["accuracy"]["mean"]))
    verdicts = {name.title(): deep_nets.verdict(net["accuracy"]["mean"]) for name, net in nets.items()}
    seen = " and ".join(f"{verdict} from {name} initialization" for name, verdict in verdicts.items())
    text.append(
        "He et al. (2015) found that a network with 30 layers does not learn from Glorot initialization and learns "
        f"from Kaiming initialization. Here the network with {depth} layers {seen}."
    )
    layers = range(1, len(spread["activations"]["glorot"]) + 1)
    tables = [
        (
            f"tanh network before training: standard deviation by layer, {this_topic.over_seeds('mean')}",
            ["quantity", "initialization", *(f"layer {layer}" for layer in layers)],
            [
                [
                    {"gradients": "errors, relative to layer 5"}.get(what, QUANTITIES[what]),
                    label,
                    *(ten(value) for value in each[name]),
                ]
                for what, each in spread.items()
                for name, label in RULES.items()
            ],
        ),
        (
            f"ReLU networks, {this_topic.over_seeds()}",
            ["layers", "initialization", "signal last / first layer, predicted", "signal, measured"]
            + ["steps until 50 % accuracy", f"accuracy after {steps} steps"],
            rows,
        ),
        ("Random weights and their equations", ["weights", "quantity", "n_in", "n_out", "equation", "drawn"], checked),
    ]
    question = (
        "With the older rule, how large is the standard deviation of the activations in layer 5, in percent of that in "
        "layer 1?"
    )
    guesses.insert(0, topic.Guess("activations", question, "%", 0, 100, left["standard"]))
    return topic.TopicResult(text, numbers, tables, guesses)


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, depths = this_topic.options["steps"], this_topic.options["depths"].split(",")
    known = all(re.fullmatch("[0-9]{1,3}", depth) and 3 <= int(depth) <= 100 for depth in depths)
    app.require(known, f"--depths={','.join(depths)}: must be comma-separated integers between 3 and 100")
    digits, checked = deep_nets.digits(), this_topic.cached("draws", draws)
    # --- An untrained tanh network with five hidden layers, as in Glorot & Bengio.
    inits, fresh = {"standard": standard, "glorot": glorot_uniform}, {}
    tasks = deep_nets.tasks(6, WIDTH_TANH, ["tanh"], digits, optax.sgd(RATE), inits)
    for (_, name), task in tasks.items():
        look = functools.partial(at_the_start, task, deep_nets.DeepMLP(6, WIDTH_TANH, "tanh"), digits)
        fresh[name] = [
            this_topic.cached(f"tanh_{name}_seed{s}", functools.partial(look, seed=s)) for s in this_topic.seeds
        ]
    numbers: dict = {"tanh": {}, "relu": {}}
    for what, quantity in QUANTITIES.items():
        stds = {name: np.array([seed[what]["std"] for seed in per]) for name, per in fresh.items()}
        ratio = {name: topic.mean_and_std(std[:, 0] / std[:, -1]) for name, std in stds.items()}
        means = {name: std.mean(0).tolist() for name, std in stds.items()}
        numbers["tanh"][what] = {"first_over_last": ratio, "std_by_layer": means}
        if what == "activations":
            layers, shares = "5 relative to layer 1", {name: 1 / ratio[name]["mean"] for name in ratio}
        else:
            layers, shares = "1 relative to layer 5", {name: ratio[name]["mean"] for name in ratio}
        older, newer = (f"{100 * share:.0f}\N{NO-BREAK SPACE}%" for share in shares.values())
        title = (
            f"Standard deviation of the {quantity} in layer {layers}: {older} with the older rule, {newer} with Glorot"
        )
        unit = {"activations": "activation", "gradients": "error / standard deviation of the errors in layer 5"}[what]
        caption = f"{quantity} of an untrained tanh network by layer (seed 0); older rule: uniform between ±1/√n_in"
        caption += "; each histogram is scaled to its own maximum"
        this_topic.figure(what, draw_histograms(fresh, what, unit, title), title=quantity.capitalize(), caption=caption)

    # --- Training of deep ReLU networks.
    for depth in map(int, depths):
        model = deep_nets.DeepMLP(depth, this_topic.options["width"], "relu")
        tasks = deep_nets.tasks(depth, model.width, ["relu"], digits, optax.sgd(RATE, MOMENTUM))
        nets, curves = numbers["relu"].setdefault(str(depth), {}), {}
        for (_, name), task in tasks.items():
            work = functools.partial(fit, task, model, digits, steps=steps)
            results = [
                this_topic.cached(f"relu{depth}_{name}_seed{s}", functools.partial(work, seed=s))
                for s in this_topic.seeds
            ]
            curves[name] = [result["curve"] for result in results]
            last = [curve[-1] for curve in curves[name]]
            half = [half_way(curve) for curve in curves[name]]
            nets[name] = {
                "accuracy": topic.mean_and_std([row["accuracy"] for row in last]),
                "loss": topic.mean_and_std([row["loss"] for row in last]),
                "steps_to_half": None if None in half else topic.mean_and_std(half),
                "signal": topic.mean_and_std([result["signal"] for result in results]),
            }
        title = f"{depth} layers: " + ", ".join(f"{name.title()} {half_right(net)}" for name, net in nets.items())
        lines = [(curves["glorot"], "Glorot", "eval"), (curves["kaiming"], "Kaiming", "train")]
        caption = (
            f"dense layers with ReLU, SGD with learning rate {RATE:g}, momentum {MOMENTUM:g}; line: mean over seeds, "
            "band: smallest to largest"
        )
        this_topic.figure(
            f"layers{depth}", deep_nets.draw_accuracy(lines, title), title=f"{depth} layers", caption=caption
        )
    return describe(this_topic, numbers, checked)


if __name__ == "__main__":
    topic.main("initialization", experiment, OPTIONS)
