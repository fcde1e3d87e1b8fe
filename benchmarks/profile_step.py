"""Profiles a training step by kind of operation: python -m benchmarks.profile_step [--models=mlp,resnet20]
[--figure=FILE.png]

Measures the steps of benchmarks.classifiers on one fixed batch, on an otherwise idle machine. JAX's profiler records
when each operation of the compiled program begins and ends; its kind is read from the program's text. While several
operations run at once, the time is divided among them. The kinds of operations and "no operation", the time in which
none runs, therefore add up to the step's time under the profiler. The table also has: the step's time without the
profiler; the time of the C kernels in the step; their time alone, with each call compiled separately (the minimum of
several measurements); and "between", the time of the unprofiled step minus the times of the kernels alone and of the
other operations: waiting, starting, and reloading data that preceding operations have evicted from the caches.
"""

import collections
import json
import math
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags
from jax.extend import core

from benchmarks import classifiers, operations, twins
from benchmarks.operations import KINDS, Operation
from experiments.cli import app
from experiments.reporting import figures
from models.cpu_kernels.ops import PREFIX
from train.messages import say
from train.parallel import host_memory

FIGURE = absl_flags.DEFINE_string("figure", "", "Also plot the kinds as stacked bars to this PNG file.")
absl_flags.set_default(classifiers.MODELS, ["mlp", "resnet20", "segnet_basic", "resnet18"])
ROWS = {"traced_ms": "sum, traced", "wall_ms": "not traced", "kernels_ms": "C kernels", "alone_ms": "alone"}
ROWS |= {"between_ms": "between"}
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#B9A6DB", "#E69F00", "#F0E442", "#CC79A7", "#D55E00", "#999999", "#dddddd")


def events(folder: str, known: dict[str, Operation]) -> list[tuple[float, float, str]]:
    """(begin, end, name) of the program's operations in a trace, in nanoseconds."""
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    lines = [line for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines]
    found = ((event.start_ns, event.duration_ns, event.name) for line in lines for event in line.events)
    return [(begin, begin + duration, name) for begin, duration, name in found if name in known]


def kernel_calls(jaxpr) -> Iterator[Any]:
    """The equations that call C kernels."""
    for equation in jaxpr.eqns:
        if equation.params.get("target_name", "").startswith(PREFIX):
            yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from kernel_calls(inner)


def signature(equation) -> tuple:
    shapes = tuple(variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    return equation.params["target_name"].removeprefix(PREFIX), shapes


def least_ms(function: Callable, arguments: list, *, seconds: float = 0.5) -> float:
    """The minimum time of a call of a jitted function in milliseconds, over `seconds` and at least three calls."""
    jax.block_until_ready(function(*arguments))
    times, end = list[float](), time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - begin))
    return min(times)


def alone_ms(equation, *, dispatch_ms: float) -> float:
    """The time of one kernel call by itself, minus `dispatch_ms`, the time that JAX takes to start a program."""
    random = np.random.default_rng(0)
    arguments = [random.normal(size=variable.aval.shape).astype(np.float32) for variable in equation.invars]
    call = jax.jit(lambda *operands: equation.primitive.bind(*operands, **equation.params))
    return max(0.0, least_ms(call, jax.device_put(arguments)) - dispatch_ms)


def profile(name: str, twin: twins.Twin, *, seconds: float) -> dict[str, Any]:
    """Returns one column of the table, in milliseconds per step."""
    state = jax.jit(twin.task.init)(jax.random.key(0))
    step = jax.jit(twin.task.train_step, donate_argnums=0).lower(state, twin.batch).compile()
    known = operations.parse(step.as_text() or "")

    def run(steps: int) -> list[float]:
        nonlocal state
        times = []
        for _ in range(steps):
            begin = time.perf_counter()
            state, _ = step(state, twin.batch)
            jax.block_until_ready(state)
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    run(2)
    host_memory.release_memory()
    steps = max(5, math.ceil(1e3 * seconds / statistics.median(run(3))))
    untraced = run(steps)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Do not trace JAX's own functions.
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            traced = sum(run(steps)) / steps
        found = events(folder, known)
    untraced += run(steps)  # Before and after the trace, because the machine's speed may drift.
    kinds = dict.fromkeys(KINDS, 0.0)
    ms_of = {operation: 1e-6 * nanoseconds / steps for operation, nanoseconds in operations.shares(found).items()}
    for operation, ms in ms_of.items():
        kinds[known[operation].kind] += ms
    kinds["no operation"] = traced - sum(kinds.values())
    kernels = sum(ms for operation, ms in ms_of.items() if known[operation].kernel)
    counts = collections.Counter(known[name][1:] for *_, name in found if known[name].kernel)
    calls = {signature(call): call for call in kernel_calls(jax.make_jaxpr(twin.task.train_step)(state, twin.batch))}
    dispatch_ms = least_ms(jax.jit(lambda x: x + 1), [jax.device_put(np.float32(0))])
    alone = sum(count / steps * alone_ms(calls[call], dispatch_ms=dispatch_ms) for call, count in counts.items())
    wall = statistics.median(untraced)
    others = traced - kinds["no operation"] - kernels
    return {
        "model": name,
        "batch_size": len(twin.batch["image"]),
        "steps": steps,
        "kinds": kinds,
        "traced_ms": traced,
        "wall_ms": wall,
        "kernels_ms": kernels,
        "alone_ms": alone,
        "between_ms": wall - others - alone,
    }


def table(columns: list[dict[str, Any]]) -> list[str]:
    """The lines to print, in ms per step."""
    lines = [f"{'ms per step':<16}" + "".join(f"{column['model']:>15}" for column in columns)]
    for kind in KINDS:
        lines.append(f"{kind:<16}" + "".join(f"{column['kinds'][kind]:>15.2f}" for column in columns))
    for key, title in ROWS.items():
        lines.append(f"{title:<16}" + "".join(f"{column[key]:>15.2f}" for column in columns))
    return lines


def draw(path: str, columns: list[dict[str, Any]]) -> None:
    """Draws a bar of the kinds in ms for each network, each with its own scale."""
    import matplotlib

    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(1.6 * figures.WIDTH, 1.0 + 0.95 * len(columns))
        for axes, column in zip(np.ravel(figure.subplots(len(columns), 1)), columns, strict=True):
            left, total = 0.0, column["traced_ms"]
            for kind, colour in zip(KINDS, COLOURS, strict=True):
                ms = column["kinds"][kind]
                axes.barh(0, ms, left=left, color=colour, edgecolor="white", label=kind)
                if ms > 0.05 * total:
                    axes.text(left + ms / 2, 0, f"{ms:.3g}", ha="center", va="center", fontsize=9)
                left += ms
            axes.set_xlim(0, total)
            axes.set_yticks([])
            axes.set_title(f"{column['model']}, batch {column['batch_size']}: {total:.3g} ms", fontsize=10)
        axes.set_xlabel("milliseconds per training step, under the profiler")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figures.save_figure(figure, path)


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; profile_step takes no positional arguments")
    twins.refuse("peer", "peer_python", "rounds", "forward_only")
    classifiers.check_models()
    twins.check()
    columns = []
    for name, twin in classifiers.make_twins().items():
        columns.append(profile(name, twin, seconds=twins.SECONDS.value))
        say(f"{name}: {columns[-1]['wall_ms']:.1f} ms per step")
    print(*table(columns), sep="\n")
    if twins.JSON.value:
        print(json.dumps({"rows": columns}))
    if FIGURE.value:
        draw(FIGURE.value, columns)
    return 0


if __name__ == "__main__":
    app.run(main)
