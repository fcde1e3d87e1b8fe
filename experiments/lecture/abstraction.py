"""Increasingly abstract features: python -m experiments.lecture.abstraction --workdir=W

Fits linear probes to the pixels and to the features of each layer of a convolutional network, trained and untrained.
To show that convolution is not limited to images, also trains a one-dimensional network to classify noisy signals.
"""

import base64
import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.lines import Line2D

import data
import models
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, avg_pool, max_pool, relu
from train.tasks import losses

OPTIONS = {
    "steps": (200, "Number of training steps of the probed network."),
    "signal_steps": (600, "Number of training steps per signal network."),
}
LAYERS = ("pixels", "conv1", "conv2", "conv3", "dense", "logits")
LARGEST, LABELLED = 1000, 10  # Maximum number of features of a probe; digits per class that it is fitted to.
LENGTH, NOISE = 128, 0.8  # Number of samples in a signal, and the standard deviation of the noise.
TIME = np.arange(32) / 32
SHAPES = {  # With mean square about 1; the chirp sweeps from one to eight periods per shape.
    "sine burst": np.sqrt(2) * np.sin(2 * np.pi * 4 * TIME),
    "square pulse": np.ones(len(TIME)),
    "chirp": np.sqrt(2) * np.sin(2 * np.pi * (1 + 3.5 * TIME) * TIME),
}
SIGNALS, FILTERS, WIDTH, HIDDEN = (600, 1000), 8, 16, 64  # Number of training and of test signals.

create = functools.partial(topic.create, prepare=lambda images: images)


def small(x_BHWC):
    """Flattens maps to [B, features], averaged over the smallest windows that leave at most LARGEST features; a
    remainder at the edge is dropped."""
    size = next(w for w in range(1, x_BHWC.shape[1] + 1) if (x_BHWC.shape[1] // w) ** 2 * x_BHWC.shape[3] <= LARGEST)
    return avg_pool(x_BHWC, size).reshape(len(x_BHWC), -1)


def features(model, variables, images_BHWC) -> dict[str, jax.Array]:
    """The input [B, features] of each following layer of `models.cnn.CNN`, with large maps averaged."""
    logits, captured = model.apply(variables, images_BHWC, train=False, capture_intermediates=True)
    inside = {name: calls["__call__"][0] for name, calls in captured["intermediates"].items() if name != "__call__"}
    maps = {f"conv{i}": small(max_pool(relu(inside[f"bn{i}"]), 2)) for i in (1, 2, 3)}
    return {"pixels": small(images_BHWC), **maps, "dense": relu(inside["bn_dense"]), "logits": logits}


@functools.partial(jax.jit, static_argnames="steps")
def probe(x_BF, labels, test_BF, test_labels, *, steps: int = 750, rate: float = 4.0, decay: float = 0.001):
    """The test accuracy of multinomial logistic regression after full-batch gradient descent (Alain & Bengio 2016,
    "Understanding intermediate layers using linear classifier probes"). Features are normalized to mean 0 and variance
    1 / F on the labeled examples, so that one learning rate suits all layers."""
    mean, std = x_BF.mean(0, keepdims=True), x_BF.std(0, keepdims=True)
    x_BF, test_BF = ((x - mean) / ((std + 1e-3) * math.sqrt(x.shape[1])) for x in (x_BF, test_BF))

    def loss(params):
        w, b = params
        return losses.cross_entropy(x_BF @ w + b, labels).mean() + decay * (w**2).sum()

    def step(_, params):
        return jax.tree.map(lambda p, gradient: p - rate * gradient, params, jax.grad(loss)(params))

    zeros = (jnp.zeros((x_BF.shape[1], 10)), jnp.zeros((1, 10)))
    w, b = jax.lax.fori_loop(0, steps, step, zeros)
    return ((test_BF @ w + b).argmax(-1) == test_labels).mean()


def signals(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (signals [count, 128, 1], labels [count], starts [count]): noise with a shape at a random position."""
    labels, places = random.integers(0, 3, count), random.integers(0, LENGTH - len(TIME) + 1, count)
    found, shapes = random.normal(0, NOISE, (count, LENGTH)), list(SHAPES.values())
    for row, label, place in zip(found, labels, places, strict=True):
        row[place : place + len(TIME)] += shapes[label]
    return found[..., None].astype(np.float32), labels.astype(np.int32), places


class SignalNet(nn.Module):
    """[B, 128, 1] -> logits [B, 3]: a convolution with ReLU and global max pooling, or a hidden layer with ReLU,
    followed by a linear layer."""

    convolution: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if self.convolution:
            x = relu(Conv(FILTERS, (WIDTH,), padding="VALID", name="filters")(x)).max(1)
        else:
            x = relu(Dense(HIDDEN, kernel_init=kaiming_normal, name="hidden")(x.reshape(len(x), -1)))
        return Dense(len(SHAPES), name="logits")(x)


def probe_layers(splits, task, read, seed: int, *, steps: int) -> dict[str, dict[str, float]]:
    """The accuracy of probes on each layer before and after training of the network. Probes are fitted to ten test
    digits per class and tested on the other test digits; the network is trained on neither."""
    (images, labels), random, found = splits["test"], np.random.default_rng(seed), {}
    shuffled = [random.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    fit, rest = (np.concatenate(rows) for rows in zip(*(np.split(rows, [LABELLED]) for rows in shuffled), strict=True))

    def watch(step, state):
        seen = read({"params": state.params, "batch_stats": state.batch_stats}, images)
        scores = {name: probe(seen[name][fit], labels[fit], seen[name][rest], labels[rest]) for name in LAYERS}
        found["trained" if step else "untrained"] = {name: float(score) for name, score in scores.items()}

    small_training.train(task, *splits["train"], batch_size=32, steps=steps, seed=seed, watch=watch)
    return found


def folded(variables) -> list[dict[str, Any]]:
    """The layers of `models.cnn.CNN` in evaluation mode for widgets/draw.js, with batch norm folded into the weights
    and biases: the name, the shape of the kernel, and kernel and bias as base64 of little-endian float32."""
    params, stats = variables["params"], variables["batch_stats"]

    def encoded(array) -> str:
        return base64.b64encode(np.asarray(array).astype("<f4").tobytes()).decode()

    layers = []
    for name, norm in [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("dense", "bn_dense"), ("logits", None)]:
        kernel = np.asarray(params[name]["kernel"], np.float64)
        if norm is None:
            bias = params[name]["bias"]
        else:
            scale = params[norm]["scale"] / np.sqrt(stats[norm]["var"] + BatchNorm.keywords["epsilon"])
            kernel, bias = kernel * scale, params[norm]["bias"] - stats[norm]["mean"] * scale
        layers.append({"name": name, "shape": list(kernel.shape), "kernel": encoded(kernel), "bias": encoded(bias)})
    return layers


def train_network(splits, task, read, *, steps: int) -> dict[str, Any]:
    """Trains the network that the first probes are fitted to once more. Returns its layers and its test accuracy."""
    images, labels = splits["test"]
    state = small_training.train(task, *splits["train"], batch_size=32, steps=steps, seed=0)
    variables = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    right = read(variables, images)["logits"].argmax(-1) == labels
    return {"layers": folded(variables), "accuracy": float(right.mean())}


def widget(images, labels, network: dict[str, Any]) -> dict[str, Any]:
    """The data of widgets/draw.js: the first digit of each class from uint8 images, and the trained network."""
    first = [images[np.flatnonzero(labels == digit)[0], :, :, 0].tolist() for digit in range(10)]
    return {"digits": first, **network}


def classify_signals(seed: int, *, steps: int) -> dict[str, Any]:
    """The test accuracy and parameter count of both networks, and the weights of the convolution."""
    random, found = np.random.default_rng(seed), {}
    (x, labels, _), (new, new_labels, _) = (signals(random, count) for count in SIGNALS)
    for name in ("convolution", "dense"):
        model = SignalNet(name == "convolution")
        task = create(model=model, optimizer=optax.adam(0.01), image_shape=(LENGTH, 1), class_names=tuple(SHAPES))
        params = small_training.train(task, x, labels, batch_size=64, steps=steps, seed=seed).params
        right = np.asarray(jax.jit(model.apply)({"params": params}, new)).argmax(-1) == new_labels
        found[name] = {"accuracy": float(right.mean()), "parameters": sum(w.size for w in jax.tree.leaves(params))}
        if name == "convolution":
            found["weights"] = {layer: np.asarray(params[layer]["kernel"]).tolist() for layer in params}
    return found


def plot_signals(weights, title: str):
    """Plots a signal of each class with the shape highlighted and, below, the filters, each in the color of the shape
    whose logit it increases most."""
    colours = [figures.COLOURS[part] for part in ("train", "eval", "test")]
    x, labels, places = signals(np.random.default_rng(0), 100)
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=6.4)
        topic.headline(figure, title, 46)
        above, below = figure.subfigures(2, squeeze=False, height_ratios=(3, 2))[:, 0]
        for kind, axes in enumerate(above.subplots(3, sharex=True, sharey=True)):
            row, name = int(np.flatnonzero(labels == kind)[0]), list(SHAPES)[kind]
            axes.plot(x[row, :, 0], color="#777777", linewidth=1)
            axes.plot(places[row] + np.arange(len(TIME)), SHAPES[name], color=colours[kind], linewidth=2.2)
            axes.set_title(f"{name} in noise", fontsize=10, color=colours[kind])
        axes.set(xlabel="sample", ylabel="signal")
        for index, axes in enumerate(below.subplots(2, FILTERS // 2, sharex=True, sharey=True).flat):
            axes.axhline(0, color="#cccccc", linewidth=0.8)
            axes.plot(np.array(weights["filters"])[:, 0, index], color=colours[np.argmax(weights["logits"][index])])
        below.supxlabel(f"sample of the filter ({FILTERS} learned filters)", fontsize=10)
        lines = [Line2D([], [], color=colour) for colour in colours]
        title = "shape whose logit the filter increases most"
        below.legend(lines, list(SHAPES), title=title, loc="outside upper center", ncols=3)
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    dataset, model = data.load("mnist5k"), models.create("cnn", 10)
    splits = {name: (images / np.float32(255), labels) for name, (images, labels) in dataset.splits.items()}
    optimizer, names = optax.sgd(0.05, momentum=0.9), dataset.class_names
    task = create(model=model, optimizer=optimizer, image_shape=(28, 28, 1), class_names=names)
    read = jax.jit(functools.partial(features, model))
    make = functools.partial(probe_layers, splits, task, read, steps=this_topic.options["steps"])
    probes = [this_topic.cached(f"digits_{seed}", functools.partial(make, seed)) for seed in this_topic.seeds]
    make = functools.partial(classify_signals, steps=this_topic.options["signal_steps"])
    heard = [this_topic.cached(f"signals_{seed}", functools.partial(make, seed)) for seed in this_topic.seeds]

    make = functools.partial(train_network, splits, task, read, steps=this_topic.options["steps"])
    network = this_topic.cached("network", make)

    by = {n: {x: topic.mean_and_std([one[n][x] for one in probes]) for x in LAYERS} for n in ("untrained", "trained")}
    size = {name: heard[0][name]["parameters"] for name in ("convolution", "dense")}
    right = {name: topic.mean_and_std([one[name]["accuracy"] for one in heard]) for name in size}
    rises = all(one["trained"][a] < one["trained"][b] for one in probes for a, b in itertools.pairwise(LAYERS[:-1]))
    untrained, said, told = (
        {name: this_topic.percent(x) for name, x in part.items()} for part in (*by.values(), right)
    )
    gain = " to ".join(f"{100 * by['trained'][layer]['mean']:.0f} %" for layer in ("pixels", "dense"))
    title = (
        f"The accuracy of a linear probe increases layer by layer: {gain}"
        if rises
        else "Probe accuracy does not always increase"
    )
    series = {n: (list(by[n].values()), colour, "-") for n, colour in (("untrained", "eval"), ("trained", "train"))}
    drawn = topic.lines(series, LAYERS, title, ylabel="accuracy of the probe, %")
    caption = f"a linear probe on each layer, fitted to {10 * LABELLED} digits; mean and standard deviation over seeds"
    this_topic.figure("probes", drawn, title="Linear probes by layer", caption=caption)
    title = f"Shapes in noise: accuracy {told['convolution']} by convolution, {told['dense']} by a dense network"
    caption = (
        "top: input signals (gray) with the shapes they contain (in color); below: the filters learned by the first "
        "seed, half as long as a shape, in the color of the class that each supports most"
    )
    this_topic.figure("signals", plot_signals(heard[0]["weights"], title), title="Convolution in time", caption=caption)
    better = right["convolution"]["mean"] - right["dense"]["mean"] > sum(x["std"] for x in right.values())
    best = max(LAYERS, key=lambda layer: by["untrained"][layer]["mean"])
    text = [
        f"A probe fitted to {10 * LABELLED} labeled digits classifies {said['pixels']} of the other digits correctly "
        f"from the pixels, and {said['dense']} from the trained network's dense layer ({this_topic.over_seeds()}). "
        + (
            "For every seed, the accuracy increases from each layer to the next, up to the dense layer."
            if rises
            else "It does not increase from each layer to the next: the claim is not confirmed at this number of steps."
        ),
        f"In the untrained network the best layer is {best} with {untrained[best]}; the dense layer has "
        f"{untrained['dense']}.",
        f"Of new signals, {FILTERS} filters of {WIDTH} samples with global max pooling classify {told['convolution']} "
        f"correctly, and a dense network with {size['dense'] / size['convolution']:.0f} times as many parameters "
        f"{told['dense']}."
        + ("" if better else " The claim that the convolution is better is not confirmed at this scale."),
    ]
    rows = [[layer, untrained[layer], said[layer]] for layer in LAYERS]
    tables = [
        ("Accuracy of the probes", ["layer", "untrained network", "trained network"], rows),
        (
            "Accuracy on new signals",
            ["network", "parameters", "accuracy"],
            [[name, size[name], told[name]] for name in size],
        ),
    ]
    probed = (
        f"A linear classifier on the pixels, fitted to {10 * LABELLED} labeled digits, classifies "
        f"{100 * by['trained']['pixels']['mean']:.0f} % of new digits correctly. How many percent does one on the "
        "dense layer of the trained network, fitted to the same digits?"
    )
    told_dense = (
        f"One of three shapes is hidden in noise at a random position; guessing finds {100 / len(SHAPES):.0f} %. How "
        "many percent of new signals does the dense network classify correctly?"
    )
    guesses = [
        topic.Guess("probes", probed, "%", 0, 100, 100 * by["trained"]["dense"]["mean"]),
        topic.Guess("signals", told_dense, "%", 0, 100, 100 * right["dense"]["mean"]),
    ]
    numbers = {"probe": by, "signals": right, "signal_parameters": size}
    return topic.TopicResult(text, numbers, tables, guesses, {"draw": widget(*dataset.splits["test"], network)})


if __name__ == "__main__":
    topic.main("abstraction", experiment, OPTIONS)
