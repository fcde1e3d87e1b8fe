"""Dropout against overfitting and co-adaptation: python -m experiments.lecture.dropout --workdir=W

Trains a network with one hidden layer on 500 digits of mnist5k with and without dropout and compares its training and
test accuracy, its first-layer features and the correlation of its hidden units.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import data
from experiments.cli import app
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models.mlp import MLP
from train import optimizers

OPTIONS = {
    "seeds": (5, topic.SEEDS[1]),
    "steps": (1000, "Number of training steps per network."),
    "hidden": (512, "Number of hidden units, at least 36."),
    "rate": (0.5, "Dropout rate: the probability p_d in (0, 1) of dropping a hidden unit in a training step."),
}
A_CLASS = 50  # Training digits per class.
BATCH_SIZE, EVALUATIONS = 50, 20
LEARNING_RATE, MOMENTUM = 0.1, 0.9
# Scale of the Kaiming initialization; at full scale its noise would hide the learned features in the figures.
SMALL = 0.1
SHOWN = 36  # Number of units whose weights are shown.
MASKS, MASKED = 1000, 100  # Number of masks over which the training output is averaged, and number of digits.
NETS = {"without": ("no dropout", "eval"), "with": ("dropout", "train")}  # Label, key of figures.COLOURS.
MEASURED = {  # Quantity, scale, decimal places and unit in the table.
    "test_accuracy": ("test accuracy", 100, 1, " %"),
    "train_accuracy": ("training accuracy", 100, 1, " %"),
    "activation_correlation": ("mean absolute correlation of two units' activations", 1, 3, ""),
    "weight_correlation": ("mean absolute correlation of two units' weights", 1, 3, ""),
    "live_units": ("units that are active for at least one test digit", 1, 1, ""),
}


def lecture_dropout(x, mask, *, rate: float, train: bool):
    """Dropout as in the lecture: x * mask in training, with a binary mask, and x * (1 - rate) at test time (Srivastava
    et al. 2014, "Dropout", section 4). models.layers.Dropout is 1 / (1 - rate) times this in both cases."""
    return x * mask if train else x * (1.0 - rate)


def mean_over_masks(x, key, *, rate: float, masks: int):
    """The mean of the lecture's training output over independent masks, with the shape of x."""

    def add(total, key):
        mask = jax.random.bernoulli(key, 1.0 - rate, x.shape)
        return total + lecture_dropout(x, mask, rate=rate, train=True), None

    return jax.lax.scan(add, jnp.zeros_like(x), jax.random.split(key, masks))[0] / masks


def mean_correlation(values: np.ndarray) -> float:
    """The mean absolute correlation over pairs of columns of [N, units] that are not constant; 0 if there are none."""
    values = values[:, np.ptp(values, axis=0) > 0]
    if values.shape[1] < 2:
        return 0.0
    found = np.asarray(np.corrcoef(values.astype(np.float64), rowvar=False))
    return float(np.abs(found[np.triu_indices(len(found), 1)]).mean())


def few_digits(labels: np.ndarray) -> np.ndarray:
    """The indices of the first A_CLASS digits of each class, in ascending order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == digit)[:A_CLASS] for digit in range(10)]))


def _task(hidden: int, rate: float, steps: int, class_names):
    def prepare(images):
        return images.astype(jnp.float32) / 255

    rates = optimizers.schedule("constant", learning_rate=LEARNING_RATE, steps=steps)
    task = topic.create(
        MLP(len(class_names), (hidden,), dropout=rate),
        optimizers.create("sgd", rates, momentum=MOMENTUM, nesterov=False, weight_decay=0.0),
        image_shape=(28, 28, 1),
        class_names=class_names,
        prepare=prepare,
    )

    def init(key):
        state = task.init(key)
        first = state.params["dense1"]
        return state._replace(params={**state.params, "dense1": {**first, "kernel": SMALL * first["kernel"]}})

    return task._replace(init=init)


def one_net(digits, *, hidden: int, rate: float, steps: int, seed: int) -> dict[str, Any]:
    """Trains a network on few digits. Returns accuracy curves, the MEASURED values and, for seed 0, some weights."""
    (images, labels), (test_images, test_labels) = digits.splits["train"], digits.splits["test"]
    images, labels = images[few_digits(labels)], labels[few_digits(labels)]
    task, both = _task(hidden, rate, steps, digits.class_names), np.concatenate([images, test_images])
    predict = jax.jit(task.predict_step)
    found: dict[str, Any] = {"step": [], "train": [], "test": []}

    def watch(step, state):
        hits = np.asarray(predict(state, {"image": both})).argmax(-1) == np.concatenate([labels, test_labels])
        found["step"].append(step)
        found["train"].append(float(hits[: len(labels)].mean()))
        found["test"].append(float(hits[len(labels) :].mean()))

    sizes = {"batch_size": BATCH_SIZE, "steps": steps, "every": max(1, steps // EVALUATIONS)}
    state = small_training.train(task, images, labels, **sizes, seed=seed, watch=watch)
    weights, bias = (np.asarray(state.params["dense1"][name]) for name in ("kernel", "bias"))
    h = np.maximum(test_images.reshape(len(test_images), -1) / np.float32(255) @ weights + bias[None], 0)
    accuracies, live = (found["test"][-1], found["train"][-1]), int((h > 0).any(0).sum())
    found |= dict(zip(MEASURED, (*accuracies, mean_correlation(h), mean_correlation(weights), live), strict=True))
    if seed == 0:
        found["features"] = weights[:, :SHOWN].T.astype(np.float64).round(5).tolist()
    if rate:
        mean = mean_over_masks(h[:MASKED], jax.random.key(seed), rate=rate, masks=MASKS)
        test = lecture_dropout(h[:MASKED], None, rate=rate, train=False)
        found["mean_over_masks_error"] = float(jnp.linalg.norm(mean - test) / jnp.linalg.norm(test))
    return found


def draw_curves(found: dict[str, list[dict]], title: str):
    """Training accuracy (dashed) and test accuracy (solid), mean and standard deviation over seeds."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=4.2)
        axes = figure.add_subplot()
        axes.set_title(figures.wrapped(title, 48))
        for name, (label, part) in NETS.items():
            for split, shown, style in (("train", "training", "--"), ("test", "test", "-")):
                steps, values = found[name][0]["step"], 100 * np.array([seed[split] for seed in found[name]])
                topic.draw_spread(axes, steps, values, part, linestyle=style, label=f"{shown}, {label}")
        axes.set(xlim=(0, steps[-1]), ylim=(0, 100), xlabel="training steps", ylabel="accuracy, %")
        axes.legend(loc="lower right")
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, hidden, rate = (this_topic.options[name] for name in ("steps", "hidden", "rate"))
    app.require(hidden >= SHOWN, f"--hidden={hidden}: must be at least {SHOWN}")
    app.require(rate < 1, f"--rate={rate}: must be between 0 and 1")
    digits, found = data.load("mnist5k"), {}
    for name, used in (("without", 0.0), ("with", rate)):
        net = functools.partial(one_net, digits, hidden=hidden, rate=used, steps=steps)
        found[name] = [
            this_topic.cached(f"{name}_seed{seed}", functools.partial(net, seed=seed)) for seed in this_topic.seeds
        ]
    numbers: dict[str, Any] = {"training_digits": 10 * A_CLASS, "hidden": hidden, "rate": rate, "steps": steps}
    for key in MEASURED:
        with_, without = ([seed[key] for seed in found[name]] for name in ("with", "without"))
        both = {"with": with_, "without": without, "difference": np.subtract(with_, without)}
        numbers[key] = {name: topic.mean_and_std(values) for name, values in both.items()}
    numbers["mean_over_masks_error"] = topic.mean_and_std([seed["mean_over_masks_error"] for seed in found["with"]])

    # --- Figures.
    test = {name: f"{100 * numbers['test_accuracy'][name]['mean']:.1f}\N{NO-BREAK SPACE}%" for name in NETS}
    title = f"Test accuracy: {test['with']} with dropout, {test['without']} without"
    caption = "accuracy of the full network, without dropped units; line and band: mean ± standard deviation over seeds"
    this_topic.figure("accuracy", draw_curves(found, title), title="Training and test accuracy", caption=caption)
    for name, (label, _) in NETS.items():
        images, mean = np.reshape(found[name][0]["features"], (-1, 28, 28)), numbers["activation_correlation"][name]
        title = f"{label.capitalize()}: the mean absolute correlation of two units' activations is {mean['mean']:.2f}"
        drawn = figures.image_grid(images, title=title, signed=True, columns=6)
        caption = (
            f"weights of {SHOWN} hidden units: red positive, blue negative; the noise remains from initialization at "
            f"{SMALL:g} times Kaiming's scale"
        )
        this_topic.figure(f"features_{name}", drawn, title=f"First-layer weights, {label}", caption=caption)

    # --- Text, table and guess.
    def seen(key, sign):
        """Whether the difference has this sign and exceeds its standard deviation over seeds."""
        return sign * numbers[key]["difference"]["mean"] > numbers[key]["difference"]["std"]

    better, gain = seen("test_accuracy", 1), numbers["test_accuracy"]["difference"]["mean"]
    gap = numbers["train_accuracy"]["with"]["mean"] - numbers["test_accuracy"]["with"]["mean"]
    chance = math.sqrt(rate / ((1 - rate) * MASKS))
    less = [f"their {of}s" for of in ("activation", "weight") if seen(f"{of}_correlation", -1)]
    text = [
        (
            f"Dropout improves the accuracy on new digits, by {100 * gain:.1f} percentage points."
            + " That is more than the standard deviation of the difference over the seeds."
            * (len(this_topic.seeds) > 1)
            + " All networks are tested on the same digits."
            if better
            else "The claim is not confirmed at this scale: dropout does not improve the accuracy on new digits by "
            "more than the standard deviation over the seeds."
        )
        + " It does not remove overfitting: the accuracy on the training digits is still higher." * (gap > 0.01),
        f"With dropout, two hidden units are less correlated in {' and in '.join(less)}. That agrees with less "
        "co-adaptation, but does not prove it: correlation shows that units are similar, not that they depend on each "
        "other."
        if less
        else "The hidden units are not less correlated with dropout, so less co-adaptation is not confirmed.",
        f"A check of the factor for new examples: averaged over {MASKS:,} random masks, the activations differ from "
        f"the scaled ones by {100 * numbers['mean_over_masks_error']['mean']:.1f} %. If the factor is right, "
        f"{100 * chance:.1f} % are expected by chance.",
    ]
    rows = []
    for key, (quantity, scale, places, unit) in MEASURED.items():
        cells = [this_topic.number(numbers[key][name], scale, places) for name in (*NETS, "difference")]
        units = (unit, unit, " points" if unit else "")
        rows.append([quantity, *map(str.__add__, cells, units)])
    header = ["quantity", *(label for label, _ in NETS.values()), "difference at the same seed"]
    table = (f"With and without dropout, {this_topic.over_seeds()}", header, rows)
    question = f"Without dropout the test accuracy is {test['without']}. How high is it with dropout?"
    guess = topic.Guess("accuracy", question, "%", 0, 100, 100 * numbers["test_accuracy"]["with"]["mean"])
    return topic.TopicResult(text, numbers, [table], [guess])


if __name__ == "__main__":
    topic.main("dropout", experiment, OPTIONS)
