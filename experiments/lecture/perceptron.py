"""Decision boundaries of the perceptron, logistic regression and a hidden layer:
python -m experiments.lecture.perceptron --workdir=W [--steps=300 --points=200 --hidden=8]
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap

import models
from experiments.lecture import topic
from experiments.reporting import figures
from train.tasks import losses

OPTIONS = {
    "steps": (300, "Number of passes over the training points."),
    "points": (200, "Number of training points per data set."),
    "hidden": (8, "Number of units in the hidden layer."),
}
DATA = {"separable": "separable", "xor": "XOR", "moons": "two moons"}
METHODS = {"perceptron": "perceptron", "logistic": "logistic unit", "mlp": "hidden layer"}
LINE, GAP = np.array([0.6, 0.8, -0.4]), 0.2  # The line between the separable classes (unit normal), half the gap.
TEST = 1000  # Test points per seed.
SOLVED = 0.95  # The mean accuracy from which on a method is said to solve a data set.
CLASSES = ("#0072B2", "o"), ("#D55E00", "^")
FORMULA = (
    '<math display="block"><mi>w</mi><mo>←</mo><mi>w</mi><mo>+</mo><mi>η</mi><mo>(</mo><mi>y</mi><mo>−</mo><mi>φ</mi>'
    "<mo>(</mo><msup><mi>w</mi><mi>T</mi></msup><mi>x</mi><mo>+</mo><mi>b</mi><mo>)</mo><mo>)</mo><mi>x</mi>"
    "<mo>,</mo><mspace width='1em'/><mi>φ</mi><mo>=</mo><mtext>step (perceptron) or sigmoid (logistic)</mtext></math>"
)


def _separable(random, count: int):
    x = random.uniform(-2, 2, (4 * count + 100, 2))
    height = x @ LINE[:2] + LINE[2]
    far = np.abs(height) > GAP
    return x[far][:count], height[far][:count] > 0


def _xor(random, count: int, *, noise: float = 0.3):
    corners = random.integers(0, 2, (count, 2))
    return 2 * corners - 1 + noise * random.standard_normal((count, 2)), corners[:, 0] != corners[:, 1]


def moons(random, count: int, *, noise: float = 0.15):
    """Two interleaving half circles, as in scikit-learn's make_moons; the outer one comes first."""
    outer, inner = np.linspace(0, np.pi, count // 2), np.linspace(0, np.pi, count - count // 2)
    x = np.concatenate([np.cos(outer), 1 - np.cos(inner)]), np.concatenate([np.sin(outer), 0.5 - np.sin(inner)])
    return np.stack(x, 1) + noise * random.standard_normal((count, 2)), np.arange(count) >= count // 2


def draw(name: str, count: int, *, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 2] in random order and their classes [N], 0.0 or 1.0; the splits are drawn independently."""
    random = np.random.default_rng((seed, ("train", "test").index(split), list(DATA).index(name)))
    x, y = {"separable": _separable, "xor": _xor, "moons": moons}[name](random, count)
    order = random.permutation(count)
    return x[order].astype(np.float32), y[order].astype(np.float32)


def step(z):
    """The threshold unit: 1 where z > 0, else 0."""
    return (z > 0).astype(z.dtype)


def network(hidden: int):
    """One hidden layer of tanh units and one output: the project's mlp."""
    return models.create("mlp", 1, hidden=(hidden,), activation="tanh")


@jax.jit
def score(params, x):
    """The input of the output unit, [..., 2] -> [...], positive for class 1: x w + b, where the network (x [N, 2])
    replaces x by its hidden units."""
    if "w" in params:
        return x @ params["w"] + params["b"]
    return network(len(params["dense1"]["bias"])).apply({"params": params}, x)[:, 0]


def correct(params, x, y):
    """The parameters after one example x [2] of class y: w += eta (y - step(w x + b)) x with eta = 1 (Rosenblatt 1958,
    "The perceptron"). Starting from zero weights, another eta only scales them; the boundary stays the same."""
    error = y - step(score(params, x))
    return {"w": params["w"] + error * x, "b": params["b"] + error}


def descend(params, x_N2, y_N, *, rate: float = 1.0):
    """The parameters after one step of gradient descent on the mean cross-entropy of logistic regression. The explicit
    gradient is the perceptron rule averaged over all points, with a sigmoid instead of the step."""
    error = y_N - jax.nn.sigmoid(score(params, x_N2))
    return {"w": params["w"] + rate * error @ x_N2 / len(y_N), "b": params["b"] + rate * error.mean()}


@functools.partial(jax.jit, static_argnames=("method", "steps", "hidden"))
def fit(key, x_N2, y_N, *, method: str, steps: int, hidden: int):
    """The parameters after `steps` passes over the points. The perceptron takes them one at a time, in a new order on
    each pass; for the other methods a pass is one full-batch step."""
    zero = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    if method == "perceptron":
        order = jax.vmap(lambda key: jax.random.permutation(key, len(y_N)))(jax.random.split(key, steps)).reshape(-1)
        return jax.lax.scan(lambda params, i: (correct(params, x_N2[i], y_N[i]), None), zero, order)[0]
    if method == "logistic":
        return jax.lax.fori_loop(0, steps, lambda _, params: descend(params, x_N2, y_N), zero)
    optimizer = optax.adam(0.05)
    params, labels = network(hidden).init(key, x_N2)["params"], y_N.astype(jnp.int32)

    def one_step(_, carry):
        params, state = carry
        gradients = jax.grad(lambda params: losses.cross_entropy(score(params, x_N2)[:, None], labels).mean())(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, one_step, (params, optimizer.init(params)))[0]


def measure(name: str, seed: int, options) -> dict[str, Any]:
    """The parameters and the test accuracy of each method."""
    x, y = draw(name, options["points"], seed=seed, split="train")
    new_x, new_y = draw(name, TEST, seed=seed, split="test")
    found = {}
    for method in METHODS:
        key = jax.random.key(seed)
        params = fit(key, x, y, method=method, steps=options["steps"], hidden=options["hidden"])
        right = np.mean((np.asarray(score(params, new_x)) > 0) == (new_y > 0.5))
        found[method] = {"params": jax.tree.map(lambda p: np.asarray(p).tolist(), params), "accuracy": float(right)}
    return found


def boundaries(found, seed: int, title: str):
    """Test points, output and decision boundary; a row per data set, a column per method."""
    outputs = LinearSegmentedColormap.from_list("outputs", ["#bcdcf2", "#ffffff", "#f9d5b9"])
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False, "axes.titlelocation": "center"}):
        figure = figures.new_figure(height=5.9)
        topic.headline(figure, title)
        panels = figure.subplots(len(DATA), len(METHODS))
        for (row, column), axes in np.ndenumerate(panels):
            name, method = list(DATA)[row], list(METHODS)[column]
            x, y = draw(name, TEST, seed=seed, split="test")
            side = np.linspace(x.min(0) - 0.3, x.max(0) + 0.3, 120).T
            grid = np.stack(np.meshgrid(*side), -1).reshape(-1, 2)
            params = jax.tree.map(np.asarray, found[name][method]["params"], is_leaf=lambda p: isinstance(p, list))
            z = np.asarray(score(params, grid)).reshape(120, 120)
            share = np.asarray(step(z) if method == "perceptron" else jax.nn.sigmoid(z))
            axes.pcolormesh(*side, share, cmap=outputs, vmin=0, vmax=1)
            if z.min() < 0 < z.max():
                axes.contour(*side, z, levels=[0], colors="black", linewidths=1.4)
            for label, (colour, marker) in enumerate(CLASSES):
                axes.scatter(*x[:150][y[:150] == label].T, s=7, c=colour, marker=marker, linewidths=0)
            right = f"{100 * found[name][method]['accuracy']:.0f} %"
            box = {"facecolor": "white", "edgecolor": "#999999", "pad": 2, "alpha": 0.9}
            axes.text(0.96, 0.05, right, transform=axes.transAxes, ha="right", weight="bold", fontsize=10, bbox=box)
            axes.tick_params(labelsize=8, labelleft=column == 0)
            if row == 0:
                axes.set_title(METHODS[method].replace(" ", "\n"), fontsize=10.5)
            if row == len(DATA) - 1:
                axes.set_xlabel("x₁")
            if column == 0:
                axes.set_ylabel(f"{DATA[name]}\nx₂")
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    found = {
        name: [
            this_topic.cached(f"{name}_seed_{i}", functools.partial(measure, name, i, this_topic.options))
            for i in this_topic.seeds
        ]
        for name in DATA
    }
    right = {(n, m): topic.mean_and_std([one[m]["accuracy"] for one in found[n]]) for n in DATA for m in METHODS}
    said = {pair: f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f} %" for pair, value in right.items()}
    solvers = [m for m in METHODS if right["xor", m]["mean"] >= SOLVED]
    names = " and ".join(f"the {METHODS[m]}" for m in solvers) or "none of the three"
    title = f"XOR is solved by {names}{' alone' * (len(solvers) == 1)}"
    figure = boundaries({name: found[name][0] for name in DATA}, this_topic.seeds[0], title)
    caption = "test points of the first seed and accuracy; the background is the output, paler where it is less certain"
    this_topic.figure("boundaries", figure, title="Decision boundaries", caption=caption)
    both = ", ".join(f"{METHODS[m]} {said['xor', m]}" for m in METHODS)
    text = (
        "The perceptron and logistic regression make the same correction, (y − output) x: the perceptron's output is a "
        "step, 0 or 1, the logistic unit's is the probability given by the sigmoid. Each draws one straight line.",
        f"Where a line separates the classes, the test accuracy of the perceptron is {said['separable', 'perceptron']} "
        f"and that of the logistic unit {said['separable', 'logistic']} (mean and standard deviation over seeds).",
        "The lecture says that no line solves XOR and that one hidden layer does. Here the accuracy is above "
        f"{100 * SOLVED:.0f} % for {names}: {both}.",
    )
    rows = [[DATA[n], *(said[n, m] for m in METHODS)] for n in DATA]
    table = ("Test accuracy", ["data", *METHODS.values()], rows)
    numbers = {f"{n}_{m}": value for (n, m), value in right.items()}
    return topic.TopicResult("Where a unit draws the line", text, FORMULA, numbers, [table])


if __name__ == "__main__":
    topic.main("perceptron", experiment, OPTIONS)
