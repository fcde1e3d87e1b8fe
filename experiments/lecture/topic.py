"""Infrastructure shared by the lecture's topics: flags, working directory, cached results, figures and result.

    W/pieces/*.json     cached results, one file per `Topic.cached` call, reused when the command is repeated
    W/figures/*.png     the figures
    W/lesson.json       the topic's section of the lecture page; its constant part is lessons/NAME.md
    W/options.json      the flags that the topic was started with
    W/summary.json      the numbers, also printed as the last line of standard output

A topic's module ends with `topic.main(NAME, experiment, OPTIONS)`. `experiment(this_topic: Topic) -> TopicResult`
computes the topic, and OPTIONS, a dict from name to (default, help), lists its flags other than --workdir and --seeds.
A topic without OPTIONS is deterministic and has no --seeds. Flags are defined only in `main`, so that modules whose
flags have the same names can be imported together.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from experiments.cli.options import option
from experiments.lecture.guess import Guess
from experiments.lecture.runs import ONE_SEED
from experiments.reporting import figures, report
from train.messages import say
from train.task import Task
from train.tasks import classification
from train.workdir import Workdir, WorkdirError

SEEDS = (3, "Number of random seeds, starting at 0, over which results are averaged.")
BOUNDS = {int: f"[1, {2**31 - 1}]", float: "(0, inf)", str: None}


def _digest(result) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


class TopicResult(NamedTuple):
    """The result of a topic.

    `text` is a sequence of paragraphs for students, `numbers` is the content of summary.json, each table is (title,
    header, rows), and `widgets` maps the name of a widget in lessons/NAME.md to its data, which must be
    JSON-serializable.
    """

    text: Sequence[str]
    numbers: dict[str, Any]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()
    guesses: Sequence[Guess] = ()
    widgets: Mapping[str, Any] = {}


class Topic:
    """A started topic: its working directory, its flags as `options` by name, its seeds and its figures."""

    def __init__(self, workdir: Workdir, options: dict[str, Any], name: str = ""):
        self.workdir, self.options, self.name = workdir, options, name
        self.seeds = range(options.get("seeds", 0))
        self.figures: list[tuple[str, str, str]] = []

    def claim(self) -> None:
        """Writes options.json, which reserves the working directory for this topic. Call it once the flags are known to
        be valid."""
        self.workdir.write_json("options.json", {"experiment": self.name, **self.options})

    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns `compute()`, or its result from an earlier run, stored in pieces/NAME.json.

        The result must be JSON-serializable; convert arrays with `tolist`. Raises WorkdirError if the stored result is
        damaged.
        """
        if not re.fullmatch(r"[a-z0-9_.-]+", name):
            raise ValueError(f"result name {name!r} may contain only lower-case letters, digits, '_', '.' and '-'")
        folder = self.workdir.path / "pieces"
        try:
            stored = self.workdir.read_json(f"pieces/{name}.json")
        except WorkdirError as error:
            raise WorkdirError(f"{error}; delete it to recompute the result") from None
        if stored is None:
            self.claim()
            say(name)
            folder.mkdir(exist_ok=True)
            result = json.loads(json.dumps(compute()))
            self.workdir.write_json(f"pieces/{name}.json", {"found": result, "sha256": _digest(result)})
            return result
        if "found" not in stored or stored.get("sha256") != _digest(stored["found"]):
            raise WorkdirError(f"{folder / name}.json is damaged; delete it to recompute the result")
        return stored["found"]

    def over_seeds(self, statistics: str = "mean ± standard deviation") -> str:
        """Says what numbers formatted by `number` are: "mean ± standard deviation over 3 seeds"."""
        return f"{statistics} over {len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"

    def number(self, value: Mapping[str, float], scale: float = 1, places: int = 2) -> str:
        """Formats `scale` times a `mean_and_std` as "0.19 ± 0.01"; of one seed the standard deviation is unknown."""
        if len(self.seeds) > 1:
            return f"{scale * value['mean']:.{places}f} ± {scale * value['std']:.{places}f}"
        return f"{scale * value['mean']:.{places}f}"

    def percent(self, value: Mapping[str, float], places: int = 1) -> str:
        """Formats a `mean_and_std` of fractions as "96.0 ± 0.9 %"."""
        return f"{self.number(value, 100, places)} %"

    def figure(self, name: str, figure, *, title: str, caption: str) -> None:
        """Saves a matplotlib figure as figures/NAME.png."""
        folder = self.workdir.path / "figures"
        folder.mkdir(exist_ok=True)
        figures.save_figure(figure, folder / f"{name}.png")
        self.figures.append((name, title, caption))


def headline(figure, title: str, width: int = 48) -> None:
    """Sets a title above all panels of a figure, wrapped to `width` characters."""
    figure.suptitle(figures.wrapped(title, width), x=0.01, ha="left", fontsize=12, fontweight="bold")


def draw_spread(
    axes, x, values: np.ndarray, part: str, *, linestyle: Any = "-", label: str | None = None
) -> np.ndarray:
    """Plots the mean over seeds of `values` [seeds, T] with a band of one standard deviation; returns the mean [T].
    `part` is a key of figures.COLOURS, `label` the line's legend label."""
    mean, spread = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
    axes.plot(x, mean, color=figures.COLOURS[part], linestyle=linestyle, label=label)
    axes.fill_between(x, mean - spread, mean + spread, color=figures.COLOURS[part], alpha=0.2, linewidth=0)
    return mean


def lines(series, places, title: str, **axes_options):
    """Plots fractions in percent, one labeled line with error bars per entry of `series`.

    `series` maps a label to (one `mean_and_std` per x position in `places`, key of figures.COLOURS, line style).
    """
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.9)
        axes = figure.add_subplot(**axes_options)
        axes.set_title(figures.wrapped(title))
        for values, colour, style in series.values():
            mean, spread = ([100 * value[key] for value in values] for key in ("mean", "std"))
            axes.errorbar(places, mean, spread, fmt="o", linestyle=style, color=figures.COLOURS[colour], capsize=3)
        axes.set_ylim(bottom=0)
        figure.draw_without_rendering()  # Label distances are in points of the final layout.
        ends = [(100 * values[-1]["mean"], label, colour) for label, (values, colour, _) in series.items()]
        figures.label_ends(axes, ends, gap=max(16.0 * (1 + label.count("\n")) for label in series))
    return figure


def create(model, optimizer, *, image_shape, class_names, prepare: Callable) -> Task:
    """A classification task whose network input is `prepare(images)` in both training and evaluation."""
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
    """The mean over seeds and the sample standard deviation, 0 for a single seed."""
    values = np.asarray(values, np.float64)
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}


def config_class(options: Mapping[str, tuple[Any, str]]) -> type:
    """The dataclass of a topic's flags: --workdir, --seeds and `options`, name -> (default, help)."""
    fields: list[tuple[str, Any, Any]] = [
        (
            "workdir",
            str,
            option(None, "Folder of the topic. Repeat the command to resume.", needed="the folder", path=True),
        )
    ]
    for name, (default, text) in options.items():
        bounds = "[1, 100]" if name == "seeds" else BOUNDS[type(default)]
        fields.append((name, type(default), option(default, text, bounds)))
    return dataclasses.make_dataclass("Options", fields, frozen=True, namespace={"__doc__": "The topic"})


def flags_of(options: Mapping[str, tuple[Any, str]] | None) -> dict[str, tuple[Any, str]]:
    """The flags of a topic with these OPTIONS, other than --workdir; none without OPTIONS."""
    return {} if options is None else {"seeds": SEEDS} | dict(options)


def main(
    name: str, experiment: Callable[[Topic], TopicResult], options: Mapping[str, tuple[Any, str]] | None = None
) -> None:
    """Runs the topic as a command: parses its flags, then calls `run`."""
    defined = flags_of(options)

    def command(config) -> int:
        values = {option: getattr(config, option) for option in defined}
        return run(name, experiment, workdir=config.workdir, options=values)

    app.run(command, config_class(defined))


@contextlib.contextmanager
def resumable(workdir: Workdir):
    """On Ctrl-C, says that `Topic.cached` has saved the finished parts."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"{workdir.path}: finished parts are saved; the same command resumes the run")
        raise


def run(name: str, experiment: Callable[[Topic], TopicResult], *, workdir: str, options: dict[str, Any]) -> int:
    """Runs or resumes a topic in its working directory; returns the exit status."""
    with contextlib.closing(Workdir(workdir)) as opened, resumable(opened):
        try:
            return _run_in(opened, name, experiment, options=options)
        except app.UsageError:
            opened.remove_if_made()
            raise


def _is_shown(workdir: Workdir) -> bool:
    """Whether the files that the lecture page needs exist; if not, they are recreated from the cached results."""
    try:
        content = json.loads((workdir.path / "lesson.json").read_text())
        names = [name for name, _, _ in content["figures"]]
        return content.keys() >= set(TopicResult._fields) and all(
            is_png(workdir.path / "figures" / f"{name}.png") for name in names
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_png(path: pathlib.Path) -> bool:
    return path.is_file() and path.read_bytes()[:8] == report.PNG_START


def _run_in(workdir: Workdir, name: str, experiment, *, options: dict[str, Any]) -> int:
    stored = workdir.read_json("options.json")
    given = {"experiment": name, **options}
    if stored is not None and "seeds" not in options:
        stored.pop("seeds", None)  # Stored by an older version, in which it had no effect.
    if stored not in (None, given):
        differing = sorted(key for key in stored.keys() | given.keys() if stored.get(key) != given.get(key))
        pairs = "; ".join(f"--{key}={stored.get(key)} (stored), {given.get(key)} (given)" for key in differing)
        raise WorkdirError(f"{workdir.path} was created with different flags: {pairs}; use a new --workdir")
    summary = workdir.read_json("summary.json")
    if stored is not None and summary is not None and _is_shown(workdir):
        say(f"{workdir.path}: run already complete; use a new --workdir to start another")
        print(json.dumps(summary))
        return 0
    if (workdir.path / "run.json").exists():
        raise WorkdirError(f"{workdir.path} contains a training run; use a new --workdir")
    start_cache()
    topic = Topic(workdir, options, name)
    result = experiment(topic)
    if options.get("seeds") == 1:
        result = result._replace(text=[*result.text, ONE_SEED])
    topic.claim()
    line = [f"--{key}={value}" for key, value in options.items()]
    command = shlex.join(["python", "-m", f"experiments.lecture.{name}", *line, "--workdir=NEW"])
    workdir.write_json("lesson.json", {**result._asdict(), "figures": topic.figures, "command": command})
    numbers = {"experiment": name, **result.numbers, "workdir": str(workdir.path)}
    workdir.write_json("summary.json", numbers)
    say(f"figures: {pathlib.Path(workdir.path, 'figures')}")
    print(json.dumps(numbers))
    return 0
