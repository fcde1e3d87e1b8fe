"""The grid points of a sweep, its result table over seeds, and its figures."""

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
    """Parses --grid and returns its points in order. Raises UsageError for invalid text."""
    axes: dict[str, list[str]] = {}
    try:
        parts = shlex.split(grid)
    except ValueError as error:
        raise UsageError(f"--grid={grid}: {error}") from None
    for part in parts:
        name, equals, text = part.partition("=")
        if not (equals and text and re.fullmatch(r"[a-z]\w*", name)) or name in (*axes, "workdir", "dry_run"):
            raise UsageError(f"--grid: can't parse {part!r}; must be name=value,value or name=first..last")
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
        if span and int(span[2]) - int(span[1]) >= 10_000:
            raise UsageError(f"--grid: {part!r} has more than 10,000 values")
        axes[name] = [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else text.split(",")
        if len(set(axes[name])) < len(axes[name]):
            raise UsageError(f"--grid: {part!r} contains a value twice")
        if not axes[name] or any(not re.fullmatch(r"[\w.+-]+", value) for value in axes[name]):
            raise UsageError(f"--grid: can't parse {part!r}; values must be numbers or words, ranges must be ascending")
    if not axes:
        raise UsageError('--grid="name=value,value ..." must be given')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _split(rows: list[dict]) -> str:
    """The splits that the runs were evaluated on; more than one if data sets differ."""
    return ", ".join(dict.fromkeys(row["split"] for row in rows))


def setting(row: dict, names: list[str]) -> str:
    """The row's setting: its grid values without the seed."""
    return " ".join(f"{name}={row[name]}" for name in names if name != "seed") or "all"


def table(rows: list[dict], names: list[str]) -> list[list]:
    """Rows [setting, number of seeds, mean accuracy, standard deviation], one per setting."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(setting(row, names), []).append(row["accuracy"])
    return [[key, len(v), statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0] for key, v in groups.items()]


def _title(rows: list[dict], *, several: bool) -> str:
    return "Mean and standard deviation over seeds" if several else f"Accuracy on {_split(rows)}"


@contextlib.contextmanager
def _figure(path: pathlib.Path, *, height: float, title: str) -> Iterator[Any]:
    """A context that yields the axes of a single-panel figure in the reports' style and saves it at the end."""
    import matplotlib

    from experiments.reporting import figures

    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=height)
        yield figure.add_subplot()
        figure.suptitle(figures.wrapped(title, 48), x=0.02, ha="left", fontsize=13, fontweight="bold")
        figures.save_figure(figure, path)


def curves(workdir: pathlib.Path, rows: list[dict], names: list[str]) -> None:
    """Writes sweep_curves.png: for each setting the mean accuracy over seeds on the evaluated split, over the steps,
    with a band of one standard deviation. A step is shown if all runs of the setting were evaluated at it. Runs whose
    metrics.csv is missing or damaged are skipped."""
    from experiments.reporting import report

    runs: dict[str, list[dict[float, float]]] = {}
    for row in rows:
        path = pathlib.Path(row["workdir"]) / "metrics.csv"
        try:
            metrics = report.read_metrics(path)
            points = {r["step"] or 0: 100 * r["eval_accuracy"] for r in metrics if r["eval_accuracy"] is not None}
        except (OSError, ValueError, KeyError):  # KeyError: different columns.
            print(f"{path} can't be read: this run is missing from sweep_curves.png", file=sys.stderr)
            continue
        runs.setdefault(setting(row, names), []).append(points)
    several = any(len(seeds) > 1 for seeds in runs.values())
    title = _title(rows, several=several)
    with _figure(workdir / "sweep_curves.png", height=4.2, title=title) as axes:
        for i, (name, seeds) in enumerate(runs.items()):
            steps = sorted(set.intersection(*map(set, seeds)))
            values = [[points[step] for points in seeds] for step in steps]
            means = [statistics.mean(each) for each in values]
            axes.plot(steps, means, marker=".", color=f"C{i % 10}", label=name)
            if len(seeds) > 1:
                spreads = [statistics.stdev(each) for each in values]
                low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=f"C{i % 10}", alpha=0.2, linewidth=0)
        axes.set_xlabel("step")
        axes.set_ylabel(f"{_split(rows)} accuracy, %")
        if len(runs) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # Outside, so that it does not hide the curves.


def draw(workdir: pathlib.Path, rows: list[dict], results: list[list]) -> None:
    """Writes sweep.png: mean accuracy and standard deviation of each setting."""
    several = max(row[1] for row in results) > 1
    title = _title(rows, several=several)
    with _figure(workdir / "sweep.png", height=1.6 + 0.4 * len(results), title=title) as axes:
        means, spreads = [100 * row[2] for row in results], [100 * row[3] for row in results]
        axes.errorbar(means, range(len(results)), xerr=spreads, fmt="o", capsize=4)
        axes.set_yticks(range(len(results)), [row[0] for row in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel(f"{_split(rows)} accuracy, %")
