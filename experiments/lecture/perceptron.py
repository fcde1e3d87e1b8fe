"""Decision boundaries of the perceptron, logistic regression and a hidden layer:
python -m experiments.lecture.perceptron --workdir=W [--steps=300 --points=200 --hidden=8]
"""

import functools
from typing import Any

import jax
import matplotlib
import numpy as np

from experiments.lecture import points, topic
from experiments.reporting import figures

OPTIONS = {
    "steps": (300, "Number of passes over the training points."),
    "points": (200, "Number of training points per data set."),
    "hidden": (8, "Number of units in the hidden layer."),
}
METHODS = {"perceptron": "perceptron", "logistic": "logistic unit", "mlp": "hidden layer"}
TEST = 1000  # Test points per seed.
SOLVED = 0.95  # A method has solved a data set if its mean accuracy is at least this.


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
        figure = figures.new_figure(height=5.9)
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
                axes.scatter(*x[:150][y[:150] == label].T, s=7, c=colour, marker=marker, linewidths=0)
            right = f"{100 * found[name][method]['accuracy']:.0f} %"
            box = {"facecolor": "white", "edgecolor": "#999999", "pad": 2, "alpha": 0.9}
            axes.text(0.96, 0.05, right, transform=axes.transAxes, ha="right", weight="bold", fontsize=10, bbox=box)
            axes.tick_params(labelsize=8, labelleft=column == 0)
            if row == 0:
                axes.set_title(METHODS[method].replace(" ", "\n"), fontsize=10.5)
            if row == len(points.DATA) - 1:
                axes.set_xlabel("x₁")
            if column == 0:
                axes.set_ylabel(f"{points.DATA[name]}\nx₂")
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    found = {
        name: [
            this_topic.cached(f"{name}_seed_{i}", functools.partial(measure, name, i, this_topic.options))
            for i in this_topic.seeds
        ]
        for name in points.DATA
    }
    right = {(n, m): topic.mean_and_std([one[m]["accuracy"] for one in found[n]]) for n in points.DATA for m in METHODS}
    said = {pair: f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} %" for pair, value in right.items()}
    solvers = [m for m in METHODS if right["xor", m]["mean"] >= SOLVED]
    names = " and ".join(f"the {METHODS[m]}" for m in solvers) or "none of the three"
    title = f"XOR is solved {'only ' * (len(solvers) == 1)}by {names}"
    figure = boundaries({name: found[name][0] for name in points.DATA}, this_topic.seeds[0], title)
    caption = "test points and accuracy of the first seed; the background shows the output, paler if less certain"
    this_topic.figure("boundaries", figure, title="Decision boundaries", caption=caption)
    both = ", ".join(f"{METHODS[m]} {said['xor', m]}" for m in METHODS)
    text = (
        "The perceptron and logistic regression have the same update, (y − output) x: the perceptron's output is a "
        "step, 0 or 1, and the logistic unit's is a probability, given by the sigmoid. Both decision boundaries are "
        "straight lines.",
        "If a line separates the classes, the test accuracy of the perceptron is "
        f"{said['separable', 'perceptron']} and that of the logistic unit {said['separable', 'logistic']} (mean and "
        "standard deviation over seeds).",
        "The lecture says that no line solves XOR, but one hidden layer does. Here the accuracy is above "
        f"{100 * SOLVED:.0f} % for {names}: {both}.",
    )
    rows = [[points.DATA[n], *(said[n, m] for m in METHODS)] for n in points.DATA]
    table = ("Test accuracy", ["data", *METHODS.values()], rows)
    numbers = {f"{n}_{m}": value for (n, m), value in right.items()}
    return topic.TopicResult(text, numbers, [table])


if __name__ == "__main__":
    topic.main("perceptron", experiment, OPTIONS)
