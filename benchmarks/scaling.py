"""Measures how steps scale: python -m benchmarks.scaling [--curves=depth,width] [--figure=FILE.png] [--quick]

Measures training steps for increasing depth, width, batch size and image size, on one or more cores and on simulated
devices, and how fast the input path reads JPEGs on one or more cores. Each point is measured in its own process,
without a compilation cache. Each curve has a table with: the work, in multiply-adds of a forward pass of the batch (for
JPEGs, their number); the median milliseconds per step; milliseconds per work, relative to the curve's first point (if
this increases, the time grows faster than the work); compilation time in seconds; the peak memory of the process, and
its peak after compilation ("steps"). Run it on an otherwise idle machine. --quick uses tiny sizes and one curve of each
name.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags

import models
from benchmarks import classifiers, pictures, segmentation, tasks, twins
from data.stream import usable_cores
from experiments.cli import app
from experiments.reporting import figures
from models import summary
from models.cpu_kernels import ops
from train.messages import say
from train.parallel import data_parallel, host_memory
from train.parallel.devices import axis_of, start_devices

NAMES = ("depth", "width", "batch", "image", "cores", "devices", "loader")
CURVES = absl_flags.DEFINE_list("curves", list(NAMES), f"Curves to measure: {', '.join(NAMES)}.")
QUICK = absl_flags.DEFINE_bool("quick", False, "Tiny sizes, one curve of each name, two points per curve.")
FIGURE = absl_flags.DEFINE_string("figure", "", "Also plot the curves to this PNG file.")
POINT = absl_flags.DEFINE_string("point", "", "Measure only this point, given as JSON (used internally).")
absl_flags.set_default(twins.SECONDS, 2.0)
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINE = "{:>20}" + " {:>11}" * 7
MEGABYTE = 1e6


class PointError(OSError):
    """A point's process has failed; reported as one line with exit status 1."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A measurement in one process.

    Attributes:
      x: The value that increases along the curve.
      model: Name of a model, or "" for the input path.
      options: Options of the model.
      batch: Global batch size; for the input path, the number of JPEGs.
      size: Height and width of the images in pixels.
      cores: Number of cores that the process may use; 0 means all.
      devices: Number of simulated devices.
      seconds: Length of the measurement, which has at least five steps.
    """

    x: int
    model: str
    batch: int
    size: tuple[int, int] = (32, 32)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    cores: int = 0
    devices: int = 1
    seconds: float = 2.0


@dataclasses.dataclass(frozen=True)
class Curve:
    """The points of one kind of network; `x` names the value that increases."""

    name: str
    title: str
    x: str
    points: list[Point]


def curves(quick: bool, seconds: float) -> Iterator[Curve]:
    """All curves in the order of NAMES."""

    def curve(name, title, x, values, point):
        made = [point(value) for value in (values[:2] if quick else values)]
        return Curve(name, title, x, [dataclasses.replace(one, seconds=seconds) for one in made])

    few, small = (4, (16, 16)) if quick else (64, (32, 32))
    tall = [(16, 24), (32, 48)] if quick else [(48, 64), (96, 128), (144, 192), (192, 256)]
    scene, hidden = tall[0] if quick else (96, 128), (16,) * 3 if quick else (1024,) * 3
    widths = (4, 8) if quick else (16, 32, 64, 96)
    cores = [count for count in (1, 2, 4, 8, 16) if count <= usable_cores()]

    def segnet(x, size, width, **more):
        options = {"widths": (width,) * 4, "normalise_channels": False}
        return Point(x, "segnet_basic", 2 if quick else 4, size, options, **more)

    yield curve(
        "depth", f"cifar_resnet, batch {few}", "layers", (20, 32, 44, 56, 110),
        lambda depth: Point(depth, f"cifar_resnet{depth}", few, small),
    )  # fmt: skip
    yield curve(
        "depth", f"densenet, growth 12, batch {few // 4}", "layers", (10, 13) if quick else (40, 58, 76, 100),
        lambda depth: Point(depth, "densenet", few // 4, small, {"depth": depth, "growth_rate": 12}),
    )  # fmt: skip
    yield curve(
        "width", f"mlp, three layers, batch {2 * few}", "units", (16, 32) if quick else (256, 512, 1024, 2048),
        lambda width: Point(width, "mlp", 2 * few, small, {"hidden": (width,) * 3}),
    )  # fmt: skip
    yield curve("width", "segnet_basic", "channels", widths, lambda width: segnet(width, scene, width))
    yield curve(
        "batch", "cifar_resnet20", "images", (2, 4) if quick else (8, 16, 32, 64, 128, 256),
        lambda batch: Point(batch, "cifar_resnet20", batch, small),
    )  # fmt: skip
    yield curve(
        "batch", f"mlp, {hidden[0]} units", "images", (2, 4) if quick else (16, 32, 64, 128, 256, 512),
        lambda batch: Point(batch, "mlp", batch, small, {"hidden": hidden}),
    )  # fmt: skip
    yield curve(
        "image", f"cifar_resnet20, batch {few // 2}", "pixels per side", (8, 16) if quick else (16, 32, 64, 96),
        lambda side: Point(side, "cifar_resnet20", few // 2, (side, side)),
    )  # fmt: skip
    yield curve("image", "segnet_basic", "height in pixels", tall, lambda size: segnet(size[0], size, widths[-2]))
    yield curve(
        "cores", f"cifar_resnet20, batch {2 * few}", "cores", cores,
        lambda count: Point(count, "cifar_resnet20", 2 * few, small, cores=count),
    )  # fmt: skip
    yield curve(
        "cores", f"mlp, batch {2 * few}", "cores", cores,
        lambda count: Point(count, "mlp", 2 * few, small, {"hidden": hidden}, cores=count),
    )  # fmt: skip
    yield curve("cores", "segnet_basic", "cores", cores, lambda count: segnet(count, scene, widths[-2], cores=count))
    yield curve(
        "devices", f"cifar_resnet20, global batch {2 * few}", "simulated devices", (1, 2, 4, 8),
        lambda count: Point(count, "cifar_resnet20", 2 * few, small, devices=count),
    )  # fmt: skip
    yield curve("loader", "JPEGs", "cores", cores, lambda count: Point(count, "", 64 if quick else 512, cores=count))


def peak_mb() -> float:
    """The peak resident memory of this process in megabytes. getrusage is not used, because its value would be
    inherited from the parent process."""
    (line,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024 / MEGABYTE


def measure(point: Point) -> dict[str, Any]:
    """Measures a point in this process."""
    if point.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: point.cores])
    return measure_step(point) if point.model else measure_input(point)


def measure_input(point: Point) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        pictures.make(pathlib.Path(place), point.batch)
        ms = 1e3 * point.batch / pictures.rate(pathlib.Path(place), point.batch)
    return {"work": point.batch, "ms": ms, "peak_mb": peak_mb()}


def measure_step(point: Point) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cpu")
    devices, _ = start_devices(point.devices)
    segments, axis, shape = models.spec(point.model).task == "segmentation", axis_of(devices), (*point.size, 3)
    classes = segmentation.CLASSES if segments else classifiers.CLASSES
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in point.options.items()}
    model = models.create(point.model, classes, **options, axis_name=axis)
    work = summary.multiply_adds(model, shape) * point.batch
    task = (tasks.segmenter if segments else tasks.classifier)(model, shape, classes, axis=axis)
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, (point.batch, *point.size) if segments else point.batch, np.int32)
    images = random.normal(size=(point.batch, *shape)).astype(np.float32)
    batch = {"image": images, "label": labels}
    batch = jax.device_put(batch) if devices == 1 else batch
    ops.use_cpu_kernels(images)  # Compiles the kernels, so that it is not measured below.
    state = jax.block_until_ready(jax.jit(task.init)(jax.random.key(0)))
    step = data_parallel.parallelize(task.train_step, devices, donate=True)
    began = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    compiled, peak = time.perf_counter() - began, peak_mb()
    host_memory.release_memory()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets the peak memory.
    times, end = list[float](), time.perf_counter() + point.seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        times.append(1e3 * (time.perf_counter() - began))
    found = {"work": work, "ms": statistics.median(times), "compile_s": compiled}
    return found | {"peak_mb": max(peak, peak_mb()), "steps_mb": peak_mb()}


def run(point: Point) -> dict[str, Any]:
    """Measures a point in its own process. Raises PointError if that fails."""
    command = [sys.executable, "-P", "-m", "benchmarks.scaling", f"--point={json.dumps(dataclasses.asdict(point))}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PointError(f"{point.model or 'loader'}, {point.x}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def with_growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `growth` to the rows: milliseconds per work, relative to the first row."""
    first = rows[0]["ms"] / rows[0]["work"]
    return [row | {"growth": row["ms"] / row["work"] / first} for row in rows]


def table(curve: Curve, rows: list[dict[str, Any]]) -> list[str]:
    images = curve.name == "loader"
    heads = (
        curve.x,
        "images" if images else "G mul-adds",
        "ms",
        "images/s",
        "ms / work",
        "compile s",
        "peak MB",
        "steps MB",
    )
    lines = [f"{curve.name}: {curve.title}", LINE.format(*heads)]
    for row in rows:
        work = f"{row['work']}" if images else f"{1e-9 * row['work']:.3g}"
        ends = (("images_per_second", 1), ("growth", 2), ("compile_s", 1), ("peak_mb", 0), ("steps_mb", 0))
        cells = [f"{row[key]:.{digits}f}" if key in row else "-" for key, digits in (("ms", 2), *ends)]
        cells = [str(row["x"]), work, *cells]
        lines.append(LINE.format(*cells))
    return lines


def draw(path: str, measured: list[tuple[Curve, list[dict[str, Any]]]]) -> None:
    """Draws two plots for each curve name: time per work, relative to the first point, and peak memory."""
    import matplotlib

    names = list(dict.fromkeys(curve.name for curve, _ in measured))
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(1.8 * figures.WIDTH, 2.6 * len(names))
        for name, (left, right) in zip(names, figure.subplots(len(names), 2, squeeze=False), strict=True):
            ours = [(curve, rows) for curve, rows in measured if curve.name == name]
            for (curve, rows), colour in zip(ours, LINES, strict=False):
                x = [row["x"] for row in rows]
                left.plot(x, [row["growth"] for row in rows], "o-", color=colour, label=curve.title)
                right.plot(x, [row["peak_mb"] for row in rows], "o-", color=colour, label=curve.title)
            left.set_title(f"{name}: time / work, relative to the first point")
            right.set_title(f"{name}: peak memory, MB")
            for axes, key in ((left, "growth"), (right, "peak_mb")):
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter("{x:g}")
                axes.set_xlabel(" or ".join(dict.fromkeys(curve.x for curve, _ in ours)))
                axes.set_ylim(0, 1.1 * max(row[key] for _, rows in ours for row in rows))
                axes.legend(fontsize=8)
    figures.save_figure(figure, path)


def chosen_curves() -> list[Curve]:
    chosen = [curve for curve in curves(QUICK.value, twins.SECONDS.value) if curve.name in CURVES.value]
    return list({curve.name: curve for curve in reversed(chosen)}.values())[::-1] if QUICK.value else chosen


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; scaling takes no positional arguments")
    twins.refuse("peer", "peer_python", "rounds", "forward_only", "models", "batch")
    if POINT.value:
        print(json.dumps(measure(Point(**json.loads(POINT.value)))))
        return 0
    for name in CURVES.value or [""]:
        app.require(name in NAMES, f"--curves={name}: must be one of {', '.join(NAMES)}")
    measured = []
    for curve in chosen_curves():
        rows = []
        for point in curve.points:
            row = run(point)
            rows.append({"x": point.x, "images_per_second": 1e3 * point.batch / row["ms"]} | row)
            say(f"{curve.name}, {curve.title}: {point.x} {curve.x}, {rows[-1]['ms']:.1f} ms")
        measured.append((curve, with_growth(rows)))
        print(*table(*measured[-1]), sep="\n", flush=True)
    if twins.JSON.value:
        found = [{"curve": curve.name, "title": curve.title, "x": curve.x, "rows": rows} for curve, rows in measured]
        print(json.dumps({"curves": found}))
    if FIGURE.value:
        draw(FIGURE.value, measured)
    return 0


if __name__ == "__main__":
    app.run(main)
