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


def softmax(logits, temperature: float = 1.0) -> np.ndarray:
    """exp(z / T) normalized to sum 1, [..., C] -> [..., C]: a Boltzmann distribution with energies -z."""
    scaled = np.asarray(logits, np.float64) / temperature
    powers = np.exp(scaled - scaled.max(-1, keepdims=True))  # The largest is 1, so nothing overflows.
    return powers / powers.sum(-1, keepdims=True)


def entropy(probabilities) -> np.ndarray:
    """The entropy -sum p log p in nats, [..., C] -> [...], with 0 log 0 = 0."""
    p = np.asarray(probabilities)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


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


def measure(seed: int, steps: int) -> dict[str, Any]:
    """Trains the network of one seed. Returns its test accuracy, the test images that activate each unit most before
    and after training, and the logits of the test image with the least certain prediction."""
    splits, task = data.load("mnist5k").splits, create(steps)
    tests, answers = splits["test"]
    untrained, predict = jax.jit(task.init)(jax.random.key(seed)), jax.jit(task.predict_step)
    trained = small_training.train(task, *splits["train"], batch_size=BATCH, steps=steps, seed=seed)
    before, after = (
        np.concatenate([predict(state, {"image": part}) for part in np.split(tests, 4)])
        for state in (untrained, trained)
    )
    unsure = int(entropy(softmax(after)).argmax())
    return {
        "accuracy": float((after.argmax(1) == answers).mean()),
        "untrained": strongest(before).tolist(),
        "trained": strongest(after).tolist(),
        "unsure": unsure,
        "logits": after[unsure].tolist(),
    }


def titled_figure(height: float, title: str):
    figure = figures.new_figure(height=height)
    topic.headline(figure, title)
    return figure


def temperature_bars(image, logits, title: str):
    """Plots the probabilities at each temperature, and the image [H, W]."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = titled_figure(5.6, title)
        rows = figure.subplots(len(TEMPERATURES), 1, sharex=True)
        for axes, temperature in zip(rows, TEMPERATURES, strict=True):
            shares = softmax(logits, temperature)
            axes.bar(range(len(shares)), shares, color=figures.COLOURS["train"])
            axes.set(ylim=(0, 1.05), yticks=[0, 0.5, 1], ylabel="probability", xticks=range(len(shares)))
            axes.set_title(f"T = {temperature:g}: entropy {entropy(shares):.2f} nats", fontsize=11)
        rows[-1].set_xlabel("digit")
        inset = rows[-1].inset_axes((0.0, 0.35, 0.2, 0.65))  # Placed where the bars are short.
        inset.imshow(image, "gray")
        inset.set(xticks=[], yticks=[])
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
    found = [
        this_topic.cached(f"seed_{i}", functools.partial(measure, i, this_topic.options["steps"]))
        for i in this_topic.seeds
    ]
    images, labels = data.load("mnist5k").splits["test"]
    by_unit = {
        state: np.stack([own_share(np.array(one[state]), labels) for one in found])
        for state in ("trained", "untrained")
    }
    share = {state: topic.mean_and_std(shares.mean(1)) for state, shares in by_unit.items()}
    said = {state: f"{100 * x['mean']:.1f} ± {100 * x['std']:.1f} %" for state, x in share.items()}
    accuracy = topic.mean_and_std([one["accuracy"] for one in found])
    logits = found[0]["logits"]
    nats = {temperature: float(entropy(softmax(logits, temperature))) for temperature in TEMPERATURES}

    low, *_, high = TEMPERATURES
    title = f"Entropy: {nats[low]:.2f} nats at T = {low:g}, {nats[high]:.2f} at T = {high:g}"
    figure = temperature_bars(images[found[0]["unsure"], :, :, 0], logits, title)
    caption = f"softmax of the same ten logits, for the test digit ({labels[found[0]['unsure']]}) that the network of "
    caption += f"the first seed is least certain of; the largest possible entropy is ln 10 = {np.log(10):.2f} nats"
    this_topic.figure("temperature", figure, title="Temperature", caption=caption)
    title = f"Of each unit's top {TOP}, {100 * share['trained']['mean']:.0f} % show its digit"
    figure = top_image_grid(images, labels, np.array(found[0]["trained"]), title)
    caption = (
        f"the {SHOWN} test digits with the largest logit of each output unit, in descending order, for the network "
    )
    caption += "of the first seed; digits of another class are framed"
    this_topic.figure("output_units", figure, title="Images that activate the output units most", caption=caption)

    grows = ", ".join(f"{value:.2f} nats at T = {temperature:g}" for temperature, value in nats.items())
    worst = by_unit["trained"].mean(0).min()
    text = (
        "Softmax converts logits to probabilities. A temperature T first divides the logits: for the digit in the "
        f"figure the entropy is {grows}. The most probable class does not depend on T.",
        "The lecture calls an output unit a grandmother cell: it responds to a single concept. After "
        f"{this_topic.options['steps']} steps the test accuracy is {100 * accuracy['mean']:.1f} %, and of the {TOP} "
        f"test digits that activate a unit most, {said['trained']} belong to its class; before training it was "
        f"{said['untrained']} (mean and standard deviation over seeds). The lowest fraction of any unit is "
        f"{100 * worst:.0f} %.",
    )
    numbers = {
        "share_of_own_class": share["trained"],
        "share_untrained": share["untrained"],
        "share_by_unit": by_unit["trained"].mean(0).tolist(),
        "accuracy": accuracy,
        **{f"entropy_T{temperature:g}": value for temperature, value in nats.items()},
    }
    rows = [[unit, *(f"{100 * x.mean(0)[unit]:.0f} %" for x in by_unit.values())] for unit in range(10)]
    table = (f"Own class among the {TOP} strongest", ["unit", "trained", "untrained"], rows)
    return topic.TopicResult(text, numbers, [table])


if __name__ == "__main__":
    topic.main("softmax", experiment, OPTIONS)
