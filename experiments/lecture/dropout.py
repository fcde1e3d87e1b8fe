"""Dropout against overfitting and co-adaptation: python -m experiments.lecture.dropout --workdir=W

A net with one hidden layer learns from 500 digits of mnist5k with and without dropout: its training and test accuracy,
its first layer's features, and how much its hidden units say the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import data
from experiments.cli import flags
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models.mlp import MLP
from train import optimizers

OPTIONS = {
    "seeds": (5, topic.SEEDS[1]),
    "steps": (1000, "Training steps of each net."),
    "hidden": (512, "Hidden units, 36 or more."),
    "rate": (0.5, "Probability p_d that a hidden unit is off in a training step, in (0, 1)."),
}
A_CLASS = 50  # Training digits of each class.
BATCH_SIZE, EVALUATIONS = 50, 20
LEARNING_RATE, MOMENTUM = 0.1, 0.9
# Of Kaiming's first weights: the noise that they begin with would hide in the pictures what is learned.
SMALL = 0.1
SHOWN = 36  # Units whose weights are shown.
MASKS, MASKED = 1000, 100  # Masks that the lecture's training output is averaged over, and digits.
NETS = {"without": ("no dropout", "eval"), "with": ("dropout", "train")}  # Label, name in figures.COLOURS.
MEASURED = ("test_accuracy", "train_accuracy", "activation_correlation", "weight_correlation", "live_units")

FORMULA = """<math display="block"><mrow><msub><mover><mi>h</mi><mo>~</mo></mover><mtext>train</mtext></msub><mo>=</mo>
<mi>m</mi><mo>⊙</mo><mi>h</mi><mo>,</mo><mspace width="0.6em"/><msub><mi>m</mi><mi>i</mi></msub><mo>∼</mo>
<mtext>Bernoulli</mtext><mo>(</mo><mn>1</mn><mo>-</mo><msub><mi>p</mi><mi>d</mi></msub><mo>)</mo><mo>,</mo>
<mspace width="1em"/><msub><mover><mi>h</mi><mo>~</mo></mover><mtext>test</mtext></msub><mo>=</mo><mo>(</mo><mn>1</mn>
<mo>-</mo><msub><mi>p</mi><mi>d</mi></msub><mo>)</mo><mi>h</mi></mrow></math>"""


def lecture_dropout(x, mask, *, rate: float, train: bool):
    """The lecture's form: x * mask in training, with a mask of zeros and ones, and x * (1 - rate) at test time
    (Srivastava et al. 2014, "Dropout", section 4). models.layers.Dropout is 1 / (1 - rate) times this in both."""
    return x * mask if train else x * (1.0 - rate)


def mean_over_masks(x, key, *, rate: float, masks: int):
    """The mean of the lecture's training output over independent masks; [...] like x."""

    def add(total, key):
        mask = jax.random.bernoulli(key, 1.0 - rate, x.shape)
        return total + lecture_dropout(x, mask, rate=rate, train=True), None

    return jax.lax.scan(add, jnp.zeros_like(x), jax.random.split(key, masks))[0] / masks


def mean_correlation(values: np.ndarray) -> float:
    """Mean of |Pearson's correlation| over pairs of the columns of [N, units] that are not constant; 0 of none."""
    values = values[:, np.ptp(values, axis=0) > 0]
    if values.shape[1] < 2:
        return 0.0
    found = np.asarray(np.corrcoef(values.astype(np.float64), rowvar=False))
    return float(np.abs(found[np.triu_indices(len(found), 1)]).mean())


def few_digits(labels: np.ndarray) -> np.ndarray:
    """The rows of the first A_CLASS digits of each class, in order."""
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
    """Curves of accuracy, what is MEASURED, and of seed 0 some units' weights, of a net trained on few digits."""
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
    """Training accuracy above test accuracy, mean and standard deviation over seeds."""
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
            # The untrained nets would press the difference flat.
            axes.set(xlim=(0, steps[-1]), ylim=(np.min(lines, 0)[1] - 1, np.max(lines) + 1))
        panels[-1].set_xlabel("training steps")
        figure.draw_without_rendering()  # Labels go where the lines end in the finished layout.
        for axes, labels in zip(panels, ends, strict=True):
            figures.label_ends(axes, labels)
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, hidden, rate = (this_topic.options[name] for name in ("steps", "hidden", "rate"))
    flags.require(hidden >= SHOWN, f"--hidden={hidden}: must be {SHOWN} or more")
    flags.require(rate < 1, f"--rate={rate}: accepted are values between 0 and 1")
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
    drawn = draw_curves(found, f"Test digits right: {test}\N{NO-BREAK SPACE}without")
    caption = "accuracy of the whole net, no unit off; mean and standard deviation over seeds"
    this_topic.figure("accuracy", drawn, title="Training and test accuracy", caption=caption)
    for (name, (label, _)), mean in zip(NETS.items(), said["activation_correlation"][::-1], strict=True):
        pictures = np.reshape(found[name][0]["features"], (-1, 28, 28))
        title = f"{label.capitalize()}: two units' activations correlate by {mean:.2f} in the mean"
        drawn = figures.image_grid(pictures, title=title, signed=True, columns=6)
        caption = f"weights of {SHOWN} units, begun at {SMALL:g} of Kaiming's; where noise is left, little was learned"
        this_topic.figure(f"features_{name}", drawn, title=f"First-layer features, {label}", caption=caption)

    def seen(key, sign):
        """Whether the difference has this sign and is above its standard deviation over seeds."""
        return sign * numbers[key]["difference"]["mean"] > numbers[key]["difference"]["std"]

    gain = numbers["test_accuracy"]["difference"]
    less = [f"by their {of}s" for of in ("activation", "weight") if seen(f"{of}_correlation", -1)]
    units, weights = (" and ".join(f"{mean:.2f}" for mean in said[key]) for key in MEASURED[2:4])
    text = [
        f"The lecture: dropout turns each hidden unit off with probability {rate:g} in a training step, so that a net "
        f"of many weights overfits a small training set less. Here {hidden} hidden units learn from {10 * A_CLASS} "
        f"digits. Of these {train} without are right, of the test digits {test} without: the gain of "
        f"{100 * gain['mean']:.1f} points, with a standard deviation of {100 * gain['std']:.1f} over seeds, "
        + ("agrees." if seen("test_accuracy", 1) else "does not show the claim at this scale."),
        "A unit that can count on no other has to be useful alone. The mean absolute correlation of two units is "
        f"{units} with and without dropout for their activations on the test digits, {weights} for their weights: "
        + (f"less co-adaptation {' and '.join(less)}." if less else "less co-adaptation is not seen."),
        f"At test time the lecture multiplies activations by {1 - rate:g}: over {MASKS:,} masks its training "
        f"output comes within {100 * numbers['mean_over_masks_error']['mean']:.1f} % of that in the mean.",
    ]
    return topic.TopicResult("Dropout: units that do not lean on each other", text, FORMULA, numbers)


if __name__ == "__main__":
    topic.main("dropout", experiment, OPTIONS)
