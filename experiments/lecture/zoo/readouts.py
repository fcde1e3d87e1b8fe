"""Hidden units that are not trained by backpropagation, with a linear readout: radial basis functions at k-means
centers, and the random units of the extreme learning machine."""

import functools
import time
from typing import Any

import jax
import matplotlib
import numpy as np
import optax

import models
from experiments.lecture import deep_nets, topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.flat_digits import accuracy, as_hex, flat_digits, k_means_centres, mosaic, one_hot
from experiments.reporting import figures
from experiments.setup import small_training
from models import rbf, reservoir
from train.tasks import least_squares

CENTRES = (25, 50, 100, 200, 400)
SHOWN = 20  # Centers of the smallest network in the figure.
UNITS = (125, 250, 500, 1000, 2000)
MLP_UNITS, STEPS, EVERY, BATCH_SIZE = 500, 600, 25, 64
PIXEL_PENALTY, RANDOM_PENALTY = 100.0, 10.0  # Tuned on training digits.


def pixel_readout(digits) -> float:
    """The test accuracy of a linear readout of the pixels."""
    train, test = (least_squares.with_constant(x) for x in (digits.train, digits.test))
    return accuracy(test @ least_squares.fit(train, one_hot(digits.train_labels), PIXEL_PENALTY), digits.test_labels)


def run_rbf(seed: int, counts=CENTRES, examples: int | None = None) -> dict[str, Any]:
    digits, features, create = flat_digits(examples), jax.jit(rbf.features), jax.jit(rbf.create)
    targets, random = one_hot(digits.train_labels), np.random.default_rng(seed)
    found: dict[str, list[float]] = {"k_means": [], "random": []}
    for count in counts:
        means = k_means_centres(digits.train, count, steps=20, seed=seed)
        drawn = digits.train[random.choice(len(digits.train), count, replace=False)]
        for name, centres in (("k_means", means), ("random", drawn)):
            units = create(centres)
            train, test = (least_squares.with_constant(features(units, x)) for x in (digits.train, digits.test))
            scores = test @ least_squares.fit(train, targets)
            found[name].append(accuracy(scores, digits.test_labels))
            if name == "k_means":
                exact = np.linalg.lstsq(train.astype(np.float64), targets, rcond=None)[0]
                difference = float(np.abs(scores - test @ exact).max())
        if count == counts[0]:
            shown = as_hex(means[:SHOWN])
    return {
        "counts": list(counts),
        **found,
        "pixels": pixel_readout(digits),
        "lstsq_difference": difference,
        "centres": shown,
    }


def report_rbf(results: list[dict[str, Any]]) -> Findings:
    counts = results[0]["counts"]
    means = np.array([result["k_means"] for result in results])
    drawn = np.array([result["random"] for result in results])
    pixels = topic.mean_and_std([result["pixels"] for result in results])
    best, other = topic.mean_and_std(means[:, -1]), topic.mean_and_std(drawn[:, -1])
    gain = best["mean"] - other["mean"]
    compared = f"{abs(100 * gain):.1f} points {'more' if gain > 0 else 'less'} than" if gain else "the same as"
    text = (
        f"{counts[-1]} k-means centers give a test accuracy of {100 * best['mean']:.1f} %, {compared} with the same "
        f"number of random training digits as centers; a linear readout of pixels has {100 * pixels['mean']:.1f} %. "
        f"The scores differ from those of numpy's lstsq by at most {max(r['lstsq_difference'] for r in results):.1g}."
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=4.6)
        above, below = figure.subplots(2, 1, height_ratios=(1, 2.3))
        image = mosaic(results[0]["centres"], min(10, len(results[0]["centres"])))
        above.imshow(image, cmap="gray_r")
        above.set_axis_off()
        above.set_title("Centers found by k-means", fontsize=11)
        ends = []
        for values, label, part in ((means, "k-means", "train"), (drawn, "random\ndigits", "eval")):
            line = topic.draw_spread(below, counts, 100 * values, part)
            ends.append((float(line[-1]), label, part))
        below.axhline(100 * pixels["mean"], color=figures.COLOURS["test"], linestyle="--")
        ends.append((100 * pixels["mean"], "pixels,\nlinear", "test"))
        below.set_xscale("log")
        below.minorticks_off()
        below.set_xticks(counts, [str(count) for count in counts])
        below.set(xlim=(counts[0], counts[-1]), xlabel="hidden units", ylabel="test accuracy, %")
        figure.draw_without_rendering()
        figures.label_ends(below, ends, gap=22)
    numbers = {
        "test_accuracy": best,
        "hidden_units": counts[-1],
        "lstsq_difference": topic.mean_and_std([result["lstsq_difference"] for result in results]),
    }
    baseline = {"test_accuracy": other, "test_accuracy_linear_in_pixels": pixels}
    caption = "Test accuracy by number of centers; mean and standard deviation over seeds."
    return Findings(text, numbers, baseline, figure, caption, "random digits as centers")


def run_extreme_learning(seed: int, units=UNITS, mlp_units: int = MLP_UNITS, steps: int = STEPS) -> dict[str, Any]:
    digits, flat = deep_nets.digits(), flat_digits()
    inputs, tests = (
        np.asarray(digits.prepare(np.round(255 * x).reshape(-1, 28, 28, 1))).reshape(-1, 784)
        for x in (flat.train, flat.test)
    )
    targets, random = one_hot(flat.train_labels), np.random.default_rng(seed)
    features = jax.jit(reservoir.hidden_features)
    machines = []
    for count in units:
        np.asarray(features(reservoir.random_hidden(random, 784, count), inputs))  # Compiles.
        began = time.perf_counter()
        layer = reservoir.random_hidden(random, 784, count)
        weights = least_squares.fit(least_squares.with_constant(features(layer, inputs)), targets, RANDOM_PENALTY)
        seconds = time.perf_counter() - began
        scores = least_squares.with_constant(features(layer, tests)) @ weights
        machines.append({"units": count, "seconds": seconds, "accuracy": accuracy(scores, flat.test_labels)})

    task = topic.create(
        models.create("mlp", 10, hidden=(mlp_units,)),
        optax.adam(1e-3),
        image_shape=(28, 28, 1),
        class_names=digits.class_names,
        prepare=digits.prepare,
    )
    predict, images = jax.jit(task.predict_step), np.round(255 * flat.test).astype(np.uint8).reshape(-1, 28, 28, 1)
    curve: list[dict[str, float]] = []
    clock = {"since": 0.0, "seconds": 0.0}

    def watch(step, state):
        """Evaluates the network; the time is not counted as training."""
        jax.block_until_ready(state)
        clock["seconds"] += time.perf_counter() - clock["since"] if step else 0.0
        found = accuracy(predict(state, {"image": images}), flat.test_labels)
        curve.append({"step": step, "seconds": clock["seconds"], "accuracy": found})
        clock["since"] = time.perf_counter()

    train = functools.partial(
        small_training.train, task, digits.images, digits.labels, batch_size=BATCH_SIZE, seed=seed
    )
    train(steps=1)  # Compiles the step.
    train(steps=steps, every=EVERY, watch=watch)
    return {"machines": machines, "mlp": {"units": mlp_units, "curve": curve}}


def seconds_to(curve: list[dict[str, float]], accuracy: float) -> float | None:
    """The first measured time at which a network reaches the accuracy, or None."""
    return next((row["seconds"] for row in curve if row["accuracy"] >= accuracy), None)


def report_extreme_learning(results: list[dict[str, Any]]) -> Findings:
    units = [machine["units"] for machine in results[0]["machines"]]
    scores = np.array([[machine["accuracy"] for machine in result["machines"]] for result in results])
    seconds = np.array([[machine["seconds"] for machine in result["machines"]] for result in results])
    curves = [result["mlp"]["curve"] for result in results]
    trained = topic.mean_and_std([curve[-1]["accuracy"] for curve in curves])
    best, took = topic.mean_and_std(scores[:, -1]), topic.mean_and_std(seconds[:, -1])
    whole = topic.mean_and_std([curve[-1]["seconds"] for curve in curves])
    reached = [seconds_to(curve, score) for curve, score in zip(curves, scores[:, -1], strict=True)]
    name = f"A multi-layer perceptron with {results[0]['mlp']['units']} hidden units, trained by backpropagation,"
    if any(value is None for value in reached):
        compared = (
            f"{name} does not reach this with every seed in {whole['mean']:.1f} s; its mean accuracy is then "
            f"{100 * trained['mean']:.1f} %."
        )
    else:
        ratio = float(np.mean([value for value in reached if value is not None])) / took["mean"]
        times = (
            f"{ratio:.1f} times as long to reach this: the extreme learning machine is faster"
            if ratio > 1
            else f"only {100 * ratio:.0f} % of that time to reach this: the extreme learning machine is not faster"
        )
        compared = f"{name} takes {times}; after {whole['mean']:.1f} s it has {100 * trained['mean']:.1f} %."
    text = (
        f"{units[-1]} random units with a readout by ridge regression have a test accuracy of "
        f"{100 * best['mean']:.1f} % after {took['mean']:.2f} s. {compared}"
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.6)
        axes = figure.add_subplot()
        trained_at, reached_then = (
            np.array([[row[key] for row in curve[1:]] for curve in curves]).mean(0) for key in ("seconds", "accuracy")
        )
        axes.plot(trained_at, 100 * reached_then, color=figures.COLOURS["eval"], label="backpropagation")
        ours, label = figures.COLOURS["train"], "random hidden units"
        axes.plot(seconds.mean(0), 100 * scores.mean(0), "o-", color=ours, label=label)
        for count, at, score in zip(units, seconds.mean(0), scores.mean(0), strict=True):
            axes.annotate(str(count), (at, 100 * score), (6, -10), textcoords="offset points", fontsize=9)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [value * 10.0**power for power in range(-4, 4) for value in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel="seconds, without compilation", ylabel="test accuracy, %")
        axes.legend(loc="lower right", fontsize=10)
    numbers = {"test_accuracy": best, "seconds": took, "hidden_units": units[-1]}
    baseline: dict[str, Any] = {"test_accuracy": trained, "seconds": whole}
    if not any(value is None for value in reached):
        baseline["seconds_to_the_same_accuracy"] = topic.mean_and_std(reached)
    caption = "Test accuracy by training time; labels: number of random hidden units. Means over seeds."
    return Findings(text, numbers, baseline, figure, caption, "multi-layer perceptron")


RBF_FORMULA = r"y = w_0 + \sum_k w_k \exp\left( -\frac{\lVert x - c_k \rVert^2}{2 \sigma^2} \right)"
EXTREME_FORMULA = r"h = \max(0, R x + b), \quad W = Y H^{T} (H H^{T} + \lambda I)^{-1}"

CARDS = (
    Card(
        name="rbf",
        title="Radial basis function network (RBF)",
        diagram=Diagram((Layer("input", 2), Layer("hidden", 2), Layer("output", 1))),
        idea="Each hidden unit has a center in input space, and its response decreases with the distance of the input. "
        "The output is a weighted sum of these responses, so nearby inputs have similar outputs.",
        formula=RBF_FORMULA,
        rule="k-means finds the centers without labels, then linear least squares finds the output weights.",
        reference="Broomhead & Lowe, 1988, “Multivariable functional interpolation and adaptive networks”",
        run=run_rbf,
        report=report_rbf,
    ),
    Card(
        name="extreme_learning",
        title="Extreme learning machine (ELM)",
        diagram=Diagram((Layer("input", 3), Layer("hidden", 9), Layer("output", 3)), form="scattered"),
        idea="The hidden units are random and not trained. With enough of them a weighted sum fits the targets, and "
        "the best weights are the solution of a linear system, without iterative training.",
        formula=EXTREME_FORMULA,
        rule="The hidden weights R and b are drawn once, and ridge regression finds the output weights W in one step.",
        reference="Huang, Zhu & Siew, 2006, “Extreme learning machine: theory and applications”",
        run=run_extreme_learning,
        report=report_extreme_learning,
    ),
)
