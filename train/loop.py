"""The training loop: one function that reads from top to bottom and knows nothing of the task."""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from train import checkpoint, leaves, workdir
from train.parallel import data_parallel, host_memory, processes
from train.signals import Interrupted, Stop
from train.task import Task

AGREE_EVERY = 10  # Steps between two times that several processes ask each other for signals: asking waits for a step.


class Plan(NamedTuple):
    """How long, and how often what happens, in steps."""

    steps: int
    eval_every: int
    log_every: int
    save_every: int


class Result(NamedTuple):
    state: Any
    metrics: dict[str, float]
    sums: Any
    seconds: float
    compile_seconds: float
    images_per_second: float


def due(step: int, every: int, total: int) -> bool:
    """True at multiples of `every` and at the last step."""
    return step == total or (every > 0 and step % every == 0)


def add(total, sums):
    """Adds a tree of sums on the host in float64."""
    host = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    return host if total is None else jax.tree.map(np.add, total, host)


def evaluate(state, eval_step, *, batches: Iterable, examples: int, stop: Stop | None = None):
    """The sums over all batches, one behind the dispatch; None after a signal. `examples` must be the count."""
    total, previous = None, None
    for batch in batches:
        if stop is not None and stop.number:
            return None
        sums = eval_step(state, batch)
        if previous is not None:
            total = add(total, previous)
        previous = sums
    total = add(total, previous)
    if total["count"] != examples:
        raise RuntimeError(f"the evaluation counted {total['count']} examples, the split has {examples}")
    return total


def train(
    state,
    *,
    task: Task,
    record: dict,
    plan: Plan,
    devices: int,
    train_batches: Callable[[int], Iterable],
    eval_batches: Callable[[], Iterable],
    eval_examples: int,
    learning_rate: Callable,
    checkpoints: checkpoint.Checkpoints,
    metrics: workdir.MetricsFile,
    stop: Stop,
    progress: Callable[[int, dict], None],
) -> Result:
    """Trains `state` until plan.steps. `record` is {} or what a checkpoint's save was given: the sums since the last
    row of metrics.csv, the last step that was reported, and the seconds so far.

    Raises FloatingPointError for a loss that is not finite, Interrupted after a signal, CheckpointError.
    """
    # --- Prepare: compile once, restore the host's side of the run.
    step = int(state.step)
    sums = jax.tree.map(np.float64, record.get("sums"))
    reported, before, eval_metrics = (
        record.get("reported", 0),
        record.get("seconds", 0.0),
        record.get("eval_metrics", {}),
    )
    train_step, early_step = (
        data_parallel.parallelize(f, devices, donate=True, is_sharded=task.is_sharded)
        for f in (task.train_step, task.early_step or task.train_step)
    )
    eval_step = data_parallel.parallelize(task.eval_step, devices, donate=False)
    batches = iter(train_batches(step))
    started, compile_seconds, timed_steps, timed_seconds, compiled = time.perf_counter(), 0.0, 0, 0.0, set()
    pending, images, mark, eval_sums, evaluated_at, saved = None, 0, None, None, -1, step if record else -1
    state, together = task.shard(state), processes.index_and_count()[1]

    def first(function, *arguments):
        """Calls a jitted function; its first call is the compilation."""
        nonlocal compile_seconds
        begin = time.perf_counter()
        result = function(*arguments)
        if function not in compiled:
            compiled.add(function)
            compile_seconds += time.perf_counter() - begin
        return result

    def timed_eval(state, batch):
        return first(eval_step, state, batch)

    def collect():
        """Fetches the sums of the step before, and refuses a loss that is not finite."""
        nonlocal sums, pending
        if pending is None:
            return
        number, fresh = pending
        pending = None
        sums = add(sums, fresh)
        check_finite(sums, number)

    def check_finite(sums, number):
        if not np.isfinite(sums["loss"]):
            checkpoints.wait()
            advice = "the checkpoints before it are kept; try a lower --learning_rate in a new --workdir"
            raise FloatingPointError(f"the loss is {float(sums['loss'])} at step {number}; {advice}")

    def save():
        nonlocal saved
        now = before + time.perf_counter() - started
        host = {"reported": reported, "seconds": now, "eval_metrics": eval_metrics}
        host["sums"] = None if sums is None else jax.tree.map(float, sums)
        whole = task.unshard(state)
        if processes.is_main():
            checkpoints.save(step, whole, record=host, metrics=eval_metrics if evaluated_at == step else None)
        saved = step

    while True:
        # --- Report what is due at this step: a row of metrics, an evaluation, a checkpoint.
        if reported < step:
            row: dict[str, float] = {"step": step}
            evaluated = False
            if due(step, plan.log_every, plan.steps) or due(step, plan.eval_every, plan.steps):
                collect()
                row |= {f"train_{name}": value for name, value in task.finish(sums).items()}
                row["learning_rate"] = float(learning_rate(step - 1))
                row["seconds"] = round(before + time.perf_counter() - started, 3)
                if mark is not None and images:
                    timed_steps, timed_seconds = timed_steps + images, timed_seconds + time.perf_counter() - mark
                    row["images_per_second"] = round(images / (time.perf_counter() - mark), 1)
            if due(step, plan.eval_every, plan.steps):
                collect()
                if task.prepare_eval:
                    state = task.prepare_eval(state, lambda: stop.number if together == 1 else None)
                eval_sums = evaluate(
                    task.unshard(state),
                    timed_eval,
                    batches=eval_batches(),
                    examples=eval_examples,
                    stop=stop if together == 1 else None,
                )
                if eval_sums is not None:
                    check_finite(eval_sums, step)
                    eval_metrics, evaluated, evaluated_at = task.finish(eval_sums), True, step
                    row |= {f"eval_{name}": value for name, value in eval_metrics.items()}
            if evaluated or not due(step, plan.eval_every, plan.steps):  # Not where a signal broke the evaluation off.
                if len(row) > 1:
                    metrics.append(row)
                    progress(step, row)
                    if "learning_rate" in row:
                        sums = None
                reported = step
            if evaluated or due(step, plan.save_every, plan.steps):
                collect()
                save()
            if len(row) > 1:
                mark, images = time.perf_counter(), 0
        # --- Stop: at the end, or where a signal asks for it, on whichever process.
        number = processes.largest(stop.number) if together == 1 or step % AGREE_EVERY == 0 else 0
        if number:
            collect()
            if saved != step:
                save()
            checkpoints.wait()
            raise Interrupted(number, step)
        if step >= plan.steps:
            break
        # --- One step: dispatch it, then fetch the metrics of the one before.
        batch = next(batches)
        take = early_step if step < task.early_steps else train_step
        compiling = take not in compiled
        state, fresh = first(take, state, batch)
        step += 1
        collect()
        pending = step, fresh
        if compiling:
            jax.block_until_ready(fresh)  # The clock of images/s starts after the compilation.
            host_memory.release_memory()
            mark, images = time.perf_counter(), 0
        else:
            images += len(batch["label"]) * together

    # --- The end: the last checkpoint is on disk before the summary says so.
    checkpoints.wait()
    state = task.unshard(state)
    if together > 1:
        state = leaves.from_host(leaves.to_host(state), state)
    if eval_sums is None:  # Killed between the last checkpoint and the summary.
        eval_sums = evaluate(
            state,
            timed_eval,
            batches=eval_batches(),
            examples=eval_examples,
            stop=stop if together == 1 else None,
        )
        if eval_sums is None:
            raise Interrupted(stop.number, step)
    rate = timed_steps / timed_seconds if timed_seconds else 0.0
    seconds = before + time.perf_counter() - started
    return Result(state, task.finish(eval_sums), eval_sums, seconds, compile_seconds, rate)


def say(line: str) -> None:
    """One line for the person who watches; standard output is for results. Of several processes the first speaks."""
    if processes.is_main():
        print(line, file=sys.stderr, flush=True)
