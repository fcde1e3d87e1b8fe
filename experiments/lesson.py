"""An experiment of the lecture: its flags, its folder, what was computed already, its figures, what it found.

    W/pieces/*.json     finished parts, by name; started again, the experiment goes on behind them
    W/figures/*.png     its figures
    W/lesson.json       what the lecture's page shows: title, text, formula, figures, tables, numbers, command
    W/summary.json      the numbers: the last line of standard output

An experiment's main is `lesson.run(argv, NAME, experiment)` with `experiment(lesson) -> Found`.
"""

import json
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags as absl_flags

from data import batches
from experiments import flags
from train import figures, folder, loop
from train.task import Task

WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the experiment; started again in it, it goes on.")
SEEDS = absl_flags.DEFINE_integer("seeds", 3, "Seeds 0, 1, ... that a claimed difference is measured over.")


class Found(NamedTuple):
    """What an experiment says. `text` is a few sentences for a student, each paragraph one string; `formula` MathML, or
    "" for none; `numbers` what summary.json holds; `tables` (title, header, rows)."""

    title: str
    text: Sequence[str]
    formula: str
    numbers: dict[str, Any]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()


class Lesson:
    """The folder of a started experiment; its flags as `options`, by name."""

    def __init__(self, home: folder.RunFolder, options: dict[str, Any]):
        self.home, self.options, self.seeds = home, options, range(options["seeds"])
        self.figures: list[tuple[str, str, str]] = []

    def piece(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()`, or what an earlier start got from it. It gives what JSON can hold; arrays go through tolist."""
        if not re.fullmatch(r"[a-z0-9_.-]+", name):
            raise ValueError(f"piece {name!r}: lower-case letters, digits, _, . and - are accepted")
        place = self.home.path / "pieces"
        kept = self.home.read_json(f"pieces/{name}.json")
        if kept is None:
            loop.say(name)
            place.mkdir(exist_ok=True)
            self.home.write_json(f"pieces/{name}.json", {"found": make()})
            kept = self.home.read_json(f"pieces/{name}.json")
        return (kept or {})["found"]

    def figure(self, name: str, figure, *, title: str, caption: str) -> None:
        """Keeps a matplotlib figure as figures/NAME.png."""
        place = self.home.path / "figures"
        place.mkdir(exist_ok=True)
        figures.save_figure(figure, place / f"{name}.png")
        self.figures.append((name, title, caption))


def mean_and_std(values) -> dict[str, float]:
    """The mean over seeds and the standard deviation of a sample, 0 for a single seed."""
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}


def train(
    task: Task,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    every: int = 0,
    watch: Callable[[int, Any], None] | None = None,
) -> Any:
    """The state of a small network after `steps` steps. `watch(step, state)` is called at step 0, each `every` steps
    and at the end."""
    state, step = jax.jit(task.init)(jax.random.key(seed)), jax.jit(task.train_step)
    source = batches.train_batches(images, labels, batch_size=batch_size, seed=seed)
    for done in range(steps + 1):
        if watch is not None and (done == 0 or loop.due(done, every, steps)):
            watch(done, state)
        if done == steps:
            return state
        state, sums = step(state, next(source))
        if done % 20 == 0:
            jax.block_until_ready(sums)
            if not np.isfinite(float(sums["loss"])):
                raise FloatingPointError(f"the loss is {float(sums['loss'])} at step {done + 1}")


def _options(module: str) -> dict[str, Any]:
    """The flags of an experiment's module and of this one, but where it runs."""
    by_module = absl_flags.FLAGS.flags_by_module_dict()
    found = [*by_module.get(module, ()), *by_module.get(__name__, ())]
    return {flag.name: flag.value for flag in found if flag.name != "workdir"}


def run(argv, name: str, experiment: Callable[[Lesson], Found], *, module: str = "__main__") -> int:
    """The whole command; its exit status. `module` is where the experiment's flags were defined."""
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; {name} takes flags alone")
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the experiment is kept there")
    flags.require(1 <= SEEDS.value <= 100, f"--seeds={SEEDS.value}: accepted are 1 to 100")
    options = _options(sys.argv[0] if module == "__main__" else module)
    home = folder.RunFolder(WORKDIR.value)
    there = home.read_json("options.json")
    here = {"experiment": name, **options}
    if there not in (None, here):
        differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        pairs = "; ".join(f"--{key}: {there.get(key)} there, {here.get(key)} here" for key in differing)
        raise folder.FolderError(f"{home.path} belongs to another experiment ({pairs}); choose a new --workdir")
    summary = home.read_json("summary.json")
    if there is not None and summary is not None:
        loop.say(f"this experiment is complete; another needs another --workdir: {home.path}")
        print(json.dumps(summary))
        return 0
    if (home.path / "run.json").exists():
        raise folder.FolderError(f"{home.path} holds a training run; choose a new --workdir")
    flags.start_cache()
    home.write_json("options.json", here)
    lesson = Lesson(home, options)
    found = experiment(lesson)
    line = [f"--{key}={value}" for key, value in options.items() if value is not None]
    command = f"python -m experiments.{name} {shlex.join([*line, f'--workdir={WORKDIR.value}'])}"
    home.write_json("lesson.json", {**found._asdict(), "figures": lesson.figures, "command": command})
    numbers = {"experiment": name, **found.numbers, "workdir": str(home.path)}
    home.write_json("summary.json", numbers)
    loop.say(f"figures: {pathlib.Path(home.path, 'figures')}")
    print(json.dumps(numbers))
    return 0
