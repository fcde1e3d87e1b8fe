"""Plain deep networks on mnist5k, which the lecture's experiments on gradients and initial weights train and look into.

A layer is one with weights: a network of 21 layers has 20 hidden ones and the one that gives the logits.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import matplotlib
import numpy as np

import data
from data import augment
from data.dataset import pixel_statistics
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models.initializers import glorot_uniform, kaiming_normal
from models.layers import Dense, activation
from train.task import Task
from train.tasks import classification, losses

INITS = {"glorot": glorot_uniform, "kaiming": kaiming_normal}
BATCH_SIZE = 64
CHANCE = 0.1  # The accuracy of a guess among ten digits.


class Digits(NamedTuple):
    """Training digits: uint8 [N, 28, 28, 1], labels [N]; `prepare` gives images of mean 0 and variance 1."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    prepare: Callable


class DeepMLP(nn.Module):
    """`depth` dense layers with nothing but an activation between them, [B, H, W, C] -> logits [B, num_classes]. Biases
    start at zero; every kernel [in, out] is drawn by `kernel_init`."""

    depth: int
    width: int
    activation: str
    kernel_init: Callable = glorot_uniform
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x.reshape(x.shape[0], -1)
        for name in layer_names(self.depth)[:-1]:
            x = activation(self.activation)(Dense(self.width, kernel_init=self.kernel_init, name=name)(x))
        return Dense(self.num_classes, kernel_init=self.kernel_init, name="logits")(x)


def layer_names(depth: int) -> list[str]:
    """A DeepMLP's layers, the first one first."""
    return [*(f"dense{i}" for i in range(1, depth)), "logits"]


def digits() -> Digits:
    """The training split of mnist5k."""
    dataset = data.load("mnist5k")
    images, labels = dataset.splits["train"]
    mean, std = pixel_statistics(images)
    return Digits(images, labels, dataset.class_names, functools.partial(augment.normalize, mean=mean, std=std))


def some(digits: Digits, count: int) -> tuple[jax.Array, np.ndarray]:
    """About `count` of the digits, from all classes alike: network inputs [B, 28, 28, 1] and labels [B]."""
    rows = slice(None, None, max(1, len(digits.labels) // count))
    return digits.prepare(digits.images[rows]), digits.labels[rows]


def tasks(
    depth: int, width: int, activations: Sequence[str], digits: Digits, optimizer, inits: Mapping[str, Callable] = INITS
) -> dict[tuple[str, str], Task]:
    """A task by (activation, name of an initialisation). Initial weights do not depend on the activation, nor steps on
    how the weights were drawn: what tasks have in common is one function, compiled once."""
    shape = digits.images.shape[1:]

    def init(key, draw):
        model = DeepMLP(depth, width, activations[0], draw)
        return classification.init(key, model=model, optimizer=optimizer, image_shape=shape)

    drawn = {name: functools.partial(init, draw=draw) for name, draw in inits.items()}
    found: dict[tuple[str, str], Task] = {}
    for kind in activations:
        task = topic.create(
            DeepMLP(depth, width, kind),
            optimizer,
            image_shape=shape,
            class_names=digits.class_names,
            prepare=digits.prepare,
        )
        found |= {(kind, name): task._replace(init=init) for name, init in drawn.items()}
    return found


def train(task: Task, digits: Digits, *, steps: int, seed: int, every: int) -> list[dict[str, float]]:
    """The training set's {"step", "loss" in nats, "accuracy"} at step 0, each `every` steps and at the end."""
    curve: list[dict[str, float]] = []
    evaluate, mask = jax.jit(task.eval_step), np.ones(len(digits.labels), np.float32)

    def watch(step, state):
        found = task.finish(evaluate(state, {"image": digits.images, "label": digits.labels, "mask": mask}))
        curve.append({"step": step, "loss": found["loss"], "accuracy": found["accuracy"]})

    small_training.train(
        task, digits.images, digits.labels, batch_size=BATCH_SIZE, steps=steps, seed=seed, every=every, watch=watch
    )
    return curve


@functools.partial(jax.jit, static_argnames="model")
def gradients(params, images, labels, *, model: DeepMLP):
    """The gradient of the mean cross-entropy with respect to all parameters, for network inputs [B, H, W, C]."""
    return jax.grad(lambda params: losses.cross_entropy(model.apply({"params": params}, images), labels).mean())(params)


def gradient_norms(params, images, labels, *, model: DeepMLP) -> list[float]:
    """The Frobenius norm of the gradient of each layer's kernel, the first layer first [depth]."""
    found: Any = jax.device_get(gradients(params, images, labels, model=model))
    # float64: the squares of a vanished gradient are below the range of float32.
    return [float(np.linalg.norm(found[name]["kernel"].astype(np.float64))) for name in layer_names(model.depth)]


@functools.partial(jax.jit, static_argnames="model")
def hidden_activations(params, images, *, model: DeepMLP) -> list[jax.Array]:
    """What each hidden layer gives, [B, width] each, for network inputs [B, H, W, C]."""
    _, kept = model.apply(
        {"params": params}, images, capture_intermediates=lambda module, _: isinstance(module, nn.Dense)
    )
    sums = [kept["intermediates"][name]["__call__"][0] for name in layer_names(model.depth)[:-1]]
    return [activation(model.activation)(s) for s in sums]


@functools.partial(jax.jit, static_argnames="model")
def hidden_gradients(params, images, labels, *, model: DeepMLP) -> list[jax.Array]:
    """The gradients, [B, width] each, of an example's loss with respect to each hidden layer's sums s = h W + b."""
    hidden = layer_names(model.depth)[:-1]

    def loss(biases, image, label):
        whole = params | {name: params[name] | {"bias": biases[name]} for name in hidden}
        return losses.cross_entropy(model.apply({"params": whole}, image[None]), label[None]).sum()

    # Of one example, a bias has the gradient of the sum that it joins.
    biases = {name: params[name]["bias"] for name in hidden}
    found = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(biases, images, labels)
    return [found[name] for name in hidden]


def verdict(accuracy: float) -> str:
    """In words, what the mean training accuracy after training says; at less than twice chance a net has not learnt."""
    if accuracy < 2 * CHANCE:
        return "does not learn"
    return "learns" if accuracy >= 0.5 else "learns little"


def draw_band(axes, x, values: np.ndarray, colour: str) -> float:
    """A line through the mean of `values` [seeds, T], with a band from the least to the largest; its last value."""
    mean = values.mean(0)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean, color=colour)
    return float(mean[-1])


def draw_accuracy(nets: list[tuple[list, str, str]], title: str):
    """Training accuracy over steps, a line a net: (curves of `train` by seed, label, name of a colour)."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure()
        axes, ends = figure.add_subplot(), []
        for curves, label, colour in nets:
            steps = [row["step"] for row in curves[0]]
            percent = np.array([[100 * row["accuracy"] for row in curve] for curve in curves])
            ends.append((draw_band(axes, steps, percent, figures.COLOURS[colour]), label, colour))
        axes.set(xlim=(0, steps[-1]), ylim=(0, 100), xlabel="step", ylabel="training accuracy, %")
        axes.set_title(figures.wrapped(title, 48))
        figures.label_ends(axes, ends)
    return figure


def power_of_ten(value: float) -> str:
    """0.0000012 as 1.2·10⁻⁶, and values from 0.01 to 1000 as they are, with two digits."""
    if 0.01 <= abs(value) < 1000 or value == 0:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·{tick(10.0 ** int(exponent))}"


def tick(value: float, place: Any = None) -> str:
    """10⁻⁶ for 0.000001: the label of a log axis, where the house's style has no mathematics."""
    del place
    return f"10{str(round(np.log10(value))).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
