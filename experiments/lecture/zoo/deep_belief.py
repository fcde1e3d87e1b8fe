"""The deep belief network: unsupervised layer-wise pre-training, then fine-tuning with few labels."""

from typing import Any

import jax
import matplotlib
import numpy as np
import optax

import data
import models
from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.restricted import RULES, fit
from experiments.reporting import figures
from experiments.setup import small_training
from models import boltzmann
from models.boltzmann import Restricted
from train.task import Task

HIDDEN = (256, 128)
LABELS = (100, 400, 4000)
RATE = 0.003  # Adam's learning rate. It, steps and epochs were tuned on training digits whose labels are not used.
STARTS = {
    "pretrained": ("pre-trained", "train"),
    "random_start": ("random initialization", "eval"),
    "relu": ("random init., ReLU", "test"),
}


def scaled(images):
    """Scales pixels from 0 .. 255 to 0 .. 1, which a restricted Boltzmann machine interprets as probabilities."""
    return images.astype(np.float32) / 255


def pretrain(pixels, hidden, *, key, seed: int, epochs: int, rate: float = 0.1) -> list[Restricted]:
    """Trains a restricted Boltzmann machine per hidden layer on pixels [N, V], each with CD-1 on the hidden
    probabilities of the previous one (Hinton, Osindero & Teh 2006, section 4)."""
    found = []
    for n, size in enumerate(hidden):
        key_of_layer = jax.random.fold_in(key, n)
        state = fit(pixels, size, step=RULES["CD-1"], key=key_of_layer, seed=seed, epochs=epochs, rate=rate)
        found.append(state.params)
        pixels = boltzmann.hidden_probabilities(state.params, pixels)
    return found


def with_layers(params: dict, machines: list[Restricted]) -> dict:
    """MLP parameters whose hidden layers are replaced by the machines' weights: the output of each unit is the
    probability that the machine's unit is 1."""
    layers = {f"dense{n}": {"kernel": m.weights, "bias": m.hidden} for n, m in enumerate(machines, 1)}
    return {**params, **layers}


def from_machines(task: Task, machines: list[Restricted]) -> Task:
    """The task with hidden layers initialized from the machines; the output layer is initialized as before."""

    def init(key):
        state = task.init(key)
        return state._replace(params=with_layers(state.params, machines))

    return task._replace(init=init)


def few(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The indices of `count` random examples, balanced over classes."""
    random, classes = np.random.default_rng((seed, count)), np.unique(labels)
    each = [random.permutation(np.flatnonzero(labels == label))[: count // len(classes)] for label in classes]
    return np.sort(np.concatenate(each))


def run(
    seed: int,
    *,
    hidden: tuple[int, ...] = HIDDEN,
    epochs: int = 30,
    labels: tuple[int, ...] = LABELS,
    steps: int = 400,
    examples: int | None = None,
    batch_size: int = 100,
) -> dict[str, Any]:
    """The test accuracy for each number of labels, from pre-trained and from random weights."""
    dataset = data.load("mnist5k")
    every = len(dataset.splits["train"][1]) // examples if examples else 1
    images, classes = (part[::every] for part in dataset.splits["train"])
    pixels = np.asarray(scaled(images)).reshape(len(images), -1)
    machines = pretrain(pixels, hidden, key=jax.random.key(seed), seed=seed, epochs=epochs)
    test_images, test_classes = dataset.splits["test"]
    test = {"image": test_images, "label": test_classes, "mask": np.ones(len(test_classes), np.float32)}

    def task_of(activation: str) -> Task:
        model = models.create("mlp", len(dataset.class_names), hidden=hidden, activation=activation)
        shape = images.shape[1:]
        return topic.create(model, optax.adam(RATE), image_shape=shape, class_names=dataset.class_names, prepare=scaled)

    plain = task_of("sigmoid")
    tasks = {"pretrained": from_machines(plain, machines), "random_start": plain, "relu": task_of("relu")}
    result: dict[str, Any] = {"labels": list(labels), "accuracy": {name: [] for name in tasks}}
    for count in labels:
        rows = few(classes, count, seed)
        for name, task in tasks.items():
            state = small_training.train(
                task, images[rows], classes[rows], batch_size=batch_size, steps=steps, seed=seed
            )
            sums = jax.device_get(jax.jit(task.eval_step)(state, test))
            result["accuracy"][name].append(task.compute_metrics(sums)["accuracy"])
    filters = np.asarray(machines[0].weights).T
    largest = np.argsort(-np.abs(filters).sum(1))[:15]
    return {**result, "filters": rounded(filters[largest], 2), "hidden": list(hidden), "unlabelled": len(images)}


def draw(results: list[dict]):
    first = results[0]
    side = round(len(first["filters"][0]) ** 0.5)
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.2)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1.6, 1))
        above, below = halves
        axes = above.subplots()
        for name, (label, colour) in STARTS.items():
            accuracy = 100 * np.array([result["accuracy"][name] for result in results])
            spread = accuracy.std(0, ddof=min(1, len(results) - 1))
            axes.errorbar(
                first["labels"], accuracy.mean(0), spread, marker="o", capsize=3, color=figures.COLOURS[colour]
            )
            axes.containers[-1].set_label(label)
        axes.set(xlabel="labeled digits", ylabel="test accuracy, %", xscale="log", xticks=first["labels"])
        axes.set_xticks(first["labels"], [str(count) for count in first["labels"]])
        axes.minorticks_off()
        axes.legend(fontsize=9, loc="lower right")
        below.suptitle("Weights of 15 units of the first layer after pre-training", fontsize=10, x=0.01, ha="left")
        panels = below.subplots(2, 8)
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, weights in zip(panels.flat, first["filters"], strict=False):
            limit = max(np.abs(weights).max(), 1e-6)
            image = np.reshape(weights, (side, side))
            axes.imshow(image, "RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    return figure


def report(results: list[dict]) -> Findings:
    first = results[0]
    values = {
        name: [
            topic.mean_and_std(column) for column in zip(*(result["accuracy"][name] for result in results), strict=True)
        ]
        for name in STARTS
    }
    names = [f"accuracy_{count}_labels" for count in first["labels"]]
    numbers = dict(zip(names, values["pretrained"], strict=True))
    baseline = dict(zip(names, values["random_start"], strict=True))
    baseline |= {f"{name}_relu": value for name, value in zip(names, values["relu"], strict=True)}
    over_same, over_relu = (
        [100 * (a["mean"] - b["mean"]) for a, b in zip(values["pretrained"], values[name], strict=True)]
        for name in ("random_start", "relu")
    )
    few_labels, all_labels = first["labels"][0], first["labels"][-1]
    text = (
        f"With {few_labels} labels the network pre-trained on {first['unlabelled']:,} unlabeled digits has a test "
        f"accuracy of {values['pretrained'][0]['mean']:.1%}, the same network with random initialization "
        f"{values['random_start'][0]['mean']:.1%} and one with ReLU units {values['relu'][0]['mean']:.1%}: "
        f"pre-training {'helps' if min(over_same[0], over_relu[0]) > 1 else 'does not clearly help'} here. "
        f"With {all_labels:,} labels its advantage is {over_same[-1]:.1f} points over the same network and "
        f"{over_relu[-1]:.1f} over ReLU units"
        f"{'' if over_same[-1] < over_same[0] else ', not smaller than with few labels'}."
    )
    caption = (
        f"test accuracy by number of labels, {'-'.join(map(str, first['hidden']))} hidden units, mean and standard "
        "deviation over seeds; below: weights of the first layer after pre-training, red is positive, seed 0"
    )
    return Findings(text, numbers, baseline, draw(results), caption, "random initialization")


DEEP_BELIEF = Card(
    name="deep_belief",
    title="Deep belief network (DBN)",
    diagram=Diagram((Layer("backfed", 5), Layer("probabilistic", 4), Layer("probabilistic", 4), Layer("match", 5))),
    idea="Restricted Boltzmann machines are stacked: each learns, without labels, to model the hidden units of the one "
    "below. With few labels, their weights are a better initialization for backpropagation than random ones.",
    formula=r"p(v, h_1, h_2) = p(v | h_1) \, p(h_1, h_2)",
    rule="Contrastive divergence layer by layer, each from the hidden probabilities of the layer below; then "
    "backpropagation through the whole network.",
    reference="Hinton, Osindero & Teh, 2006, A fast learning algorithm for deep belief nets",
    run=run,
    report=report,
)

CARDS = (DEEP_BELIEF,)
