"""A self-organizing map of the digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from data import batches
from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.flat_digits import FlatDigits, as_hex, flat_digits, k_means_centres, mosaic
from experiments.reporting import figures
from models import kohonen as som
from train.tasks import kohonen

SIDE, BATCH_SIZE, EPOCHS = 12, 100, 6
RATE, RADIUS = (0.5, 0.02), (SIDE / 2, 0.5)  # In the first and in the last step, with exponential decay.


def _scores(weights, digits: FlatDigits) -> dict[str, Any]:
    """Errors of a map [R, C, 784] on the test digits, and its accuracy if each unit predicts the most frequent label
    among the training digits closest to it."""
    sums = kohonen.scores(weights, jnp.asarray(digits.test))
    closest, tested = (np.asarray(som.nearest(weights, jnp.asarray(x))[1])[:, 0] for x in (digits.train, digits.test))
    votes = np.zeros((weights.shape[0] * weights.shape[1], 10))
    np.add.at(votes, (closest, digits.train_labels), 1)
    labels = np.where(votes.any(1), votes.argmax(1), -1)
    return {
        "quantization": float(sums["quantization"] / sums["count"]),
        "topographic": float(sums["topographic"] / sums["count"]),
        "accuracy": float((labels[tested] == digits.test_labels).mean()),
        "labels": labels.tolist(),
    }


def run_kohonen(seed: int, side: int = SIDE, epochs: float = EPOCHS, examples: int | None = None) -> dict[str, Any]:
    digits = flat_digits(examples)
    steps = max(1, round(epochs * len(digits.train) / BATCH_SIZE))
    rate, radius = (
        optax.exponential_decay(first, steps, last / first)
        for first, last in (RATE, (RADIUS[0] * side / SIDE, RADIUS[1]))
    )
    step = jax.jit(functools.partial(kohonen.step, rate=rate, radius=radius))
    mean, std = (jnp.asarray(x) for x in (digits.train.mean(0), digits.train.std(0)))
    state = kohonen.init(jax.random.key(seed), side, side, mean, std)
    source = batches.train_batches(digits.train, digits.train_labels, batch_size=BATCH_SIZE, seed=seed)
    for _ in range(steps):
        state, _ = step(state, {"input": next(source)["image"]})

    means = k_means_centres(digits.train, side * side, steps=50, seed=seed)
    drawn = np.random.default_rng(seed).permutation(means).astype(np.float32).reshape(side, side, 784)
    return {
        "side": side,
        "map": _scores(state.weights, digits),
        "k_means": _scores(jnp.asarray(drawn), digits),
        "images": as_hex(state.weights.reshape(-1, 784)),
    }


def report_kohonen(results: list[dict[str, Any]]) -> Findings:
    found = {
        name: {
            key: topic.mean_and_std([result[name][key] for result in results])
            for key in ("quantization", "topographic", "accuracy")
        }
        for name in ("map", "k_means")
    }
    side = results[0]["side"]
    (error, other), (apart, chance) = (
        [found[name][key]["mean"] for name in ("map", "k_means")] for key in ("quantization", "topographic")
    )
    order = f"So the map {'preserves' if apart < chance / 2 else 'does not clearly preserve'} neighborhoods"
    price = error / other - 1
    text = (
        f"For {100 * apart:.0f} % of the test digits the two closest units are not adjacent on the map, compared with "
        f"{100 * chance:.0f} % for {side * side} k-means centers in random order. {order}; "
        f"the mean distance to the closest unit is {abs(100 * price):.1f} % "
        f"{'above' if price > 0 else 'below'} that of k-means."
    )
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=5.6)
        axes = figure.add_subplot()
        axes.imshow(mosaic(results[0]["images"], side), cmap="gray_r")
        for place, label in enumerate(results[0]["map"]["labels"]):
            row, column = divmod(place, side)
            colour = matplotlib.colormaps["tab10"](label) if label >= 0 else "#666666"
            text_of = str(label) if label >= 0 else "–"
            axes.text(28 * column + 1, 28 * row + 8, text_of, fontsize=7, color=colour, fontweight="bold")
        axes.set_axis_off()
        axes.set_title(f"A map of {side} x {side} units: neighbors are similar", fontsize=12)
    numbers = {
        "quantization_error": found["map"]["quantization"],
        "topographic_error": found["map"]["topographic"],
        "test_accuracy": found["map"]["accuracy"],
        "units": side * side,
    }
    baseline = {
        "quantization_error": found["k_means"]["quantization"],
        "topographic_error": found["k_means"]["topographic"],
        "test_accuracy": found["k_means"]["accuracy"],
    }
    caption = "The weights of the units as images, with the most frequent label of the closest training digits."
    return Findings(text, numbers, baseline, figure, caption, "k-means, random order")


FORMULA = r"w_j \leftarrow w_j + \eta \exp\left( -\frac{\lVert r_j - r_c \rVert^2}{2 \sigma^2} \right) (x - w_j)"

CARDS = (
    Card(
        name="kohonen",
        title="Kohonen network (KN)",
        diagram=Diagram((Layer("input", 3), Layer("hidden", 9)), form="grid"),
        idea="The units form a grid, and each represents a typical input. The unit closest to an input and its "
        "neighbors move towards it, so that similar inputs are mapped to nearby units.",
        formula=FORMULA,
        rule="The closest unit c and its neighbors move towards the input, less with increasing distance on the grid; "
        "the learning rate η and the neighborhood width σ decrease.",
        reference="Kohonen, 1982, “Self-organized formation of topologically correct feature maps”",
        run=run_kohonen,
        report=report_kohonen,
    ),
)
