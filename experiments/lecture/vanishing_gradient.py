"""Gradients backpropagated through a deep network: python -m experiments.lecture.vanishing_gradient --workdir=W

For plain networks of dense layers on mnist5k: the norm of each layer's gradient with four activations and with Glorot
and Kaiming initialization, before and after some training steps; and the training accuracy of a deep sigmoid network
compared with that of a deep ReLU network.
"""

import functools

import matplotlib
import numpy as np
import optax

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
    "sigmoid": ("sigmoid", figures.COLOURS["eval"]),
    "relu": ("ReLU", figures.COLOURS["test"]),
    "rectified_tanh": ("rectified tanh", "#CC79A7"),
}
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


def draw_norms(found: dict, when: str, title: str):
    """Plots the gradient norm by layer, in the order of backpropagation; one panel per initialization."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=6.4)
        panels = figure.subplots(2, 1, sharex=True, sharey=True)
        topic.headline(figure, title, 50)
        ends: dict[str, list[tuple[float, str, str]]] = {init: [] for init in INITS}
        for axes, init in zip(panels, INITS, strict=True):
            axes.set(yscale="log", ylabel="norm of the gradient")
            axes.set_title(f"{init.title()} initialization", fontsize=11, fontweight="normal")
            for name, (label, colour) in LINES.items():
                values = np.array([seed[when] for seed in found[name, init]])[:, ::-1]
                layers = np.arange(values.shape[1], 0, -1)
                ends[init].append((deep_nets.draw_band(axes, layers, values, colour), label, "alone"))
        panels[0].set(xlim=(layers[0], 1), ylim=(None, 30 * panels[0].get_ylim()[1]))
        panels[0].yaxis.set_major_formatter(deep_nets.tick)
        panels[-1].set_xticks([int(x) for x in np.linspace(layers[0], 1, 5)])
        panels[-1].set_xlabel("layer, from the last to the first")
        figure.draw_without_rendering()  # The label positions depend on the final layout.
        for axes, init in zip(panels, INITS, strict=True):
            figures.label_ends(axes, ends[init])
            for text in axes.texts:
                text.set_color(dict(LINES.values())[text.get_text()])
    return figure


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
            [seed["start"][0] / seed["start"][-1] for seed in seeds],
            [seed["after"][0] / seed["after"][-1] for seed in seeds],
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

    # --- Figures and text.
    ten, verdict = deep_nets.power_of_ten, deep_nets.verdict
    ratio, after, first = ({k: v["mean"] for k, v in numbers[key].items()} for key in MEASURED)
    for means, when, place in ((ratio, "start", "At the start"), (after, "after", f"After {AFTER} steps")):
        title = (
            f"{place} the gradient norm of layer 1 is {ten(means['sigmoid_glorot'])} times that of layer {depth} with "
            f"sigmoid (Glorot), {ten(means['relu_kaiming'])} times with ReLU (Kaiming)"
        )
        caption = f"Frobenius norm of the gradient of each layer's weights, {place.lower()}; mean and range over seeds"
        this_topic.figure(
            f"norms_{when}", draw_norms(found, when, title), title=f"Gradients {place.lower()}", caption=caption
        )
    percent = {name: f"{100 * value['mean']:.1f} %" for name, value in accuracy.items()}
    says = {name: verdict(value["mean"]) for name, value in accuracy.items()}
    title = f"{depth} layers: ReLU {says['relu']} ({percent['relu']}), sigmoid {says['sigmoid']} ({percent['sigmoid']})"
    caption = (
        f"plain SGD, batches of {deep_nets.BATCH_SIZE}, rate {RATE:g} for ReLU (Kaiming), {best:g} for sigmoid "
        f"(Glorot), the best of {', '.join(f'{rate:g}' for rate in RATES)}; mean and range over seeds"
    )
    nets_shown = [(relu, "ReLU", "test"), (sigmoid[best], "sigmoid", "eval")]
    this_topic.figure(
        "accuracy", deep_nets.draw_accuracy(nets_shown, title), title="Two deep networks", caption=caption
    )

    gone = [label for name, (label, _) in LINES.items() if ratio[f"{name}_glorot"] < VANISHED]
    dim = first["relu_glorot"] / first["relu_kaiming"]
    text = [
        "The lecture: in a deep network with saturating units the gradient vanishes before it reaches the first "
        "layers, which then do not learn; rectified units do not attenuate it.",
        f"Here the ratio of the gradient norms of layer 1 and layer {depth} is {ten(ratio['sigmoid_glorot'])} with "
        f"sigmoid, whose derivative of at most 1/4 enters the product {depth - 1} times, {ten(ratio['tanh_glorot'])} "
        f"with tanh (both with Glorot initialization) and {ten(ratio['relu_kaiming'])} with ReLU and Kaiming "
        f"initialization; with Glorot it is below {VANISHED:g} for {' and '.join(gone) or 'none of the four'}"
        + ("." if "tanh" in gone else ", but not for tanh at this depth."),
        f"A ratio near 1 is not sufficient: for ReLU it is {ten(ratio['relu_glorot'])} with Glorot, but the "
        f"gradient of layer 1 is then {ten(dim)} times as large as with Kaiming.",
        f"In {steps} steps of plain SGD the ReLU network {says['relu']} (training accuracy {percent['relu']}) and the "
        f"sigmoid network {says['sigmoid']} at the best of {len(RATES)} learning rates ({percent['sigmoid']}; chance "
        f"is {100 * deep_nets.CHANCE:.0f} %).",
    ]
    rows = [
        [LINES[name][0], init.title(), *(ten(means[f"{name}_{init}"]) for means in (ratio, after, first))]
        for name, init in found
    ]
    header = [
        "activation",
        "initialization",
        "layer 1 / last, start",
        f"layer 1 / last, {AFTER} steps",
        "layer 1, start",
    ]
    return topic.TopicResult(text, numbers, [("Gradient norms", header, rows)])


if __name__ == "__main__":
    topic.main("vanishing_gradient", experiment, OPTIONS)
