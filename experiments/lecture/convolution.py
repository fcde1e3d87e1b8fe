"""Weights shared across positions: python -m experiments.lecture.convolution --workdir=W

A dense, a locally connected and a convolutional layer of the same output size, each followed by the same ReLU, max
pooling and softmax layer, are trained on the same digits and tested on the test digits, both centered and shifted. A
second convolution has smaller pooling windows.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import data
from data import augment
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models import initializers
from models.layers import Conv, Dense, max_pool, relu

OPTIONS = {"steps": (300, "Number of training steps per network.")}
MAPS, WINDOW, SHIFTS = 8, 5, range(6)  # The last two in pixels.
DIRECTIONS = [(y, x) for y, x in itertools.product((-1, 0, 1), repeat=2) if y or x]
NAMES = {"dense": "dense", "local": "locally connected", "convolution": "convolution"}
FINE = "convolution_fine"  # A convolution followed by pooling over two pixels.
COLOURS = {"dense": "eval", "local": "test", "convolution": "train"}
# For Adam; among 0.001, 0.003, 0.01 and 0.03 those with the smallest final training loss.
LEARNING_RATES = {"dense": 0.003, "local": 0.03, "convolution": 0.03, FINE: 0.01}


def _size(size, window) -> list[int]:
    return [n - w + 1 for n, w in zip(size, window, strict=True)]


def in_loops(a_HW, w_KL, b: float, sigma: Callable) -> np.ndarray:
    """a_ij = sigma(sum_km a_(i+k)(j+m) w_km + b) in explicit loops: a cross-correlation,
    [H, W] -> [H - K + 1, W - L + 1]."""
    (height, width), (rows, columns) = _size(a_HW.shape, w_KL.shape), w_KL.shape
    total = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(rows):
                for m in range(columns):
                    total[i, j] += a_HW[i + k, j + m] * w_KL[k, m]
    return sigma(total + b)


def as_matrix(w_KL, size: tuple[int, int]) -> np.ndarray:
    """The weight matrix M [H W, h w] of a dense layer that equals the convolution: a.reshape(-1) @ M gives the sums of
    `in_loops`, row by row. Each column holds the same K L weights at different positions, and zeros elsewhere."""
    height, width = _size(size, w_KL.shape)
    matrix = np.zeros((*size, height, width))
    for i, j in np.ndindex(height, width):
        for k, m in np.ndindex(w_KL.shape):
            matrix[i + k, j + m, i, j] = w_KL[k, m]
    return matrix.reshape(size[0] * size[1], height * width)


def shifted(images, shift: int) -> np.ndarray:
    """Images [B, H, W, C] shifted by `shift` pixels with zero padding, each in the next of eight directions."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    moves = zip(padded, itertools.cycle(DIRECTIONS), strict=False)
    return np.stack([image[shift - y * shift :, shift - x * shift :][:height, :width] for image, (y, x) in moves])


class OneLayer(nn.Module):
    """[B, H, W, C] -> logits [B, num_classes]: a layer of type `kind` with output [H - 4, W - 4, 8], ReLU, max pooling
    over windows of 2^`pools` pixels and a softmax layer. The weights of the softmax layer are not shared across
    positions, so with windows of two or four pixels most of the gain on shifted digits is lost."""

    kind: str
    pools: int = 3
    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        height, width = _size(x.shape[1:3], (WINDOW, WINDOW))
        if self.kind == "dense":
            dense = Dense(height * width * MAPS, kernel_init=initializers.kaiming_normal, name="layer")
            x = dense(x.reshape(len(x), -1)).reshape(len(x), height, width, MAPS)
        elif self.kind == "local":
            # Kaiming initialization; models.initializers would count the positions as inputs.
            init = initializers.normal(math.sqrt(2 / (WINDOW**2 * x.shape[-1])))
            x = nn.ConvLocal(MAPS, (WINDOW,) * 2, padding="VALID", kernel_init=init, name="layer")(x)
        else:
            x = Conv(MAPS, (WINDOW,) * 2, padding="VALID", name="layer")(x)
        x = relu(x)
        for _ in range(self.pools):  # Equivalent to one large window, which takes much longer to compile.
            x = max_pool(x, 2)
        return Dense(self.num_classes, name="logits")(x.reshape(len(x), -1))


def measure(task, splits, seed: int, *, steps: int) -> dict[str, Any]:
    """Trains one network; returns parameter counts, accuracy by shift and, if there are few, the layer's weights."""
    (images, labels), predict = splits["test"], jax.jit(task.predict_step)
    state = small_training.train(task, *splits["train"], batch_size=64, steps=steps, seed=seed)
    guesses = [np.asarray(predict(state, {"image": shifted(images, shift)})).argmax(-1) for shift in SHIFTS]
    layer = {name: np.asarray(leaf) for name, leaf in state.params["layer"].items()}
    size = sum(leaf.size for leaf in layer.values())
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "layer_parameters": size,
        "accuracy": [float((guess == labels).mean()) for guess in guesses],
        "layer": {name: leaf.tolist() for name, leaf in layer.items()} if size < 1000 else None,
    }


def differences(layer, image_HW) -> dict[str, float]:
    """The largest differences on one image between the trained layer and the loops, and between it and the matrix."""
    kernel, bias = (np.asarray(layer[name], np.float32) for name in ("kernel", "bias"))
    convolution = Conv(MAPS, (WINDOW,) * 2, padding="VALID")
    sums = convolution.apply({"params": {"kernel": kernel, "bias": bias}}, image_HW[None, :, :, None])
    loops, products = [], []
    for w_KL, b in zip(kernel[..., 0, :].transpose(2, 0, 1), bias, strict=True):
        loops.append(in_loops(image_HW, w_KL, b, sigma=lambda x: np.maximum(x, 0)))
        products.append((image_HW.reshape(-1) @ as_matrix(w_KL, image_HW.shape) + b).reshape(loops[-1].shape))
    return {
        "max_difference_loops": float(np.abs(np.stack(loops, -1) - relu(sums)[0]).max()),
        "max_difference_matrix": float(np.abs(np.stack(products, -1) - sums[0]).max()),
    }


def widget(images, labels, layer) -> dict[str, list]:
    """The data of widgets/convolution.js: the first digit of each class, and the filters and biases of a layer."""
    digits = [images[np.flatnonzero(labels == label)[0], :, :, 0].tolist() for label in range(10)]
    filters = np.asarray(layer["kernel"])[:, :, 0].transpose(2, 0, 1)
    return {"digits": digits, "filters": np.round(filters, 6).tolist(), "biases": np.round(layer["bias"], 6).tolist()}


def is_better(accuracy: dict, kind: str, other: str) -> bool:
    """Whether the mean accuracy of one network exceeds that of another by more than the sum of their standard
    deviations."""
    one, two = accuracy[kind], accuracy[other]
    return one["mean"] - two["mean"] > one["std"] + two["std"]


def description(this_topic: topic.Topic, still: dict, moved: dict, inside: dict[str, int]) -> list[str]:
    """The text for students, from the accuracy on centered digits and on digits shifted by 3 pixels, both as
    `mean_and_std` by kind, and the parameters of the layers by kind."""
    times = {kind: f"{size / inside['convolution']:,.0f}" for kind, size in inside.items()}
    others = ("dense", "local")
    ahead = [kind for kind in others if is_better(still, kind, "convolution")]
    text = [
        f"The convolution has {inside['convolution']:,} parameters, {times['local']} times fewer than the locally "
        f"connected layer and {times['dense']} times fewer than the dense one. The table shows the accuracy on the "
        f"test digits: {this_topic.over_seeds()} (initial weights and order of the digits)."
    ]
    if all(is_better(moved, "convolution", other) for other in others):
        text.append(
            "On digits shifted by 3 pixels, the network with the convolution is the most accurate: its kernels find at "
            "other positions what they learned in the middle. It loses accuracy as well, because the softmax layer, "
            "whose weights are not shared, was trained on centered digits."
        )
    else:
        text.append("The claim is not confirmed: on shifted digits, the convolution is not clearly more accurate.")
    if ahead:
        best = max(ahead, key=lambda kind: still[kind]["mean"])
        points = 100 * (still[best]["mean"] - still["convolution"]["mean"])
        text.append(
            f"On digits in the middle, the {NAMES[best]} layer is more accurate than the convolution, by {points:.1f} "
            "percentage points: if all digits have the same position, there is nothing to gain from sharing."
        )
        if is_better(still, FINE, "convolution"):
            text[-1] += (
                " The convolution loses this accuracy by the pooling over 8x8 pixels, which hides where in its window "
                "a stroke is. With windows of 2x2, the convolution recognizes "
                f"{this_topic.percent(still[FINE])} in the middle, but only {this_topic.percent(moved[FINE])} of the "
                "shifted digits: sharing weights makes the maps move with the digit, and large pooling windows are "
                "needed to make the result less dependent on the position."
            )
    return text


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    dataset, normalize = data.load("mnist5k"), functools.partial(augment.normalize, mean=(0.0,), std=(255.0,))
    found: dict[str, list] = {}
    for kind in (*NAMES, FINE):
        task = topic.create(
            OneLayer("convolution", pools=1) if kind == FINE else OneLayer(kind),
            optax.adam(LEARNING_RATES[kind]),
            image_shape=(28, 28, 1),
            class_names=dataset.class_names,
            prepare=normalize,
        )
        make = functools.partial(measure, task, dataset.splits, steps=this_topic.options["steps"])
        found[kind] = [this_topic.cached(f"{kind}_{seed}", functools.partial(make, seed)) for seed in this_topic.seeds]
    first = {kind: ones[0] for kind, ones in found.items()}
    (images, labels), layer = dataset.splits["test"], first["convolution"]["layer"]
    accuracy = {kind: np.array([one["accuracy"] for one in ones]) for kind, ones in found.items()}
    counts, inside = ({k: one[name] for k, one in first.items()} for name in ("parameters", "layer_parameters"))
    factors = {kind: inside[kind] / inside["convolution"] for kind in ("dense", "local")}
    at = {f"accuracy_shift_{s}": {k: topic.mean_and_std(v[:, s]) for k, v in accuracy.items()} for s in SHIFTS}
    numbers = {"parameters": counts, "layer_parameters": inside, "times_fewer_than": factors, **at}
    numbers |= this_topic.cached("equation", lambda: differences(layer, images[0, :, :, 0] / np.float32(255)))
    still, moved = at["accuracy_shift_0"], at["accuracy_shift_3"]
    best = max(NAMES, key=lambda kind: moved[kind]["mean"])
    title = f"Digits shifted by 3 pixels: {NAMES[best]} {100 * moved[best]['mean']:.0f} %, the others at most "
    title += f"{math.ceil(100 * max(moved[kind]['mean'] for kind in NAMES if kind != best))} %"
    series = {
        f"{name}\n{inside[kind]:,} parameters": ([by_kind[kind] for by_kind in at.values()], COLOURS[kind], "-")
        for kind, name in NAMES.items()
    }
    drawn = topic.lines(
        series, SHIFTS, title, xlabel="shift of digits, pixels", ylabel="accuracy, %", xticks=SHIFTS, ylim=(0, 100)
    )
    caption = (
        "test digits, each shifted in one of eight directions; no shifts in training; parameters of the first layer"
    )
    this_topic.figure("accuracy_by_shift", drawn, title="Accuracy on shifted digits", caption=caption)
    filters = np.moveaxis(layer["kernel"], -1, 0)
    names = [f"filter {number}" for number in range(1, MAPS + 1)]
    drawn = figures.image_grid(filters, names, f"The {MAPS} filters of the first seed", signed=True)
    this_topic.figure("filters", drawn, title="Learned filters", caption="positive weights are red, negative ones blue")
    header = ["first layer", "parameters", "pooling", "not shifted", "shifted by 3 pixels"]
    rows = [
        [
            name,
            f"{inside[kind]:,}",
            "2x2" if kind == FINE else "8x8",
            *map(this_topic.percent, (still[kind], moved[kind])),
        ]
        for kind, name in {**NAMES, FINE: NAMES["convolution"]}.items()
    ]
    lowest = min(still[kind]["mean"] for kind in NAMES)
    guess = (
        f"All three networks recognize at least {math.floor(100 * lowest)} % of the digits in the middle of the image. "
        "What percentage does the network with the convolution recognize if the digits are shifted by 3 pixels?"
    )
    return topic.TopicResult(
        description(this_topic, still, moved, inside),
        numbers,
        [("Accuracy on the test digits", header, rows)],
        [topic.Guess("accuracy_by_shift", guess, "%", 0, 100, 100 * moved["convolution"]["mean"])],
        {"convolution": widget(images, labels, layer)},
    )


if __name__ == "__main__":
    topic.main("convolution", experiment, OPTIONS)
