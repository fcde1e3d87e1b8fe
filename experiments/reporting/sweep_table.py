"""The points of a sweep, its table over seeds and its figures."""

import contextlib
import itertools
import pathlib
import re
import shlex
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from experiments.cli.app import UsageError


def points(grid: str) -> list[dict[str, str]]:
    """The grid's points in order. Raises UsageError for what it can't read."""
    axes: dict[str, list[str]] = {}
    try:
        parts = shlex.split(grid)
    except ValueError as error:
        raise UsageError(f"--grid={grid}: {error}") from None
    for part in parts:
        name, equals, text = part.partition("=")
        if not (equals and text and re.fullmatch(r"[a-z]\w*", name)) or name in (*axes, "workdir", "dry_run"):
            raise UsageError(f"--grid: cannot read {part!r}; must be name=value,value or name=first..last")
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
        if span and int(span[2]) - int(span[1]) >= 10_000:
            raise UsageError(f"--grid: {part!r} has more than 10,000 values")
        axes[name] = [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else text.split(",")
        if len(set(axes[name])) < len(axes[name]):
            raise UsageError(f"--grid: {part!r} names a value twice")
        if not axes[name] or any(not re.fullmatch(r"[\w.+-]+", value) for value in axes[name]):
            raise UsageError(f"--grid: cannot read {part!r}; values are numbers or words, a range goes upwards")
    if not axes:
        raise UsageError('--grid="name=value,value ..." is needed')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _split(rows: list[dict]) -> str:
    """The splits that the runs were evaluated on; several where data sets differ."""
    return ", ".join(dict.fromkeys(row["split"] for row in rows))


def setting(row: dict, names: list[str]) -> str:
    """What tells the row from others, but for the seed."""
    return " ".join(f"{name}={row[name]}" for name in names if name != "seed") or "all"


def table(rows: list[dict], names: list[str]) -> list[list]:
    """[setting, seeds, mean accuracy, standard deviation] for each setting of all but the seed."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(setting(row, names), []).append(row["accuracy"])
    return [[key, len(v), statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0] for key, v in groups.items()]


@contextlib.contextmanager
def _figure(path: pathlib.Path, *, height: float, title: str) -> Iterator[Any]:
    """The axes of a figure of one panel, in the reports' style; drawn into, it is saved."""
    import matplotlib

    from experiments.reporting import figures

    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=height)
        yield figure.add_subplot()
        figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
        figures.save_figure(figure, path)


def curves(workdir: pathlib.Path, rows: list[dict], names: list[str]) -> None:
    """sweep_curves.png: accuracy on the evaluated split over the steps, a line for each run, a colour for each
    setting. A run whose metrics.csv has been lost or damaged since is left out."""
    from experiments.reporting import report

    with _figure(workdir / "sweep_curves.png", height=4.2, title=f"Accuracy on {_split(rows)}") as axes:
        colours: dict[str, str] = {}
        for row in rows:
            name = setting(row, names)
            path = pathlib.Path(row["workdir"]) / "metrics.csv"
            try:
                metrics = report.read_metrics(path)
                points = [(r["step"], 100 * r["eval_accuracy"]) for r in metrics if r["eval_accuracy"] is not None]
            except (OSError, ValueError, KeyError):  # The last where it has other columns.
                print(f"{path} can't be read: sweep_curves.png lacks this run", file=sys.stderr)
                continue
            label = None if name in colours else name
            colours.setdefault(name, f"C{len(colours) % 10}")
            axes.plot(*zip(*points, strict=True), marker=".", color=colours[name], label=label)
        axes.set_xlabel("step")
        axes.set_ylabel(f"{_split(rows)} accuracy, %")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # Beside the curves, whose ends it would hide.


def draw(workdir: pathlib.Path, rows: list[dict], results: list[list]) -> None:
    """sweep.png: mean accuracy and standard deviation of each setting."""
    several = max(row[1] for row in results) > 1
    title = "Mean and standard deviation over seeds" if several else f"Accuracy on {_split(rows)}"
    with _figure(workdir / "sweep.png", height=1.6 + 0.4 * len(results), title=title) as axes:
        means, spreads = [100 * row[2] for row in results], [100 * row[3] for row in results]
        axes.errorbar(means, range(len(results)), xerr=spreads, fmt="o", capsize=4)
        axes.set_yticks(range(len(results)), [row[0] for row in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel(f"{_split(rows)} accuracy, %")
