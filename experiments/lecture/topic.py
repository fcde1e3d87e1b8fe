"""An experiment of the lecture: its flags, its folder, what was computed already, its figures, what it found.

    W/pieces/*.json     finished parts, by name; started again, the experiment goes on behind them
    W/figures/*.png     its figures
    W/lesson.json       what the lecture's page shows: title, text, formula, figures, tables, numbers, command
    W/summary.json      the numbers: the last line of standard output

An experiment ends with `lesson.main(NAME, experiment, OPTIONS)` with `experiment(lesson) -> Found` and OPTIONS, name ->
(default, help), its flags beside --workdir and --seeds. They are defined there alone: a module can be imported beside
another that has flags of the same names.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from absl import flags as absl_flags

from data import batches
from experiments.cli import flags
from experiments.reporting import figures, report
from train.messages import say
from train.task import Task
from train.tasks import classification
from train.workdir import Workdir, WorkdirError

SEEDS = (3, "How many seeds, from 0 on, a claimed difference is measured over.")
DEFINE: dict[type, Any] = {
    int: absl_flags.DEFINE_integer,
    float: absl_flags.DEFINE_float,
    str: absl_flags.DEFINE_string,
}


def _digest(found) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


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

    def __init__(self, home: Workdir, options: dict[str, Any], name: str = ""):
        self.home, self.options, self.seeds, self.name = home, options, range(options["seeds"]), name
        self.figures: list[tuple[str, str, str]] = []

    def claim(self) -> None:
        """Makes the folder this experiment's: not before its flags are known to be good."""
        self.home.write_json("options.json", {"experiment": self.name, **self.options})

    def piece(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()`, or what an earlier start got from it. It gives what JSON can hold; arrays go through tolist."""
        if not re.fullmatch(r"[a-z0-9_.-]+", name):
            raise ValueError(f"piece {name!r}: lower-case letters, digits, _, . and - are accepted")
        place = self.home.path / "pieces"
        kept = self.home.read_json(f"pieces/{name}.json")
        if kept is None:
            self.claim()
            say(name)
            place.mkdir(exist_ok=True)
            found = json.loads(json.dumps(make()))
            self.home.write_json(f"pieces/{name}.json", {"found": found, "sha256": _digest(found)})
            return found
        if "found" not in kept or kept.get("sha256") != _digest(kept["found"]):
            raise WorkdirError(f"{place / name}.json is damaged: without it, it is computed again")
        return kept["found"]

    def figure(self, name: str, figure, *, title: str, caption: str) -> None:
        """Keeps a matplotlib figure as figures/NAME.png."""
        place = self.home.path / "figures"
        place.mkdir(exist_ok=True)
        figures.save_figure(figure, place / f"{name}.png")
        self.figures.append((name, title, caption))


def headline(figure, title: str, width: int = 48) -> None:
    """A figure's title over all its panels, in lines of `width` characters."""
    figure.suptitle(figures.wrapped(title, width), x=0.01, ha="left", fontsize=12, fontweight="bold")


def draw_spread(axes, x, values: np.ndarray, part: str, *, linestyle: Any = "-") -> np.ndarray:
    """A line through the mean of `values` [seeds, T] in the colour of figures.COLOURS, with a band of one standard
    deviation; the mean [T]."""
    mean, spread = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
    axes.plot(x, mean, color=figures.COLOURS[part], linestyle=linestyle)
    axes.fill_between(x, mean - spread, mean + spread, color=figures.COLOURS[part], alpha=0.2, linewidth=0)
    return mean


def lines(series, places, title: str, **axes_options):
    """`series` {label: (mean_and_std of a share by place, part of figures.COLOURS, line style)} as lines in percent,
    each with its standard deviation and with its label at its end."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.9)
        axes = figure.add_subplot(**axes_options)
        axes.set_title(figures.wrapped(title))
        for values, colour, style in series.values():
            mean, spread = ([100 * value[key] for value in values] for key in ("mean", "std"))
            axes.errorbar(places, mean, spread, fmt="o", linestyle=style, color=figures.COLOURS[colour], capsize=3)
        axes.set_ylim(bottom=0)
        figure.draw_without_rendering()  # The labels' distances are in points of the finished layout.
        ends = [(100 * values[-1]["mean"], label, colour) for label, (values, colour, _) in series.items()]
        figures.label_ends(axes, ends, gap=max(16.0 * (1 + label.count("\n")) for label in series))
    return figure


def create(model, optimizer, *, image_shape, class_names, prepare: Callable) -> Task:
    """The classification task of a network whose input is `prepare(images)` in training and in evaluation."""
    return classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=image_shape,
        class_names=class_names,
        train_prepare=lambda images, keys: prepare(images),
        eval_prepare=prepare,
        axis=None,
    )


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
        if watch is not None and (done == 0 or (done == steps or (every > 0 and done % every == 0))):
            watch(done, state)
        if done == steps:
            return state
        state, sums = step(state, next(source))
        if done % 20 == 0:
            jax.block_until_ready(sums)
            if not np.isfinite(float(sums["loss"])):
                raise FloatingPointError(f"the loss is {float(sums['loss'])} at step {done + 1}")


def main(
    name: str, experiment: Callable[[Lesson], Found], options: Mapping[str, tuple[Any, str]] | None = None
) -> None:
    """The whole command: flags, folder, experiment, what it leaves behind."""
    taken = {"seeds": SEEDS} | dict(options or {})
    absl_flags.DEFINE_string("workdir", None, "Folder of the experiment; started again in it, it goes on.")
    for option, (default, text) in taken.items():
        DEFINE[type(default)](option, default, text)

    def command(argv) -> int:
        if len(argv) > 1:
            raise flags.UsageError(f"unexpected argument {argv[1]!r}; {name} takes flags alone")
        values = absl_flags.FLAGS.flag_values_dict()
        return run(name, experiment, workdir=values["workdir"], options={option: values[option] for option in taken})

    flags.run(command)


def run(name: str, experiment: Callable[[Lesson], Found], *, workdir: str | None, options: dict[str, Any]) -> int:
    """Runs or goes on with an experiment in its folder; the exit status."""
    if not workdir:
        raise flags.UsageError("--workdir=FOLDER is needed: the experiment is kept there")
    for option, value in options.items():
        flags.require(value is not None, f"--{option} needs a value")
        flags.require(isinstance(value, str) or value > 0, f"--{option}={value}: must be more than 0")
        small = not isinstance(value, int) or value < 2**31
        flags.require(small, f"--{option}={value}: accepted are 1 to {2**31 - 1}")
    flags.require(options["seeds"] <= 100, f"--seeds={options['seeds']}: accepted are 1 to 100")
    with contextlib.closing(Workdir(workdir)) as home:
        try:
            return _in_folder(home, name, experiment, options=options)
        except flags.UsageError:
            home.remove_if_made()
            raise


def _shown(home: Workdir) -> bool:
    """Whether what the lecture's page needs is there; if not, it is drawn again from the pieces."""
    try:
        names = [name for name, _, _ in json.loads((home.path / "lesson.json").read_text())["figures"]]
        return all(is_png(home.path / "figures" / f"{name}.png") for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_png(path: pathlib.Path) -> bool:
    return path.is_file() and path.read_bytes()[:8] == report.PNG_START


def _in_folder(home: Workdir, name: str, experiment, *, options: dict[str, Any]) -> int:
    there = home.read_json("options.json")
    here = {"experiment": name, **options}
    if there not in (None, here):
        differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        pairs = "; ".join(f"--{key}: {there.get(key)} there, {here.get(key)} here" for key in differing)
        raise WorkdirError(f"{home.path} belongs to another experiment ({pairs}); choose a new --workdir")
    summary = home.read_json("summary.json")
    if there is not None and summary is not None and _shown(home):
        say(f"this experiment is complete; another needs another --workdir: {home.path}")
        print(json.dumps(summary))
        return 0
    if (home.path / "run.json").exists():
        raise WorkdirError(f"{home.path} holds a training run; choose a new --workdir")
    flags.start_cache()
    lesson = Lesson(home, options, name)
    found = experiment(lesson)
    if options["seeds"] == 1:
        found = found._replace(text=[*found.text, "This is one seed alone: it says nothing about chance."])
    lesson.claim()
    line = [f"--{key}={value}" for key, value in options.items()]
    command = f"python -m experiments.lecture.{name} {shlex.join(line)} --workdir=NEW"
    home.write_json("lesson.json", {**found._asdict(), "figures": lesson.figures, "command": command})
    numbers = {"experiment": name, **found.numbers, "workdir": str(home.path)}
    home.write_json("summary.json", numbers)
    say(f"figures: {pathlib.Path(home.path, 'figures')}")
    print(json.dumps(numbers))
    return 0
