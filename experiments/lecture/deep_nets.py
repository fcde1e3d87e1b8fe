"""Plain deep networks on mnist5k, for the topics on vanishing gradients and weight initialization.

Only layers with weights count: a network of 21 layers has 20 hidden layers and the output layer.
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
from train.tasks import gradient_descent, losses

INITS = {"glorot": glorot_uniform, "kaiming": kaiming_normal}
BATCH_SIZE = 64
CHANCE = 0.1  # The accuracy of guessing among ten digits.


class Digits(NamedTuple):
    """Training digits: uint8 [N, 28, 28, 1] and labels [N]; `prepare` normalizes images to mean 0 and variance 1."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    prepare: Callable


class DeepMLP(nn.Module):
    """`depth` dense layers with only an activation in between, [B, H, W, C] -> logits [B, num_classes]. Biases start at
    zero; kernels [in, out] are initialized by `kernel_init`."""

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
    """The names of the layers of a DeepMLP, from the first to the last."""
    return [*(f"dense{i}" for i in range(1, depth)), "logits"]


def digits() -> Digits:
    """The training split of mnist5k."""
    dataset = data.load("mnist5k")
    images, labels = dataset.splits["train"]
    mean, std = pixel_statistics(images)
    return Digits(images, labels, dataset.class_names, functools.partial(augment.normalize, mean=mean, std=std))


def some(digits: Digits, count: int) -> tuple[jax.Array, np.ndarray]:
    """About `count` digits, balanced over classes: network inputs [B, 28, 28, 1] and labels [B]."""
    rows = slice(None, None, max(1, len(digits.labels) // count))
    return digits.prepare(digits.images[rows]), digits.labels[rows]


def tasks(
    depth: int, width: int, activations: Sequence[str], digits: Digits, optimizer, inits: Mapping[str, Callable] = INITS
) -> dict[tuple[str, str], Task]:
    """Tasks by (activation, initialization). Initial weights do not depend on the activation, and training steps do not
    depend on the initialization, so tasks share these functions and each is compiled once."""
    shape = digits.images.shape[1:]

    def init(key, draw):
        model = DeepMLP(depth, width, activations[0], draw)
        return gradient_descent.init(key, model=model, optimizer=optimizer, image_shape=shape)

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
    """Trains and returns rows {"step", "loss" in nats, "accuracy"}, measured on the training set at step 0, every
    `every` steps and at the end."""
    curve: list[dict[str, float]] = []
    evaluate, mask = jax.jit(task.eval_step), np.ones(len(digits.labels), np.float32)

    def watch(step, state):
        found = task.compute_metrics(evaluate(state, {"image": digits.images, "label": digits.labels, "mask": mask}))
        curve.append({"step": step, "loss": found["loss"], "accuracy": found["accuracy"]})

    small_training.train(
        task, digits.images, digits.labels, batch_size=BATCH_SIZE, steps=steps, seed=seed, every=every, watch=watch
    )
    return curve


@functools.partial(jax.jit, static_argnames="model")
def gradients(params, images, labels, *, model: DeepMLP):
    """The gradient of the mean cross-entropy with respect to the parameters, for network inputs [B, H, W, C]."""
    return jax.grad(lambda params: losses.cross_entropy(model.apply({"params": params}, images), labels).mean())(params)


def gradient_norms(params, images, labels, *, model: DeepMLP) -> list[float]:
    """The Frobenius norms [depth] of the kernel gradients, from the first layer to the last."""
    found: Any = jax.device_get(gradients(params, images, labels, model=model))
    # float64, because the squares of a vanished gradient underflow float32.
    return [float(np.linalg.norm(found[name]["kernel"].astype(np.float64))) for name in layer_names(model.depth)]


@functools.partial(jax.jit, static_argnames="model")
def hidden_activations(params, images, *, model: DeepMLP) -> list[jax.Array]:
    """The output of each hidden layer, [B, width] each, for network inputs [B, H, W, C]."""
    _, kept = model.apply(
        {"params": params}, images, capture_intermediates=lambda module, _: isinstance(module, nn.Dense)
    )
    sums = [kept["intermediates"][name]["__call__"][0] for name in layer_names(model.depth)[:-1]]
    return [activation(model.activation)(s) for s in sums]


@functools.partial(jax.jit, static_argnames="model")
def hidden_gradients(params, images, labels, *, model: DeepMLP) -> list[jax.Array]:
    """The gradient of each example's loss with respect to each hidden layer's s = h W + b, [B, width] each."""
    hidden = layer_names(model.depth)[:-1]

    def loss(biases, image, label):
        whole = params | {name: params[name] | {"bias": biases[name]} for name in hidden}
        return losses.cross_entropy(model.apply({"params": whole}, image[None]), label[None]).sum()

    # For a single example, the gradient with respect to a bias equals the gradient with respect to s.
    biases = {name: params[name]["bias"] for name in hidden}
    found = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(biases, images, labels)
    return [found[name] for name in hidden]


def verdict(accuracy: float) -> str:
    """Describes the mean final training accuracy; below twice chance level a network has not learned."""
    if accuracy < 2 * CHANCE:
        return "does not learn"
    return "learns" if accuracy >= 0.5 else "learns little"


def draw_band(axes, x, values: np.ndarray, colour: str) -> float:
    """Plots the mean of `values` [seeds, T] with a band from minimum to maximum; returns the last mean."""
    mean = values.mean(0)
    axes.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, mean, color=colour)
    return float(mean[-1])


def draw_accuracy(nets: list[tuple[list, str, str]], title: str):
    """Plots training accuracy by step, one line per entry (curves of `train` by seed, label, color name) of `nets`."""
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
    """Formats 0.0000012 as 1.2·10⁻⁶; values from 0.01 to 1000 have no exponent and two digits."""
    if 0.01 <= abs(value) < 1000 or value == 0:
        return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}·{tick(10.0 ** int(exponent))}"


def tick(value: float, place: Any = None) -> str:
    """Formats 0.000001 as 10⁻⁶, for tick labels of a log axis without math text."""
    del place
    return f"10{str(round(np.log10(value))).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
