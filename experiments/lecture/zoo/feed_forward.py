"""The perceptron, on digits and two-dimensional points, and the feed-forward network, on digits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import data
import models
from experiments.lecture import points, topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.digits import learn, percent
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures

RATE = 0.003  # Learning rate of the networks on digits.
PAIR = (3, 5)  # The two digits that the perceptron has to separate.


# --- The perceptron ---


@functools.partial(jax.jit, static_argnames="passes")
def rosenblatt(key, x_NC, y_N, *, passes: int):
    """Rosenblatt's rule from zero weights, with the examples in a new random order in each pass. Returns the parameters
    and the training error before the first pass and after each pass, [passes + 1]."""

    def error(params):
        return jnp.mean((points.score(params, x_NC) > 0) != (y_N > 0.5))

    def one_pass(params, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), len(y_N))
        params, _ = jax.lax.scan(lambda p, i: (points.correct(p, x_NC[i], y_N[i]), None), params, order)
        return params, error(params)

    zero = {"w": jnp.zeros(x_NC.shape[1:]), "b": jnp.zeros(())}
    params, errors = jax.lax.scan(one_pass, zero, jnp.arange(passes))
    return params, jnp.concatenate([error(zero)[None], errors])


def pair(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of PAIR: pixels [N, 784] in 0 .. 1 and labels [N], 1.0 for the second digit, else 0.0."""
    images, labels = data.load("mnist5k").splits[split]
    rows = np.isin(labels, PAIR)
    return images[rows].reshape(-1, 28 * 28).astype(np.float32) / 255, (labels[rows] == PAIR[1]).astype(np.float32)


def run_perceptron(seed: int, *, passes: int = 60, steps: int = 300) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sets: dict[str, Any] = {"digits": (pair("train"), pair("test"))}
    sets["xor"] = tuple(points.draw("xor", 400, seed=seed, split=split) for split in ("train", "test"))
    for name, ((x, y), (new_x, new_y)) in sets.items():
        params, errors = rosenblatt(jax.random.key(seed), x, y, passes=passes)
        hidden = points.fit(jax.random.key(seed), x, y, method="mlp", steps=steps, hidden=8)
        found[name] = {
            "curve": np.asarray(errors, np.float64).round(5).tolist(),
            "test_error": float(np.mean((points.score(params, new_x) > 0) != (new_y > 0.5))),
            "hidden_training_error": float(np.mean((points.score(hidden, x) > 0) != (y > 0.5))),
            "hidden_test_error": float(np.mean((points.score(hidden, new_x) > 0) != (new_y > 0.5))),
        }
        if name == "digits":
            found["weights"] = np.asarray(params["w"], np.float64).reshape(28, 28).round(4).tolist()
    return found


def report_perceptron(results: list[dict[str, Any]]) -> Findings:
    lowest = {name: [min(result[name]["curve"]) for result in results] for name in ("digits", "xor")}
    numbers = {f"lowest_training_error_{name}": topic.mean_and_std(values) for name, values in lowest.items()}
    baseline: dict[str, Any] = {}
    for name in ("digits", "xor"):
        numbers[f"test_error_{name}"] = topic.mean_and_std([result[name]["test_error"] for result in results])
        baseline |= {
            f"lowest_training_error_{name}": topic.mean_and_std([r[name]["hidden_training_error"] for r in results]),
            f"test_error_{name}": topic.mean_and_std([r[name]["hidden_test_error"] for r in results]),
        }
    digits, xor = numbers["lowest_training_error_digits"], numbers["lowest_training_error_xor"]
    solved = "separates" if max(lowest["digits"]) == 0 else "does not fully separate"
    failed = "on XOR it fails, with" if xor["mean"] > 0.1 else "here it nearly solves even XOR, with"
    text = (
        f"The rule {solved} the training digits {PAIR[0]} and {PAIR[1]} (lowest training error {percent(digits)}, test "
        f"error {percent(numbers['test_error_digits'])}); {failed} a lowest training error of {percent(xor)}, compared "
        f"with {percent(baseline['lowest_training_error_xor'])} for one hidden layer."
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.2)
        left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
        for name, part, label in (("digits", "train", f"{PAIR[0]} or {PAIR[1]}"), ("xor", "eval", "XOR")):
            curves = 100 * np.array([result[name]["curve"] for result in results])
            topic.draw_spread(left, range(curves.shape[1]), curves, part)
            left.plot([], [], color=figures.COLOURS[part], label=label)
        left.set(xlim=(0, curves.shape[1] - 1), ylim=(0, 100), xlabel="passes", ylabel="training error, %")
        left.legend(frameon=False, loc="upper right", ncols=2, fontsize=10)
        weights = np.array(results[0]["weights"])
        largest = np.abs(weights).max()
        right.imshow(weights, "RdBu_r", vmin=-largest, vmax=largest)
        right.set_axis_off()
        right.set_title("weights", fontsize=11)
    caption = f"left: Rosenblatt's rule; right: the weights of the pixels, red for {PAIR[1]}, blue for {PAIR[0]}"
    return Findings(text, numbers, baseline, figure, caption, "one hidden layer")


# --- Feed-forward networks on digits ---


def draw_curves(results: list[dict[str, Any]], labels: dict[str, tuple[str, str]], title: str):
    """Plots test accuracy by step, as mean and standard deviation over seeds; `labels` maps each network to its label
    and a key of figures.COLOURS."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.2)
        axes, ends = figure.add_subplot(), []
        for name, (label, part) in labels.items():
            steps, _ = np.array(results[0][name]).T
            percents = 100 * np.array([[right for _, right in result[name]] for result in results])
            ends.append((topic.draw_spread(axes, steps, percents, part)[-1], label, part))
        axes.set(xlim=(0, steps[-1]), ylim=(80, 100), xlabel="training steps", ylabel="test accuracy, %")
        axes.set_title(figures.wrapped(title, 48))
        figure.draw_without_rendering()  # The label positions depend on the final layout.
        figures.label_ends(axes, ends, gap=16)
    return figure


def run_feed_forward(seed: int, *, steps: int = 800) -> dict[str, Any]:
    nets = {"network": models.create("mlp", 10, hidden=(128,)), "linear": models.create("perceptron", 10)}
    return {name: learn(model, steps=steps, seed=seed, rate=RATE).curve for name, model in nets.items()}


def report_feed_forward(results: list[dict[str, Any]]) -> Findings:
    right = {n: topic.mean_and_std([result[n][-1][1] for result in results]) for n in ("network", "linear")}
    better = right["network"]["mean"] > right["linear"]["mean"]
    text = (
        f"After {results[0]['network'][-1][0]} steps a network with one hidden layer of 128 units classifies "
        f"{percent(right['network'])} of the test digits correctly, and logistic regression on the pixels "
        f"{percent(right['linear'])}: the hidden layer {'helps' if better else 'does not help here'}."
    )
    labels = {"network": ("hidden\nlayer", "train"), "linear": ("linear", "eval")}
    title = f"One hidden layer {percent(right['network'])}, linear {percent(right['linear'])}"
    caption = "accuracy on 1,000 test digits, after training on 4,000"
    figure = draw_curves(results, labels, title)
    return Findings(
        text, {"test_accuracy": right["network"]}, {"test_accuracy": right["linear"]}, figure, caption, "linear"
    )


PERCEPTRON = Card(
    name="perceptron",
    title="Perceptron (P)",
    diagram=Diagram((Layer("input", 2), Layer("output", 1))),
    idea="A single unit outputs 1 if the weighted sum of its inputs is positive, else 0. So the decision boundary "
    "between two classes is a straight line or a hyperplane.",
    formula=(r"w \leftarrow w + (y - \varphi(w^{T} x + b)) x, \quad \varphi(z) = 1 \text{ if } z > 0, \text{ else } 0"),
    rule="Rosenblatt's rule: for each misclassified example, add it to the weights or subtract it from them.",
    reference="Frank Rosenblatt, 1958, “The perceptron: a probabilistic model for information storage and organization "
    "in the brain”",
    run=run_perceptron,
    report=report_perceptron,
    command="python -m experiments.lecture.perceptron --workdir=NEW",
)

FEED_FORWARD = Card(
    name="feed_forward",
    title="Feed forward (FF)",
    diagram=Diagram((Layer("input", 2), Layer("hidden", 2), Layer("output", 1))),
    idea="Between inputs and outputs there is a layer of hidden units, and all connections go forward. Each hidden "
    "unit defines a linear boundary, and the outputs combine them into curved decision boundaries.",
    formula=r"h = \max(0, W_1 x + b_1), \quad p = \mathrm{softmax}(W_2 h + b_2)",
    rule="Backpropagation: gradient descent (Adam) on the cross-entropy, with gradients by the chain rule.",
    reference="David Rumelhart, Geoffrey Hinton and Ronald Williams, 1986, “Learning representations by "
    "back-propagating errors”",
    run=run_feed_forward,
    report=report_feed_forward,
    command="python -m experiments.classify --model=mlp --workdir=NEW",
)

CARDS = (PERCEPTRON, FEED_FORWARD)
