"""Gradients backpropagated through a deep network: python -m experiments.lecture.vanishing_gradient --workdir=W

For plain networks of dense layers on mnist5k: the norm of each layer's gradient with four activations and with Glorot
and Kaiming initialization, before and after some training steps; and the training accuracy of a deep sigmoid network
compared with that of a deep ReLU network.
"""

import functools
import math
from typing import Any

import matplotlib
import numpy as np
import optax
from matplotlib.lines import Line2D

from experiments.cli import app
from experiments.lecture import deep_nets, topic
from experiments.lecture.deep_nets import INITS
from experiments.reporting import figures
from experiments.setup import small_training

OPTIONS = {
    "steps": (800, "Number of training steps of the ReLU and the sigmoid network."),
    "hidden_layers": (20, "Number of hidden layers of all networks, at most 50, with 64 units each."),
}
LINES = {  # activation: label, color
    "tanh": ("tanh", figures.COLOURS["train"]),
    "sigmoid": ("logistic", figures.COLOURS["eval"]),
    "relu": ("ReLU", figures.COLOURS["test"]),
    "rectified_tanh": ("rectified tanh", "#CC79A7"),
}
SPREAD = "line: mean over seeds, band: smallest to largest"
WIDTH = 64
EXAMPLES = 1000  # Number of digits on which the gradient is measured.
AFTER = 100  # Training steps before the second measurement.
RATE = 0.01  # Learning rate of all runs except those of the sigmoid network, which uses the best of RATES.
RATES = (0.01, 0.1, 1.0, 10.0)
MEASURED = ("ratio", f"ratio_after_{AFTER}_steps", "first_layer")
VANISHED = 0.01  # Gradients have vanished if the ratio of the first layer's norm to the last layer's is below this.


def norms(model: deep_nets.DeepMLP, task, digits: deep_nets.Digits, *, seed: int) -> dict[str, list[float]]:
    """Gradient norms by layer [depth]: "start" is before training, "after" is after AFTER training steps."""
    images, labels = deep_nets.some(digits, EXAMPLES)
    found = {}
    for name, steps in (("start", 0), ("after", AFTER)):
        state = small_training.train(
            task, digits.images, digits.labels, batch_size=deep_nets.BATCH_SIZE, steps=steps, seed=seed
        )
        found[name] = deep_nets.gradient_norms(state.params, images, labels, model=model)
    return found


def relative(norms) -> np.ndarray:
    """Norms [..., layers] divided by those of the last layer. If that is 0, no ReLU is active in some layer, so all
    norms and the result are 0."""
    norms = np.asarray(norms, np.float64)
    last = norms[..., -1:]
    with np.errstate(invalid="ignore"):  # Infinite norms of a network that has diverged.
        return np.divide(norms, last, out=np.zeros_like(norms), where=last != 0)


def draw_norms(found: dict, when: str, title: str):
    """Plots the gradient norm by layer: the mean over seeds with a band from minimum to maximum, one panel per
    initialization."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=6.4)
        panels = figure.subplots(2, 1, sharex=True, sharey=True)
        topic.headline(figure, title, 50)
        for axes, init in zip(panels, INITS, strict=True):
            axes.set(yscale="log", ylabel="norm of the gradient")
            axes.set_title(f"{init.title()} initialization", fontsize=11, fontweight="normal")
            for name, (_, colour) in LINES.items():
                values = np.array([seed[when] for seed in found[name, init]])
                layers = np.arange(1, values.shape[1] + 1)
                deep_nets.draw_band(axes, layers, values, colour)
        lines = [Line2D([], [], color=colour) for _, colour in LINES.values()]
        figure.legend(lines, [label for label, _ in LINES.values()], loc="outside lower center", ncols=len(lines))
        panels[0].set(xlim=(1, layers[-1]))
        panels[0].yaxis.set_major_formatter(deep_nets.tick)
        panels[-1].set_xticks(sorted({round(x) for x in np.linspace(1, layers[-1], 5)}))
        panels[-1].set_xlabel("layer")
    return figure


def widget(found: dict) -> dict[str, Any]:
    """The data of widgets/gradient_depth.js from the results of `norms` by seed, for each (activation, init)."""

    def rounded(values):
        return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]

    curves = {}
    for (name, init), seeds in found.items():
        for when in ("start", "after"):
            values = np.array([seed[when] for seed in seeds])
            parts = {"mean": values.mean(0), "low": values.min(0), "high": values.max(0)}
            parts["ratio"] = relative(values).mean(0)
            curves[f"{name} {init} {when}"] = {part: rounded(each) for part, each in parts.items()}
    return {
        "seeds": len(seeds),
        "after": AFTER,
        "activations": [[name, *look] for name, look in LINES.items()],
        "inits": [[init, init.title()] for init in INITS],
        "norms": curves,
    }


def listed(words: list[str]) -> str:
    """Joins words as in "a, b and c"."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    hidden, steps = this_topic.options["hidden_layers"], this_topic.options["steps"]
    # With more layers the gradient of the sigmoid network underflows float32.
    app.require(hidden <= 50, f"--hidden_layers={hidden}: must be between 1 and 50")
    depth, digits = hidden + 1, deep_nets.digits()
    tasks = deep_nets.tasks(depth, WIDTH, list(LINES), digits, optax.sgd(RATE))

    # --- Gradient norms.
    found = {}
    for (name, init), task in tasks.items():
        measure = functools.partial(norms, deep_nets.DeepMLP(depth, WIDTH, name), task, digits)
        found[name, init] = [
            this_topic.cached(f"norms_{name}_{init}_seed{seed}", functools.partial(measure, seed=seed))
            for seed in this_topic.seeds
        ]
    numbers: dict = {"layers": depth, **{key: {} for key in MEASURED}}
    for (name, init), seeds in found.items():
        values = (
            [relative(seed["start"])[0] for seed in seeds],
            [relative(seed["after"])[0] for seed in seeds],
            [seed["start"][0] for seed in seeds],
        )
        for key, each in zip(MEASURED, values, strict=True):
            numbers[key][f"{name}_{init}"] = topic.mean_and_std(each)

    # --- Training of two networks.
    def curves(task, name, rate):
        fit = functools.partial(deep_nets.train, task, digits, steps=steps, every=max(1, steps // 16))
        return [
            this_topic.cached(f"train_{name}_rate{rate:g}_seed{seed}", functools.partial(fit, seed=seed))
            for seed in this_topic.seeds
        ]

    def final(per_seed):
        return topic.mean_and_std([curve[-1]["accuracy"] for curve in per_seed])

    def score(rate):  # If all rates stay at chance level, the loss decides.
        return final(sigmoid[rate])["mean"], -np.mean([curve[-1]["loss"] for curve in sigmoid[rate]])

    relu, sigmoid = curves(tasks["relu", "kaiming"], "relu", RATE), {}
    for rate in RATES:
        task = deep_nets.tasks(depth, WIDTH, ["sigmoid"], digits, optax.sgd(rate))["sigmoid", "glorot"]
        sigmoid[rate] = curves(task, "sigmoid", rate)
    best = max(RATES, key=score)
    accuracy = {"relu": final(relu), "sigmoid": final(sigmoid[best])}
    numbers |= {"accuracy": accuracy, "sigmoid_rates": {f"{rate:g}": final(sigmoid[rate]) for rate in RATES}}
    numbers["sigmoid_best_rate"] = best

    # --- Figures.
    ten, label = deep_nets.power_of_ten, {name: text for name, (text, _) in LINES.items()}
    named = label | {"sigmoid": "the logistic function"}  # In sentences.
    ratio, after, first = ({k: v["mean"] for k, v in numbers[key].items()} for key in MEASURED)
    for means, when, place in ((ratio, "start", "Before training"), (after, "after", f"After {AFTER} steps")):
        title = (
            f"{place} the gradient norm of layer 1 is {ten(means['sigmoid_glorot'])} times that of layer {depth} with "
            f"{named['sigmoid']} (Glorot), {ten(means['relu_kaiming'])} times with {named['relu']} (Kaiming)"
        )
        vanished = any(0.0 in seed[when] for seeds in found.values() for seed in seeds)
        caption = f"Norm of the gradient of each layer's weights; {SPREAD}{'; norms of 0 are not shown' * vanished}"
        this_topic.figure(
            f"norms_{when}", draw_norms(found, when, title), title=f"Gradients {place.lower()}", caption=caption
        )
    percent = {name: f"{100 * value['mean']:.1f} %" for name, value in accuracy.items()}
    says = {name: deep_nets.verdict(value["mean"]) for name, value in accuracy.items()}
    title = ", ".join(f"{named[name]} {says[name]} ({percent[name]})" for name in accuracy)
    rates = listed([f"{rate:g}" for rate in RATES])
    stuck = says["sigmoid"] == deep_nets.verdict(deep_nets.CHANCE)
    caption = (
        f"Plain SGD, batches of {deep_nets.BATCH_SIZE}; ReLU: Kaiming initialization, learning rate {RATE:g}; "
        f"{label['sigmoid']}: Glorot initialization, learning rate {best:g} "
        f"({'it does not learn at any' if stuck else 'the best'} of {rates}); {SPREAD}"
    )
    nets_shown = [(relu, label["relu"], "test"), (sigmoid[best], label["sigmoid"], "eval")]
    drawn = deep_nets.draw_accuracy(nets_shown, f"{depth} layers: {title}")
    this_topic.figure("accuracy", drawn, title="Two deep networks", caption=caption)

    # --- Text, tables and guesses.
    gone = [named[name] for name in LINES if ratio[f"{name}_glorot"] < VANISHED]
    shares = [ten(ratio[f"{name}_glorot"]) for name in LINES if named[name] in gone]
    kept = [named[name] for name in LINES if named[name] not in gone]
    dim = first["relu_glorot"] / first["relu_kaiming"]
    text = [
        f"With Glorot initialization the gradient vanishes before training for {listed(gone)}: the norm in layer 1 is "
        f"{listed(shares)} times that in layer {depth}. (Here, less than {VANISHED:g} times counts as vanished.)"
        + (f" It does not vanish at this depth for {listed(kept)}." if kept else "")
        if gone
        else f"The claim is not confirmed at this depth: with Glorot initialization the norm in layer 1 "
        f"is at least {VANISHED:g} times that in layer {depth} for all activation functions.",
        "That the first layers keep up with the last is not sufficient. For ReLU with Glorot initialization the ratio "
        f"is {ten(ratio['relu_glorot'])}, but the gradient of layer 1 is only {ten(dim)} times as large as with "
        "Kaiming initialization. Each layer makes the activations smaller on the way forward and the errors smaller on "
        "the way back. The gradient of a layer is their product, so it is equally small in all layers.",
        f"In {steps} steps the network with ReLU {says['relu']}; the network with {named['sigmoid']} {says['sigmoid']} "
        f"at {'any' if stuck else 'the best'} of the learning rates {rates}. The training accuracies are "
        f"{this_topic.percent(accuracy['relu'])} and {this_topic.percent(accuracy['sigmoid'])} "
        f"({this_topic.over_seeds()}); guessing gives {100 * deep_nets.CHANCE:.0f} %.",
    ]
    rows = [
        [label[name], init.title(), *(ten(means[f"{name}_{init}"]) for means in (ratio, after, first))]
        for name, init in found
    ]
    header = ["activation", "initialization", f"layer 1 / layer {depth}, before training"]
    header += [f"layer 1 / layer {depth}, after {AFTER} steps", "norm in layer 1, before training"]
    table = (f"Gradient norms, {this_topic.over_seeds('mean')}", header, rows)
    guesses = [
        topic.Guess(
            "norms_start",
            f"A network has {depth} layers, the logistic function and Glorot initialization. By how many powers of ten "
            f"is the gradient of layer 1 smaller than that of layer {depth}?",
            "powers of ten",
            -2,
            max(10, depth),
            -math.log10(ratio["sigmoid_glorot"]),
        ),
        topic.Guess(
            "accuracy",
            f"{depth} layers with the logistic function are trained for {steps} steps, with the best of {len(RATES)} "
            f"learning rates. Guessing gives {100 * deep_nets.CHANCE:.0f} %. What is the training accuracy?",
            "%",
            0,
            100,
            100 * accuracy["sigmoid"]["mean"],
        ),
    ]
    return topic.TopicResult(text, numbers, [table], guesses, {"gradient_depth": widget(found)})


if __name__ == "__main__":
    topic.main("vanishing_gradient", experiment, OPTIONS)
