"""Compares training steps with those of a peer, another library: alternating turns, medians, a table.

Measures the full update (forward, backward, SGD with momentum, batch norm statistics) in float32 on the CPU of an idle
machine, for networks with the same layers, batch size and number of parameters. Both sides take turns in one run, never
at the same time. First, every setting of the peer (memory layout, threads, compiled or not) is tried, uncompiled ones
twice; the settings near the fastest one take part in the turns. The peer's result is the best median of the settings
that are not compiled; the fastest compiled setting has its own column. With --forward_only, both only compute logits in
evaluation mode.
"""

import functools
import itertools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags as absl_flags

from benchmarks import peer_python
from data.stream import usable_cores
from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from train import metrics
from train.messages import say
from train.parallel import data_parallel, host_memory
from train.state import parameter_count
from train.task import Task

PEER = absl_flags.DEFINE_string("peer", "", "The peer's script; if empty, only this project is measured.")
PEER_PYTHON = absl_flags.DEFINE_string("peer_python", sys.executable, "Python that runs the peer.")
ROUNDS = absl_flags.DEFINE_integer("rounds", 5, "Turns of each program; results are their medians.", lower_bound=1)
SECONDS = absl_flags.DEFINE_float("seconds", 4.0, "Length of one turn; at least five steps.", 0.001, 3600.0)
absl_flags.register_validator("seconds", lambda seconds: not math.isnan(seconds), "must be between 0.001 and 3600")
JSON = absl_flags.DEFINE_bool("json", False, "Also print the results as JSON, on the last line.")
FORWARD = absl_flags.DEFINE_bool("forward_only", False, "Measure logits in evaluation mode instead of steps.")
BATCH = absl_flags.DEFINE_integer("batch", None, "Batch size; overrides the networks' own batch sizes.", lower_bound=1)
NEAR = 1.3  # Settings slower than this factor times the fastest do not take part in the turns.


class PeerError(OSError):
    """The comparison with the peer is impossible; reported as one line with exit status 1."""


class Twin(NamedTuple):
    """This project's side of one comparison."""

    task: Task
    batch: dict[str, Any]  # The batch of every step of the comparison; "image" is [B, H, W, C].
    others: Mapping[str, Callable[[], Iterable]] = {}  # Other sources of batches, timed relative to `batch`.


def settings(cores: int) -> list[str]:
    """The peer's flags to try. Half of the cores are tried too, in case hyper-threading counts each core twice. The
    compiled form is tried only with all cores, because compilation takes a minute."""
    layouts, counts = ("nchw", "channels_last"), sorted({1, max(1, cores // 2), cores})
    eager = [f"--layout={layout} --threads={threads}" for layout, threads in itertools.product(layouts, counts)]
    # Twice, so that a disturbance of one run does not exclude the best setting.
    return 2 * eager + [f"--layout={layout} --threads={cores} --compile" for layout in layouts]


def run_peer(name: str, options: str, *, batch_size: int) -> tuple[int, float]:
    """(parameters, median milliseconds per step) as the peer prints them. Raises PeerError if the peer fails, or
    UsageError if its Python lacks a module."""
    command = [PEER_PYTHON.value, PEER.value, f"--model={name}", f"--batch_size={batch_size}", *options.split()]
    command += ["--forward_only"] * FORWARD.value
    done = subprocess.run(command, capture_output=True, text=True)
    last = peer_python.last_line(done)
    if done.returncode and last.startswith("No module named"):
        raise peer_python.refusal(PEER_PYTHON.value, last)
    if done.returncode:
        raise PeerError(f"the peer failed: {last}: {' '.join(command)}")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return int(found["parameters"]), float(found["median_ms"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise PeerError(f"the peer printed no JSON with parameters and median_ms: {' '.join(command)}") from None


def near_fastest(name: str, twin: Twin) -> list[str]:
    """The peer's settings that may be its fastest. Raises PeerError if its network has a different number of
    parameters."""
    shapes = jax.eval_shape(twin.task.init, jax.random.key(0))
    ours, times = parameter_count(shapes.params), dict[str, float]()
    for setting in settings(usable_cores()):
        try:
            parameters, ms = run_peer(name, f"{setting} --steps=3", batch_size=len(twin.batch["image"]))
        except PeerError as error:
            if "--compile" not in setting:
                raise
            say(f"{name}: skipped {setting}: {error}")  # It needs a C++ compiler, which may be missing.
            continue
        if parameters != ours:
            raise PeerError(f"{name} has {ours:,} parameters here and {parameters:,} in the peer")
        times[setting] = min(ms, times.get(setting, ms))
        say(f"{name}: peer {ms:.1f} ms, {setting}")
    eager, compiled = ({s: ms for s, ms in times.items() if ("--compile" in s) == form} for form in (False, True))
    near = [setting for setting, ms in eager.items() if ms <= NEAR * min(eager.values())]
    return near + sorted(compiled, key=lambda setting: compiled[setting])[:1]


def timer(task: Task) -> Callable[[Iterable, int], float]:
    """Returns a function (batches, steps) -> median milliseconds of the project's jitted step. Each call starts from
    the same state."""
    first, step = jax.jit(task.init)(jax.random.key(0)), data_parallel.parallelize(task.train_step, 1, donate=True)
    predict = data_parallel.parallelize(task.predict_step, 1, donate=False)

    def ms(source: Iterable, steps: int) -> float:
        # A copy of the state, because the step donates it.
        state, total, marks, pending = jax.tree.map(jnp.copy, first), None, [], None
        for batch in itertools.islice(source, steps + 2):  # Timing starts after two steps: compiled, pipeline full.
            if FORWARD.value:
                jax.block_until_ready(predict(state, batch))
                marks.append(time.perf_counter())
                continue
            state, sums = step(state, batch)
            if not marks and pending is None:
                jax.block_until_ready(state)
                host_memory.release_memory()  # After compilation, as in train.loop.
            if pending is not None:  # Sums are fetched one step after dispatch, as in train.loop.
                total = metrics.add(total, pending)
                marks.append(time.perf_counter())
            pending = sums
        jax.block_until_ready(state)
        return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(marks[-steps - 1 :]))

    return ms


def measure(name: str, twin: Twin, chosen: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures all turns: milliseconds per step of this project and of each setting of the peer, and the ratios of the
    other sources of batches."""
    ms, fixed = timer(twin.task), itertools.repeat(twin.batch)
    others = {kind: source() for kind, source in twin.others.items()}
    peer = functools.partial(run_peer, name, batch_size=len(twin.batch["image"]))
    steps = max(5, math.ceil(1e3 * seconds / ms(fixed, 3)))
    turns: dict[str, Any] = {"steps": steps, "ours": [], "peer": {}, "others": {kind: [] for kind in others}}
    for i in range(rounds):
        for setting in chosen:
            turns["ours"].append(ms(fixed, steps))
            turns["peer"].setdefault(setting, []).append(peer(f"{setting} --steps={steps}")[1])
        turns["ours"].append(ms(fixed, steps))
        for kind, source in others.items():
            turns["others"][kind].append(ms(source, steps) / turns["ours"][-1])
        say(f"{name}: round {i + 1} of {rounds}")
    return turns


def summarise(name: str, turns: dict[str, Any], *, batch_size: int) -> dict[str, Any]:
    """Medians over the turns; for the peer, the median of its best setting."""
    ours = statistics.median(turns["ours"])
    others = {kind: round(statistics.median(found), 4) for kind, found in turns["others"].items()}
    row = {"model": name, "batch_size": batch_size, "ours_ms": round(ours, 4), "others": others, "turns": turns}
    for form, ratio in (("peer", "ratio"), ("compiled", "compiled_ratio")):
        of_form = {s: ms for s, ms in turns["peer"].items() if ("--compile" in s) == (form == "compiled")}
        if of_form:
            ms, setting = min((statistics.median(found), setting) for setting, found in of_form.items())
            row |= {f"{form}_ms": round(ms, 4), f"{form}_setting": setting, ratio: round(ours / ms, 4)}
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The lines to print, in ms per step; a ratio below 1 means that this project is faster."""
    heads = ("ours ms", "peer ms", "ratio", "compiled", "ratio")
    lines = [f"{'model':<14} {'batch':>5} " + "{:>9} {:>9} {:>6} {:>9} {:>6}".format(*heads) + "  peer's best"]
    for row in rows:
        line = "{model:<14} {batch_size:>5} {ours_ms:>9.1f}".format(**row)
        for form, ratio in (("peer", "ratio"), ("compiled", "compiled_ratio")):
            line += f" {row[f'{form}_ms']:>9.1f} {row[ratio]:>6.2f}" if ratio in row else f" {'-':>9} {'-':>6}"
        lines.append(f"{line}  {row.get('peer_setting', '-')}")
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if ratios:
        lines.append(f"geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.3f}")
    for row in rows:
        for kind, ratio in row["others"].items():
            lines.append(f"{kind} {row['model']}: {ratio:.3f} times the step on one fixed batch")
    return lines


def refuse(*names: str) -> None:
    """Raises UsageError if a flag without effect is given."""
    for name in names:
        app.require(not absl_flags.FLAGS[name].present, f"--{name} has no effect in this benchmark")


def check() -> None:
    """Must be called before anything slow is created. Raises UsageError if there is no such peer or Python."""
    if PEER.value and not pathlib.Path(PEER.value).is_file():
        raise app.UsageError(f"--peer={PEER.value}: no such file")
    if PEER.value:
        peer_python.check(PEER_PYTHON.value)
    host_memory.keep_memory()
    jax.config.update("jax_platforms", "cpu")
    start_cache()


def compare(twins: Mapping[str, Twin]) -> None:
    """Measures the twins, whose keys are the peer's names, and prints the table."""
    chosen = {name: near_fastest(name, twin) if PEER.value else [] for name, twin in twins.items()}
    rows = []
    for name, twin in twins.items():
        turns = measure(name, twin, chosen[name], rounds=ROUNDS.value, seconds=SECONDS.value)
        rows.append(summarise(name, turns, batch_size=len(twin.batch["image"])))
        say(json.dumps(rows[-1]))  # All turns, after each network, in case a long run is interrupted.
    print(*table(rows), sep="\n")
    if JSON.value:
        print(json.dumps({"ratios": {row["model"]: row["ratio"] for row in rows if "ratio" in row}}))
