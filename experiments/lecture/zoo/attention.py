"""The attention network: a small vision transformer on digits, compared with a multi-layer perceptron."""

import functools
from typing import Any

import jax
import matplotlib
import numpy as np

import data
import models
from experiments.lecture import deep_nets, topic
from experiments.lecture.zoo import digits
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from train.state import parameter_count

NETWORK = {"patch": 7, "width": 48, "heads": 4, "blocks": 2}
SHOWN = 4  # Digits in the figure, the first test images of 0 to 3.


def attention_maps(model, params, images) -> np.ndarray:
    """The attention of the class token to each patch in the last block, [B, heads, h, w], for normalized images. The
    weights of a map and the class token's attention to itself, which is omitted, sum to 1."""
    _, kept = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))({"params": params}, images)
    weights = kept["intermediates"][f"block{model.blocks}"]["attention"]["weights"][0]
    down, across = (side // model.patch for side in images.shape[1:3])
    return np.asarray(weights[:, :, 0, 1:]).reshape(*weights.shape[:2], down, across)


def run(seed: int, *, steps: int = 2400, **options) -> dict[str, Any]:
    """Accuracies and sizes of the transformer and the perceptron, and attention maps of a few test images."""
    images, labels = data.load("mnist5k").splits["test"]
    model, found = models.create("vit_tiny", 10, **NETWORK | options), {}
    for whose, each, rate in (("own", model, 0.005), ("other", models.create("mlp", 10), 0.002)):
        learned = digits.learn(each, seed=seed, steps=steps, rate=rate, decay=0.05, augmented=True)
        found[whose] = {"accuracy": learned.accuracy, "parameters": parameter_count(learned.params)}
        if each is model:
            shown = images[[int(np.flatnonzero(labels == digit)[0]) for digit in range(SHOWN)]]
            maps = attention_maps(model, learned.params, deep_nets.digits().prepare(shown))
    return {**found, "digits": shown[..., 0].tolist(), "maps": np.round(maps, 5).tolist()}


def concentration(maps) -> float:
    """The fraction of a head's attention to patches that goes to the quarter of the patches with the largest weights,
    averaged over maps [B, heads, h, w]; 0.25 for uniform attention."""
    maps = np.asarray(maps)
    flat = np.sort(maps.reshape(-1, maps[0, 0].size), axis=1)[:, ::-1]
    quarter = round(flat.shape[1] / 4)
    return float((flat[:, :quarter].sum(1) / flat.sum(1)).mean())


def draw(result: dict[str, Any], title: str):
    """Plots one row per digit: the image and the attention map of each head."""
    images, maps = np.asarray(result["digits"]), np.asarray(result["maps"])
    heads = maps.shape[1]
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=4.6)
        grid = figure.subplots(len(images), 1 + heads, squeeze=False)
        topic.headline(figure, title, 50)
        for axes in grid.ravel():
            axes.set_axis_off()
        for row, digit, own in zip(grid, images, maps, strict=True):
            row[0].imshow(digit, "gray_r", interpolation="nearest")
            side = digit.shape[0]
            for axes, weights in zip(row[1:], own, strict=True):
                axes.imshow(weights, "viridis", vmin=0, extent=(0, side, side, 0), interpolation="nearest")
                axes.contour(np.arange(side) + 0.5, np.arange(side) + 0.5, digit, levels=[96], colors="white")
        grid[0, 0].set_title("digit", fontsize=10, fontweight="normal")
        for number, axes in enumerate(grid[0, 1:], 1):
            axes.set_title(f"head {number}", fontsize=10, fontweight="normal")
    return figure


def report(results: list[dict[str, Any]]) -> Findings:
    own, other = (topic.mean_and_std([result[whose]["accuracy"] for result in results]) for whose in ("own", "other"))
    quarter = topic.mean_and_std([concentration(result["maps"]) for result in results])
    numbers = {
        "test_accuracy": own,
        "parameters": results[0]["own"]["parameters"],
        "attention_to_best_quarter": quarter,
    }
    baseline = {"test_accuracy": other, "parameters": results[0]["other"]["parameters"]}
    text = (
        f"Without convolutions, with attention between patches, {100 * own['mean']:.1f} % of the test digits are "
        f"classified correctly, {digits.relation(own['mean'], other['mean'])} the {100 * other['mean']:.1f} % of a "
        f"multi-layer perceptron trained for the same number of steps. In the last block {100 * quarter['mean']:.0f} % "
        "of the attention of the class token, the additional vector from which the class is computed, goes to a "
        "quarter of the patches"
    )
    text += ": it focuses on parts of the digit." if quarter["mean"] > 0.4 else ": it is nearly uniform."
    figure = draw(results[0], f"Attention of the heads; test accuracy {100 * own['mean']:.1f} %")
    caption = (
        "Attention of the class token to the patches in the last block, one map per head, brighter where it is larger; "
        "white: outline of the digit."
    )
    return Findings(text, numbers, baseline, figure, caption, "multi-layer perceptron")


CARDS = (
    Card(
        "attention",
        "Attention network (AN)",
        Diagram(
            (Layer("input", 4), Layer("attention", 4), Layer("hidden", 4, "one"), Layer("attention", 4))
            + (Layer("hidden", 4, "one"), Layer("output", 3)),
            skips=((0, 2), (2, 4)),
        ),
        "The query of each patch is compared with the keys of all patches, and their values are averaged with weights "
        "given by the match. So the connections between patches depend on the image, and distance does not matter.",
        r"\text{attention}(Q, K, V) = \text{softmax}\left( \frac{Q K^{T}}{\sqrt{d}} \right) V",
        "Backpropagation of the cross-entropy through all blocks, with Adam and decoupled weight decay.",
        "Vaswani et al. 2017, Attention is all you need; Dosovitskiy et al. 2020, An image is worth 16x16 words",
        run,
        report,
        "python -m experiments.classify --flagfile=experiments/recipes/vit_tiny.flags --workdir=NEW",
    ),
)
