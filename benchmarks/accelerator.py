"""Training steps on an accelerator: python -m benchmarks.accelerator [--peak_tflops=P,Q]

Measures images per second of the full training step of five networks on all devices of this machine, in bfloat16 and in
float32, with batches of noise that are already on the device. For float32, XLA uses TensorFloat-32 on GPUs that have
it. P and Q are the vendor's peaks of one device for these dtypes, in 10^12 operations per second; with them, it also
prints the fraction of the peak that is reached. Prints one JSON object for each network and dtype as soon as it is
measured; a configuration that fails, for example for lack of memory, has an `error`, and the exit status is 1.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags as absl_flags

import models
from benchmarks import tasks
from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from models import summary
from train.messages import say
from train.parallel import data_parallel
from train.parallel.devices import axis_of, start_devices
from train.task import Task


class Work(NamedTuple):
    """A training step to measure.

    Attributes:
      task: The task.
      labels: Shape of an image's labels.
      flops: Operations of the step for one image, without batch norm, activations and the update.
    """

    task: Task
    labels: tuple[int, ...]
    flops: float


class Network(NamedTuple):
    """The image shape and class count of a network, its default batch size per device, and (name, axis, dtype) -> its
    Work."""

    shape: tuple[int, int, int]
    classes: int
    batch_size: int
    work: Callable[[str, str | None, str | None], Work]


def classifier(name: str, axis: str | None, dtype: str | None) -> Work:
    shape, classes = NETWORKS[name].shape, NETWORKS[name].classes
    model = models.create(name, classes, axis_name=axis)
    # Two operations per multiply-add; the backward pass takes twice as many as the forward pass.
    flops = 6.0 * summary.multiply_adds(model, shape)
    return Work(tasks.classifier(model, shape, classes, axis=axis, dtype=dtype), (), flops)


def segmenter(name: str, axis: str | None, dtype: str | None) -> Work:
    shape, classes = NETWORKS[name].shape, NETWORKS[name].classes
    model = models.create(name, classes, axis_name=axis)
    flops = 6.0 * summary.multiply_adds(model, shape)
    return Work(tasks.segmenter(model, shape, classes, axis=axis, dtype=dtype), shape[:2], flops)


def generator(name: str, axis: str | None, dtype: str | None) -> Work:
    shape, classes = NETWORKS[name].shape, NETWORKS[name].classes
    model = models.create(name, classes, size=shape[0], channels=shape[2], axis_name=axis)
    layers = summary.layers(model, shape)
    of_generator = sum(layer.multiply_adds for layer in layers if layer.name.startswith("generator"))
    of_discriminator = sum(layer.multiply_adds for layer in layers) - of_generator
    # The generator runs forward and backward. The discriminator does so on the real and on the generated images, and
    # once more on the generated ones without gradients of its weights: 3 + 3 + 2 passes.
    flops = 2.0 * (3 * of_generator + 8 * of_discriminator)
    return Work(tasks.generator(model, shape, axis=axis, dtype=dtype), (), flops)


NETWORKS = {
    "resnet50": Network((224, 224, 3), 1000, 512, classifier),
    "alexnet_owt": Network((224, 224, 3), 1000, 2048, classifier),
    "segnet": Network((360, 480, 3), 11, 32, segmenter),
    "dcgan": Network((64, 64, 3), 10, 2048, generator),
    "densenet121": Network((224, 224, 3), 1000, 256, classifier),
}
DTYPES = {"bfloat16": "bfloat16", "float32": None}
ROUNDS = 3


def batch_of(name: str, work: Work, rows: int) -> dict[str, Any]:
    """Noise images in float32 and arbitrary labels, on the device."""
    shape, classes = NETWORKS[name].shape, NETWORKS[name].classes
    labels = jnp.arange(rows * math.prod(work.labels), dtype=jnp.int32) % classes
    images = jax.random.normal(jax.random.key(0), (rows, *shape), jnp.float32).clip(-1, 1)
    return {"image": images, "label": labels.reshape(rows, *work.labels)}


def step_seconds(task: Task, batch: dict[str, Any], *, devices: int, steps: int) -> tuple[float, float]:
    """(seconds of the first call, which compiles; median seconds of a step over ROUNDS rounds of `steps` steps)."""
    step = data_parallel.parallelize(task.train_step, devices, donate=True)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(jax.jit(task.init)(jax.random.key(0)), batch))
    compile_seconds, turns = time.perf_counter() - began, []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        turns.append((time.perf_counter() - began) / steps)
    return compile_seconds, statistics.median(turns)


def rates(*, flops: float, batch_size: int, seconds: float, peak_tflops: float | None) -> dict[str, float]:
    """The figures computed from the seconds of a step and the operations per image; `peak_tflops` is the total peak of
    all devices."""
    tflops = 1e-12 * flops * batch_size / seconds
    found = {"images_per_second": round(batch_size / seconds, 1), "step_ms": round(1e3 * seconds, 2)}
    share = {"share_of_peak": round(tflops / peak_tflops, 4)} if peak_tflops else {}
    return found | {"tflops": round(tflops, 2)} | share


def measure(name: str, dtype: str, *, rows: int, devices: int, steps: int, peak: float | None) -> dict[str, Any]:
    """One row of the results."""
    row: dict[str, Any] = {"model": name, "dtype": dtype, "batch_size": rows}
    work = NETWORKS[name].work(name, axis_of(devices), DTYPES[dtype])
    try:
        first, seconds = step_seconds(work.task, batch_of(name, work, rows), devices=devices, steps=steps)
    except jax.errors.JaxRuntimeError as error:
        return row | {"error": str(error).splitlines()[0]}
    total = peak * devices if peak else None
    figures = rates(flops=work.flops, batch_size=rows, seconds=seconds, peak_tflops=total)
    return row | {"compile_seconds": round(first, 1)} | figures


def define_flags() -> None:
    absl_flags.DEFINE_list("models", list(NETWORKS), "Networks to measure.")
    absl_flags.DEFINE_list("dtypes", list(DTYPES), "Dtypes of the computation.")
    absl_flags.DEFINE_integer("batch_size", None, "Batch size per device instead of the networks' own.", lower_bound=1)
    absl_flags.DEFINE_integer("steps", 30, f"Steps per round; {ROUNDS} rounds.", lower_bound=1)
    absl_flags.DEFINE_list("peak_tflops", [], "The vendor's peak of one device in TFLOP/s, for each dtype.")


def peaks(given: list[str], dtypes: list[str]) -> list[float | None]:
    """The peak of each dtype. Raises UsageError unless there are none, or as many positive numbers as dtypes."""
    try:
        values = [float(value) for value in given]
    except ValueError:
        values = [0.0]
    fits = len(values) in (0, len(dtypes)) and all(0 < value < math.inf for value in values)
    app.require(fits, f"--peak_tflops={','.join(given)}: must be a positive number for each of {', '.join(dtypes)}")
    return list(values) or [None] * len(dtypes)


def main(argv) -> int:
    given = absl_flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; accelerator takes no positional arguments")
    for flag, known in (("models", NETWORKS), ("dtypes", DTYPES)):
        for value in given[flag].value or [""]:
            app.require(value in known, f"--{flag}={value}: must be one or more of {', '.join(known)}")
    peak_of = dict(zip(given.dtypes, peaks(given.peak_tflops, given.dtypes), strict=True))
    devices, line = start_devices(None)
    start_cache()
    say(line)
    failed = False
    for name in given.models:
        rows = (given.batch_size or NETWORKS[name].batch_size) * devices
        for dtype, peak in peak_of.items():
            row = measure(name, dtype, rows=rows, devices=devices, steps=given.steps, peak=peak)
            print(json.dumps(row), flush=True)
            failed |= "error" in row
    return int(failed)


if __name__ == "__main__":
    define_flags()
    app.run(main)
