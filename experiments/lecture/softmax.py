"""Softmax with temperature, and the images that activate each output unit most ("grandmother cells").

python -m experiments.lecture.softmax --workdir=W [--steps=200]
"""

import functools
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.patches import Rectangle

import data
import models
from data import augment
from data.dataset import pixel_statistics
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from train import optimizers
from train.task import Task

OPTIONS = {"steps": (200, "Number of training steps, with batches of 64 digits.")}
TEMPERATURES = (0.25, 1.0, 4.0)
BATCH = 64
TOP, SHOWN = 20, 8  # Number of images with the largest logits that are counted, and shown, per unit.
RANKS = (0.0, 0.002, 0.01, 0.05, 0.25, 1.0)  # Places of the widget's digits, from the least to the most certain.


def softmax(logits, temperature: float = 1.0) -> np.ndarray:
    """exp(z / T) normalized to sum 1, [..., C] -> [..., C]: a Boltzmann distribution with energies -z."""
    scaled = np.asarray(logits, np.float64) / temperature
    # The largest power is 1, so nothing overflows.
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def entropy(probabilities) -> np.ndarray:
    """The entropy -sum p log p in nats, [..., C] -> [...], with 0 log 0 = 0."""
    p = np.asarray(probabilities)
    return 0.0 - (p * np.log(np.where(p > 0, p, 1.0))).sum(-1)  # 0, not -0, if p is certain.


def strongest(logits, top: int = TOP) -> np.ndarray:
    """The indices of the `top` images with the largest logits of each unit, in descending order: [N, C] -> [C, top]."""
    return np.argsort(-np.asarray(logits), axis=0, kind="stable")[:top].T


def own_share(indices, labels) -> np.ndarray:
    """The fraction [C] of each unit's images, `indices` [C, top], that belong to its class."""
    return (labels[indices] == np.arange(len(indices))[:, None]).mean(1)


@functools.cache
def create(steps: int) -> Task:
    """The task of training `cnn` on mnist5k, shared by all seeds so that its step is compiled once."""
    images, _ = data.load("mnist5k").splits["train"]
    mean, std = pixel_statistics(images)
    rate = optimizers.schedule("one_cycle", learning_rate=0.1, steps=steps)
    return topic.create(
        models.create("cnn", 10),
        optimizers.create("sgd", rate, momentum=0.9, nesterov=True, weight_decay=0.0005),
        image_shape=images.shape[1:],
        class_names=[str(digit) for digit in range(10)],
        prepare=lambda images: augment.normalize(images, mean, std),
    )


@functools.cache
def digit_logits(seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits [N, 10] of the test digits before and after training of the network with this seed."""
    splits, task = data.load("mnist5k").splits, create(steps)
    untrained, predict = jax.jit(task.init)(jax.random.key(seed)), jax.jit(task.predict_step)
    trained = small_training.train(task, *splits["train"], batch_size=BATCH, steps=steps, seed=seed)
    before, after = (
        np.concatenate([predict(state, {"image": part}) for part in np.split(splits["test"][0], 4)])
        for state in (untrained, trained)
    )
    return before, after


def measure(seed: int, steps: int) -> dict[str, Any]:
    """The test accuracy of the network with this seed, the test images that activate each unit most before and after
    training, and the logits of the test image with the least certain prediction."""
    before, after = digit_logits(seed, steps)
    unsure = int(entropy(softmax(after)).argmax())
    return {
        "accuracy": float((after.argmax(1) == data.load("mnist5k").splits["test"][1]).mean()),
        "untrained": strongest(before).tolist(),
        "trained": strongest(after).tolist(),
        "unsure": unsure,
        "logits": after[unsure].tolist(),
    }


def examples(seed: int, steps: int) -> dict[str, list]:
    """Six test images from the least to the most certain prediction of the network with this seed: their indices and
    logits."""
    _, logits = digit_logits(seed, steps)
    order = np.argsort(-entropy(softmax(logits)), kind="stable")
    chosen = order[[round(rank * (len(order) - 1)) for rank in RANKS]]
    return {"indices": chosen.tolist(), "logits": logits[chosen].tolist()}


def widget(images, labels, found) -> dict[str, list]:
    """The data of widgets/temperature.js; `found` is the result of `examples`."""
    chosen = found["indices"]
    shown = np.round(images[chosen, :, :, 0] / 255, 3)
    return {"digits": shown.tolist(), "labels": labels[chosen].tolist(), "logits": found["logits"]}


def titled_figure(height: float, title: str):
    figure = figures.new_figure(height=height)
    topic.headline(figure, title)
    return figure


def temperature_bars(image, label: int, logits, title: str):
    """Plots the image [H, W] and, beside it, the probabilities at each temperature."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = titled_figure(5.6, title)
        left, right = figure.subfigures(1, 2, width_ratios=(1, 3))
        axes = left.subplots()
        axes.imshow(image, "gray")
        axes.set(xticks=[], yticks=[])
        axes.set_title("test digit", fontsize=11)
        rows = right.subplots(len(TEMPERATURES), 1, sharex=True)
        for axes, temperature in zip(rows, TEMPERATURES, strict=True):
            shares = softmax(logits, temperature)
            bars = axes.bar(range(len(shares)), shares, color=figures.COLOURS["train"])
            bars[label].set_color(figures.COLOURS["eval"])
            axes.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], ylabel="probability", xticks=range(len(shares)))
            axes.set_title(f"T = {temperature:g}: entropy {entropy(shares):.2f} nats", fontsize=11)
        rows[-1].set_xlabel("class")
        names = {"true class": bars[label], "other classes": bars[label - 1]}
        right.legend(names.values(), names.keys(), loc="outside lower center", ncols=2)
    return figure


def top_image_grid(images, labels, indices, title: str):
    """One row per unit with the images (`indices` [C, top]) that activate it most; images of other classes are
    framed."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = titled_figure(6.4, title)
        axes, side = figure.add_subplot(), images.shape[1] + 3
        for (unit, place), chosen in np.ndenumerate(indices[:, :SHOWN]):
            left, top = place * side, unit * side
            axes.imshow(images[chosen, :, :, 0], "gray", extent=(left, left + side - 3, top + side - 3, top))
            if labels[chosen] != unit:
                edge = figures.COLOURS["eval"]
                axes.add_patch(Rectangle((left, top), side - 3, side - 3, fill=False, edgecolor=edge, linewidth=3))
        units = range(len(indices))
        axes.set(xlim=(-2, SHOWN * side), ylim=(len(indices) * side, -2), xticks=[])
        axes.set_yticks([(unit + 0.45) * side for unit in units], [f"unit {unit}" for unit in units])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps = this_topic.options["steps"]
    found = [this_topic.cached(f"seed_{i}", functools.partial(measure, i, steps)) for i in this_topic.seeds]
    chosen = this_topic.cached("examples", functools.partial(examples, 0, steps))
    images, labels = data.load("mnist5k").splits["test"]
    by_unit = {
        state: np.stack([own_share(np.array(one[state]), labels) for one in found])
        for state in ("untrained", "trained")
    }
    share = {state: topic.mean_and_std(shares.mean(1)) for state, shares in by_unit.items()}
    said = {state: this_topic.percent(x) for state, x in share.items()}
    accuracy = topic.mean_and_std([one["accuracy"] for one in found])
    logits, unsure = found[0]["logits"], found[0]["unsure"]
    nats = {temperature: float(entropy(softmax(logits, temperature))) for temperature in TEMPERATURES}

    low, *_, high = TEMPERATURES
    title = f"Entropy: {nats[low]:.2f} nats at T = {low:g}, {nats[high]:.2f} at T = {high:g}"
    figure = temperature_bars(images[unsure, :, :, 0], int(labels[unsure]), logits, title)
    caption = "softmax of the same ten logits; the network of the first seed is least certain of this digit"
    this_topic.figure("temperature", figure, title="Temperature", caption=caption)
    title = f"Of each unit's top {TOP}, {100 * share['trained']['mean']:.0f} % show its digit"
    strong = np.array(found[0]["trained"])
    figure = top_image_grid(images, labels, strong, title)
    caption = f"the {SHOWN} test digits with the largest logit of each unit of the first seed, in descending order"
    if (own_share(strong[:, :SHOWN], labels) < 1).any():
        caption += "; digits of another class are framed"
    this_topic.figure("output_units", figure, title="Images that activate the output units most", caption=caption)

    worst = by_unit["trained"].mean(0).min()
    text = (
        f"For the digit in the figure the entropy is {nats[low]:.2f} nats at T = {low:g}, {nats[1.0]:.2f} at T = 1 and "
        f"{nats[high]:.2f} at T = {high:g}. The largest possible entropy of ten classes is ln 10 = {np.log(10):.2f} "
        "nats. The most probable class is the same at each temperature.",
        f"After {steps:,} steps the network classifies {this_topic.percent(accuracy)} of "
        f"the test digits correctly ({this_topic.over_seeds()}). Of the {TOP} test digits with the largest "
        f"logit of a unit, {said['trained']} belong to the unit's class, instead of {said['untrained']} before "
        "training; by chance it would be 10 %. "
        + (
            "Each unit has become a detector of its digit."
            if worst >= 0.9
            else "That each unit becomes a detector of its digit is not confirmed at this number of steps."
        ),
    )
    numbers = {
        "share_of_own_class": share["trained"],
        "share_untrained": share["untrained"],
        "share_by_unit": by_unit["trained"].mean(0).tolist(),
        "accuracy": accuracy,
        **{f"entropy_T{temperature:g}": value for temperature, value in nats.items()},
    }
    rows = [[state, said[state], f"{100 * shares.mean(0).min():.0f} %"] for state, shares in by_unit.items()]
    header = ["network", "all units", "lowest unit, mean over seeds"]
    table = (f"Own class among the {TOP} test digits with the largest logit of a unit", header, rows)
    guesses = [
        topic.Guess(
            "temperature",
            f"A network is uncertain about a digit: the entropy of its ten probabilities is {nats[1.0]:.2f} nats at "
            f"T = 1. The largest possible is {np.log(10):.2f}. What is it at T = {high:g}?",
            "nats",
            0,
            2.31,
            nats[high],
        ),
        topic.Guess(
            "output_units",
            f"An output unit of the trained network has its largest logits for {TOP} of the {len(images):,} test "
            "digits. How many percent of these show the unit's digit?",
            "%",
            0,
            100,
            100 * share["trained"]["mean"],
        ),
    ]
    return topic.TopicResult(text, numbers, [table], guesses, {"temperature": widget(images, labels, chosen)})


if __name__ == "__main__":
    topic.main("softmax", experiment, OPTIONS)
