"""Dropout against overfitting and co-adaptation: python -m experiments.lecture.dropout --workdir=W

Trains a network with one hidden layer on 500 digits of mnist5k with and without dropout and compares its training and
test accuracy, its first-layer features and the correlation of its hidden units.
"""

import functools
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
MEASURED = ("test_accuracy", "train_accuracy", "activation_correlation", "weight_correlation", "live_units")


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
    """Training accuracy (top) and test accuracy (bottom), mean and standard deviation over seeds."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.0)
        topic.headline(figure, title, 50)
        panels, ends = figure.subplots(2, 1, sharex=True), []
        for axes, split in zip(panels, ("train", "test"), strict=True):
            lines = []
            for name, (_, part) in NETS.items():
                steps, values = found[name][0]["step"], 100 * np.array([seed[split] for seed in found[name]])
                lines.append(topic.draw_spread(axes, steps, values, part))
            ends.append([(line[-1], *net) for net, line in zip(NETS.values(), lines, strict=True)])
            axes.set_ylabel(f"{'training' if split == 'train' else 'test'} accuracy, %")
            # The range excludes the untrained networks, which would hide the difference.
            axes.set(xlim=(0, steps[-1]), ylim=(np.min(lines, 0)[1] - 1, np.max(lines) + 1))
        panels[-1].set_xlabel("training steps")
        figure.draw_without_rendering()  # The label positions depend on the final layout.
        for axes, labels in zip(panels, ends, strict=True):
            figures.label_ends(axes, labels)
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
    said = {key: [numbers[key][name]["mean"] for name in ("with", "without")] for key in MEASURED}
    test, train = (" with dropout, ".join(f"{100 * x:.1f}\N{NO-BREAK SPACE}%" for x in said[k]) for k in MEASURED[:2])
    drawn = draw_curves(found, f"Test accuracy: {test}\N{NO-BREAK SPACE}without")
    caption = "accuracy of the full network without dropped units; mean and standard deviation over seeds"
    this_topic.figure("accuracy", drawn, title="Training and test accuracy", caption=caption)
    for (name, (label, _)), mean in zip(NETS.items(), said["activation_correlation"][::-1], strict=True):
        images = np.reshape(found[name][0]["features"], (-1, 28, 28))
        title = f"{label.capitalize()}: the mean absolute correlation of two units' activations is {mean:.2f}"
        drawn = figures.image_grid(images, title=title, signed=True, columns=6)
        caption = f"weights of {SHOWN} units; the noise remains from initialization at {SMALL:g} times Kaiming's scale"
        this_topic.figure(f"features_{name}", drawn, title=f"First-layer features, {label}", caption=caption)

    def seen(key, sign):
        """Whether the difference has this sign and exceeds its standard deviation over seeds."""
        return sign * numbers[key]["difference"]["mean"] > numbers[key]["difference"]["std"]

    gain = numbers["test_accuracy"]["difference"]
    less = [f"in their {of}s" for of in ("activation", "weight") if seen(f"{of}_correlation", -1)]
    units, weights = (" and ".join(f"{mean:.2f}" for mean in said[key]) for key in MEASURED[2:4])
    text = [
        f"The lecture: dropout drops each hidden unit with probability {rate:g} in each training step, so that a "
        f"network with many weights overfits a small training set less. Here a network with {hidden} hidden units is "
        f"trained on {10 * A_CLASS} digits. Its training accuracy is {train} without; its test accuracy is {test} "
        f"without. The gain of {100 * gain['mean']:.1f} points, with a standard deviation of {100 * gain['std']:.1f} "
        "over seeds, " + ("confirms this." if seen("test_accuracy", 1) else "does not confirm this at this scale."),
        "A unit that cannot rely on others has to be useful by itself. The mean absolute correlation of two units is "
        f"{units} with and without dropout for their activations on the test digits, and {weights} for their weights: "
        + (f"less co-adaptation {' and '.join(less)}." if less else "co-adaptation is not reduced."),
        f"At test time the lecture multiplies activations by {1 - rate:g}; the mean of the training output over "
        f"{MASKS:,} masks differs from this by {100 * numbers['mean_over_masks_error']['mean']:.1f} %.",
    ]
    return topic.TopicResult(text, numbers)


if __name__ == "__main__":
    topic.main("dropout", experiment, OPTIONS)
