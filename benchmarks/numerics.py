"""Checks the arithmetic on this machine's device: python -m benchmarks.numerics

* Logits of five networks equal those of torchvision's networks for the same weights and images (see parity.py, and
  golden_logits.json).
* Convolutions and transposed convolutions, and their gradients, equal NumPy's in float64.
* Evaluations compute in full float32 precision, although training uses TensorFloat-32 on a GPU that has it.
* A training step gives bitwise equal results when it runs twice, with XLA's deterministic programs.

Prints one JSON object for each check on standard output: its name, the error (relative to the largest value), the limit
and whether it passed. The exit status is 1 if a check fails.
"""

import json
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags

import models
from benchmarks import parity, tasks
from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from models.layers import conv_general_dilated, conv_transpose
from train.equality import tree_error
from train.messages import say
from train.parallel import data_parallel
from train.parallel.devices import make_deterministic, start_devices
from train.task import Task

GOLDEN = json.loads(pathlib.Path(__file__).with_name("golden_logits.json").read_text())
LIMIT = 1e-4  # float32 has a rounding error of 6e-8, TensorFloat-32 and bfloat16 of 5e-4 and 4e-3.
SIDE = 64  # Of the images of the evaluations and training steps.
# Cases: (image side, window, stride, padding, input channels, output channels)
CONVOLUTIONS = (
    (14, 3, 1, 1, 8, 16),
    (15, 1, 1, 0, 16, 8),
    (15, 1, 2, 0, 16, 8),
    (32, 7, 2, 3, 3, 8),
    (35, 11, 4, 2, 3, 8),
)
TRANSPOSED = ((4, 4, 2, 1, 16, 8), (7, 5, 2, 2, 8, 4), (1, 4, 1, 0, 16, 8))


class Convolution:
    """A strided convolution, its transpose and its kernel gradient in NumPy, float64."""

    def __init__(self, window: int, stride: int, padding: int) -> None:
        self.window, self.stride, self.padding = window, stride, padding

    def _patches(self, x):
        pads = ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0))
        views = np.lib.stride_tricks.sliding_window_view(np.pad(x, pads), (self.window,) * 2, (1, 2))
        return views[:, :: self.stride, :: self.stride]  # [B, h, w, C, window, window]

    def forward(self, x, kernel):
        return np.einsum("bhwcij,ijco->bhwo", self._patches(x), kernel)

    def kernel_gradient(self, x, gradient):
        return np.einsum("bhwcij,bhwo->ijco", self._patches(x), gradient)

    def transposed(self, y, kernel, side: int):
        """The input gradient [B, side, side, C] for the output gradient y [B, h, w, O]."""
        padded = np.zeros((len(y), *(side + 2 * self.padding,) * 2, kernel.shape[2]))
        reach = self.stride * (y.shape[1] - 1) + 1
        for i in range(self.window):
            for j in range(self.window):
                padded[:, i : i + reach : self.stride, j : j + reach : self.stride] += y @ kernel[i, j].T
        return padded[:, self.padding : self.padding + side, self.padding : self.padding + side]


def largest_error(forward, x, kernel, gradient, expected) -> float:
    """The largest error of forward(x, kernel) and of its gradients, where `expected` has all three."""
    found, pull = jax.vjp(forward, x, kernel)
    return tree_error((found, *pull(jnp.asarray(gradient))), expected)


def convolution_error(side: int, window: int, stride: int, padding: int, channels: int, outputs: int) -> float:
    plain, random = Convolution(window, stride, padding), np.random.default_rng(0)
    x = random.normal(size=(4, side, side, channels)).astype(np.float32)
    kernel = random.normal(size=(window, window, channels, outputs)).astype(np.float32)
    y = plain.forward(x, kernel)
    gradient = random.normal(size=y.shape).astype(np.float32)
    settings = {"strides": (stride, stride), "padding": ((padding, padding),) * 2}

    def forward(x, kernel):
        return conv_general_dilated(x, kernel, **settings, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected = y, plain.transposed(gradient, kernel, side), plain.kernel_gradient(x, gradient)
    return largest_error(forward, x, kernel, gradient, expected)


def transposed_error(side: int, window: int, stride: int, padding: int, channels: int, outputs: int) -> float:
    """Of the transposed convolution of images with the given side."""
    plain, random = Convolution(window, stride, padding), np.random.default_rng(0)
    size = stride * (side - 1) + window - 2 * padding
    x = random.normal(size=(4, side, side, channels)).astype(np.float32)
    kernel = random.normal(size=(window, window, channels, outputs)).astype(np.float32)
    gradient = random.normal(size=(4, size, size, outputs)).astype(np.float32)

    def forward(x, kernel):
        return conv_transpose(x, kernel, (stride, stride), ((padding, padding),) * 2, (size, size))

    swapped = kernel.transpose(0, 1, 3, 2)  # The kernel of the convolution whose transpose this is.
    by_kernel = plain.kernel_gradient(gradient, x).transpose(0, 1, 3, 2)
    expected = plain.transposed(x, swapped, size), plain.forward(gradient, swapped), by_kernel
    return largest_error(forward, x, kernel, gradient, expected)


def task_of(name: str) -> Task:
    return tasks.classifier(models.create(name, 10), (SIDE, SIDE, 3), 10)


def evaluation_error() -> float:
    """The difference between the logits of an evaluation and those in the highest precision."""
    task = task_of("resnet18")
    state = jax.jit(task.init)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (16, SIDE, SIDE, 3))
    found = data_parallel.parallelize(task.predict_step, 1, donate=False)(state, {"image": images})
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(task.predict_step)(state, {"image": images})
    return tree_error(found, expected)


def differing_bits(name: str) -> float:
    """The largest difference between the weights after one training step, run twice."""
    task = task_of(name)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = {"image": jax.random.normal(jax.random.key(1), (32, SIDE, SIDE, 3)), "label": jnp.arange(32) % 10}
    step = jax.jit(task.train_step)
    first, second = (step(state, batch)[0].params for _ in range(2))
    return tree_error(first, second)


def checks(names: list[str]) -> Iterator[tuple[str, float, float]]:
    """(name, error, limit) of each check; the logits are those of the networks `names`."""
    with jax.default_matmul_precision("highest"):
        for case in CONVOLUTIONS:
            yield f"convolution {case[1]}x{case[1]} stride {case[2]}", convolution_error(*case), LIMIT
        for case in TRANSPOSED:
            yield f"transposed convolution {case[1]}x{case[1]} stride {case[2]}", transposed_error(*case), LIMIT
    yield "precision of evaluations, resnet18", evaluation_error(), 1e-6
    for name in ("resnet18", "dcnn"):
        yield f"deterministic step, {name}", differing_bits(name), 0.0
    for name in names:
        golden = GOLDEN[name]
        yield f"logits, {name}", parity.relative_error(parity.logits(name, golden["salt"]), golden), LIMIT


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; numerics takes no positional arguments")
    names = absl_flags.FLAGS.models
    for name in names:
        app.require(name in GOLDEN, f"--models={name}: must be one or more of {', '.join(GOLDEN)}")
    make_deterministic()
    _, line = start_devices(1)
    start_cache()
    say(line)
    failed = False
    for name, error, limit in checks(names):
        passed = error <= limit
        failed |= not passed
        print(json.dumps({"check": name, "error": error, "limit": limit, "passed": passed}), flush=True)
    return int(failed)


if __name__ == "__main__":
    absl_flags.DEFINE_list("models", list(GOLDEN), "Networks whose logits are compared.")
    app.run(main)
