"""ImageNet steps on an accelerator: python -m benchmarks.accelerator [--peak_tflops=P] [--batch_size=256]

Measures images per second of the full training step of ResNet-50 and AlexNet on all devices of this machine, with
batches of 224x224 noise images that are already on the device. With P, the vendor's peak of one device for the dtype in
10^12 operations per second, it also prints the fraction of the peak that is reached. A step is counted as three forward
passes with two operations per multiply-add.
"""

import json
import statistics
import time

import jax
import jax.numpy as jnp
from absl import flags as absl_flags

import models
from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from models import summary
from train import optimizers
from train.parallel import data_parallel
from train.parallel.devices import axis_of, start_devices
from train.tasks import classification

MODELS = absl_flags.DEFINE_list("models", ["resnet50", "alexnet_owt"], "Networks to measure.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 256, "Batch size per device.", lower_bound=1)
DTYPE = absl_flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the computation.")
STEPS = absl_flags.DEFINE_integer("steps", 30, "Steps per round; results are medians of three rounds.", lower_bound=1)
PEAK = absl_flags.DEFINE_float("peak_tflops", None, "The vendor's peak of one device in TFLOP/s.", lower_bound=1e-6)
SHAPE, CLASSES = (224, 224, 3), 1000


def measure(name: str, devices: int) -> dict:
    """Returns one row of the table."""
    axis, rows = axis_of(devices), BATCH_SIZE.value * devices
    model = models.create(name, CLASSES, axis_name=axis)
    task = classification.create(
        model=model,
        optimizer=optimizers.create("sgd", lambda step: 0.01, momentum=0.9, nesterov=False, weight_decay=0.0),
        image_shape=SHAPE,
        class_names=tuple(map(str, range(CLASSES))),
        train_prepare=lambda images, keys: images,
        eval_prepare=lambda images: images,
        axis=axis,
        dtype=None if DTYPE.value == "float32" else DTYPE.value,
    )
    key = jax.random.key(0)
    batch = {"image": jax.random.normal(key, (rows, *SHAPE), jnp.float32), "label": jnp.arange(rows) % CLASSES}
    step = data_parallel.parallelize(task.train_step, devices, donate=True)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(jax.jit(task.init)(key), batch))
    compile_seconds, turns = time.perf_counter() - began, []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(STEPS.value):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        turns.append((time.perf_counter() - began) / STEPS.value)
    row = {"model": name, "batch_size": rows, "dtype": DTYPE.value, "compile_seconds": round(compile_seconds, 1)}
    peak = PEAK.value * devices if PEAK.value else None
    return row | rates(model, batch_size=rows, seconds=statistics.median(turns), peak_tflops=peak)


def rates(model, *, batch_size: int, seconds: float, peak_tflops: float | None) -> dict[str, float]:
    """The figures computed from the seconds of a step; `peak_tflops` is the total peak of all devices."""
    multiply_adds = sum(layer.multiply_adds for layer in summary.layers(model, SHAPE))
    tflops = 6e-12 * multiply_adds * batch_size / seconds
    found = {"images_per_second": round(batch_size / seconds, 1), "step_ms": round(1e3 * seconds, 2)}
    share = {"share_of_peak": round(tflops / peak_tflops, 4)} if peak_tflops else {}
    return found | {"tflops": round(tflops, 2)} | share


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; accelerator takes no positional arguments")
    for name in MODELS.value or [""]:
        try:
            models.create(name, CLASSES)
        except ValueError as error:
            raise app.UsageError(f"--models={name}: {error}") from None
    devices, line = start_devices(None)
    start_cache()
    print(line)
    rows = [measure(name, devices) for name in MODELS.value]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({"devices": line, "rows": rows}))
    return 0


if __name__ == "__main__":
    app.run(main)
