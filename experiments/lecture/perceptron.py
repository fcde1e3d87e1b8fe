"""Decision boundaries of the perceptron, logistic regression and a hidden layer:
python -m experiments.lecture.perceptron --workdir=W [--steps=300 --points=200 --hidden=8]
"""

import functools
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from experiments.lecture import points, topic
from experiments.reporting import figures

OPTIONS = {
    "steps": (300, "Number of passes over the training points."),
    "points": (200, "Number of training points per data set."),
    "hidden": (8, "Number of units in the hidden layer."),
}
METHODS = {"perceptron": "perceptron", "logistic": "logistic regression", "mlp": "hidden layer"}
TEST = 1000  # Test points per seed.
SHOWN = 150  # Test points in the figure.
WIDGET = 200  # The largest number of training points in the widget.
SOLVED = 0.95  # A method has solved a data set if its mean accuracy is at least this.
BEST_LINE = 0.7  # A line that separates one cloud of XOR from the others has a higher accuracy than this.


def measure(name: str, seed: int, options) -> dict[str, Any]:
    """Trains each method; returns its parameters and test accuracy."""
    x, y = points.draw(name, options["points"], seed=seed, split="train")
    new_x, new_y = points.draw(name, TEST, seed=seed, split="test")
    found = {}
    for method in METHODS:
        key = jax.random.key(seed)
        params = points.fit(key, x, y, method=method, steps=options["steps"], hidden=options["hidden"])
        right = np.mean((np.asarray(points.score(params, new_x)) > 0) == (new_y > 0.5))
        found[method] = {"params": jax.tree.map(lambda p: np.asarray(p).tolist(), params), "accuracy": float(right)}
    return found


def boundaries(found, seed: int, title: str):
    """Plots test points, output and decision boundary; one row per data set, one column per method."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False, "axes.titlelocation": "center"}):
        figure = figures.new_figure(height=6.7)
        topic.headline(figure, title)
        panels = figure.subplots(len(points.DATA), len(METHODS))
        for (row, column), axes in np.ndenumerate(panels):
            name, method = list(points.DATA)[row], list(METHODS)[column]
            x, y = points.draw(name, TEST, seed=seed, split="test")
            side = np.linspace(x.min(0) - 0.3, x.max(0) + 0.3, 120).T
            grid = np.stack(np.meshgrid(*side), -1).reshape(-1, 2)
            params = jax.tree.map(np.asarray, found[name][method]["params"], is_leaf=lambda p: isinstance(p, list))
            z = np.asarray(points.score(params, grid)).reshape(120, 120)
            share = np.asarray(points.step(z) if method == "perceptron" else jax.nn.sigmoid(z))
            axes.pcolormesh(*side, share, cmap=points.OUTPUTS, vmin=0, vmax=1)
            if z.min() < 0 < z.max():
                axes.contour(*side, z, levels=[0], colors="black", linewidths=1.4)
            for label, (colour, marker) in enumerate(points.CLASSES):
                axes.scatter(*x[:SHOWN][y[:SHOWN] == label].T, s=7, c=colour, marker=marker, linewidths=0)
            right = f"{100 * found[name][method]['accuracy']:.0f} % correct"
            above = f"{METHODS[method]}\n" if row == 0 else ""
            axes.set_title(above + right, fontsize=10, weight="normal")
            axes.tick_params(labelsize=8, labelleft=column == 0)
            if row == len(points.DATA) - 1:
                axes.set_xlabel("x₁")
            if column == 0:
                axes.set_ylabel(f"{points.DATA[name]}\nx₂")
        line = Line2D([], [], color="black", linewidth=1.4, label="decision boundary")
        figure.legend(handles=[*points.class_handles(), line], loc="outside lower center", ncols=3, frameon=False)
    return figure


def widget(count: int) -> dict[str, Any]:
    """The data of widgets/playground.js: `count` training points of seed 0 of each data set."""
    found = {}
    for name, label in points.DATA.items():
        x, y = points.draw(name, count, seed=0, split="train")
        found[name] = {"label": label, "x": [[round(float(c), 4) for c in point] for point in x], "y": y.tolist()}
    return found


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    options = this_topic.options
    found = {
        name: [
            this_topic.cached(f"{name}_seed_{i}", functools.partial(measure, name, i, options))
            for i in this_topic.seeds
        ]
        for name in points.DATA
    }
    right = {(n, m): topic.mean_and_std([one[m]["accuracy"] for one in found[n]]) for n in points.DATA for m in METHODS}
    said = {pair: this_topic.percent(value) for pair, value in right.items()}
    solvers = [m for m in METHODS if right["xor", m]["mean"] >= SOLVED]
    names = " and ".join(f"the {METHODS[m]}" for m in solvers) or "none of the three"
    title = f"XOR is solved {'only ' * (len(solvers) == 1)}by {names}"
    figure = boundaries({name: found[name][0] for name in points.DATA}, this_topic.seeds[0], title)
    caption = (
        f"{SHOWN} of the {TEST:,} test points of the first seed, and the percentage of all test points classified "
        "correctly; the background shows the output, paler if less certain"
    )
    this_topic.figure("boundaries", figure, title="Decision boundaries", caption=caption)
    text = [
        f"Each model was trained on {options['points']:,} points per data set and tested on {TEST:,} others. The table "
        f"gives the percentage of test points classified correctly: {this_topic.over_seeds()}. "
        "A seed determines the points and the initial weights.",
        f"A model counts as solving XOR if it classifies at least {100 * SOLVED:.0f} % of the points correctly. Here, "
        f"this is true for {names}.",
    ]
    if max(right["xor", m]["mean"] for m in ("perceptron", "logistic")) < BEST_LINE:
        text += [
            "A line can classify three of the four clouds of XOR correctly, 75 % of the points, but neither rule ends "
            "with such a line in every run. The cost of logistic regression is smallest if all its predictions are "
            "close to 1/2. The perceptron may find such a line, but moves it after the next misclassified point, so "
            "its accuracy depends on which points came last and differs between seeds."
        ]
    rows = [[points.DATA[n], *(said[n, m] for m in METHODS)] for n in points.DATA]
    table = ("Test points classified correctly", ["data", *METHODS.values()], rows)
    numbers = {f"{n}_{m}": value for (n, m), value in right.items()}
    guess = "A perceptron is trained on XOR. What percentage of new points does it classify correctly?"
    guesses = [topic.Guess("boundaries", guess, "%", 0, 100, 100 * right["xor", "perceptron"]["mean"])]
    return topic.TopicResult(text, numbers, [table], guesses, {"playground": widget(min(options["points"], WIDGET))})


if __name__ == "__main__":
    topic.main("perceptron", experiment, OPTIONS)
