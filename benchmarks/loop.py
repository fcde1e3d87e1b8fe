"""Measures the overhead of the loop: python -m benchmarks.loop [--model=cnn] [--batch_size=64] [--steps=300]

Measures, in one run on an otherwise idle machine: the loop's time per step (data, metrics, logging) relative to the
time of the bare jitted step with one fixed batch, alternating the two; the time from process start to the first row of
metrics.csv, with an empty and with a filled compilation cache; and how long saving a checkpoint blocks the loop. The
last line is JSON.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from experiments.cli.config import ClassifyConfig
from experiments.cli.options import override

ROUNDS = 5
LOG_EVERY = 10


@dataclasses.dataclass(frozen=True)
class LoopConfig(ClassifyConfig):
    """The overhead of the loop"""

    workdir: str | None = override(ClassifyConfig, "workdir", None)  # type: ignore[assignment]  # Not used.
    steps: int = override(ClassifyConfig, "steps", 300)
    batch_size: int = override(ClassifyConfig, "batch_size", 64)
    augment: str = override(ClassifyConfig, "augment", "digits")


def mark(marks: dict[int, float], step: int, row: dict) -> None:
    del row
    marks[step] = time.perf_counter()


def loop_over_step(config: LoopConfig) -> tuple[list[float], list[float], list[float]]:
    """Seconds per step of the loop, seconds of the bare step, and seconds of dispatching a save, one of each per
    round."""
    import jax

    from data import batches
    from experiments.setup import classification
    from train import checkpoint, loop, workdir
    from train.parallel import data_parallel
    from train.signals import Stop

    dataset = classification.load_dataset(config)
    images, labels = dataset.splits["train"]
    info = classification.dataset_info(config, dataset)
    experiment = classification.create_experiment(config, info, devices=1, steps=config.steps)
    step = data_parallel.parallelize(experiment.task.train_step, 1, donate=True)
    batch = next(batches.train_batches(images, labels, batch_size=config.batch_size, seed=0))
    looped, bare, saves = [], [], []
    # The loop runs the same compiled step, so that the difference is only the work of the loop.
    task = experiment.task._replace(
        train_step=step, eval_step=lambda state, batch: {"loss": 0.0, "count": 1.0, "correct": 0.0}
    )
    for _ in range(ROUNDS + 1):
        state, _ = step(experiment.task.init(jax.random.key(0)), batch)
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for _ in range(config.steps):
            state, sums = step(state, batch)
        jax.block_until_ready((state, sums))
        bare.append((time.perf_counter() - begin) / config.steps)
        with tempfile.TemporaryDirectory() as place:
            run = pathlib.Path(place)
            columns = ["step", "train_loss", "train_accuracy", "learning_rate", "seconds", "images_per_second"]
            metrics = workdir.MetricsFile(run, columns, step=0)
            store = checkpoint.Checkpoints(run)
            marks: dict[int, float] = {}
            loop.train(
                experiment.task.init(jax.random.key(0)),
                {},
                task=task,
                plan=loop.Plan(config.steps + 2 * LOG_EVERY, 0, LOG_EVERY, 0, lambda step: 0.1),
                data=loop.Data(
                    lambda start: batches.train_batches(
                        images, labels, batch_size=config.batch_size, seed=0, start=start
                    ),
                    loop.EvalData(lambda: [{}], 1),
                ),
                devices=1,
                output=loop.Output(store, metrics, functools.partial(mark, marks)),
                stop=Stop(),
            )
            metrics.close()
            looped.append((marks[config.steps + LOG_EVERY] - marks[LOG_EVERY]) / config.steps)
            begin = time.perf_counter()
            store.save(10**6, state, record={})
            saves.append(time.perf_counter() - begin)
            store.wait()
    return looped[1:], bare[1:], saves[1:]  # The first round warms up.


def first_step(cache: str, config: LoopConfig) -> float:
    """Seconds from the start of `classify` to the first row of metrics.csv."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "experiments.classify", f"--workdir={place}/run", f"--model={config.model}"]
        command += [
            f"--batch_size={config.batch_size}",
            f"--augment={config.augment}",
            "--log_every=1",
            "--steps=500",
        ]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, env=os.environ | {"XDG_CACHE_HOME": cache}, stderr=subprocess.DEVNULL
        ) as process:
            try:
                path = pathlib.Path(place, "run", "metrics.csv")
                while not path.exists() or path.read_text().count("\n") < 2:
                    if process.poll() is not None:
                        raise OSError(f"the process ended before its first step: {shlex.join(command)}")
                    time.sleep(0.005)
                return time.perf_counter() - begin
            finally:  # Also after Ctrl-C.
                process.kill()
                process.wait()


def main(config: LoopConfig) -> int:
    app.require(config.steps % LOG_EVERY == 0, f"--steps={config.steps}: must be a multiple of {LOG_EVERY}")
    with tempfile.TemporaryDirectory() as cache:
        cold = first_step(cache, config)
        # Fill the cache with all programs; a killed run may have stored none. Ctrl-C ends this run too.
        subprocess.run(
            [sys.executable, "-m", "experiments.classify", f"--workdir={cache}/run", f"--model={config.model}",
             f"--batch_size={config.batch_size}", f"--augment={config.augment}", "--steps=2"],
            env=os.environ | {"XDG_CACHE_HOME": cache}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        warm = [first_step(cache, config) for _ in range(3)]
    start_cache()
    looped, bare, saves = loop_over_step(config)
    ratios = [a / b for a, b in zip(looped, bare, strict=True)]
    found = {
        "model": config.model,
        "batch_size": config.batch_size,
        "bare_step_ms": round(1e3 * statistics.median(bare), 3),
        "loop_step_ms": round(1e3 * statistics.median(looped), 3),
        "loop_over_bare": round(statistics.median(ratios), 4),
        "first_step_cold_s": round(cold, 2),
        "first_step_warm_s": round(statistics.median(warm), 2),
        "save_ms": round(1e3 * statistics.median(saves), 1),
    }
    for name, value in found.items():
        print(f"{name:<20} {value}")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    app.run(main, LoopConfig)
