"""A grid of runs, one workdir each.

python -m experiments.sweep --workdir=W --grid="learning_rate=0.1,0.01 seed=0..4" -- --model=mlp --steps=500
"""

import csv
import io
import itertools
import json
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys

from absl import flags as absl_flags

from experiments import flags
from train import folder

WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the sweep; each point's run is a folder in it.")
GRID = absl_flags.DEFINE_string("grid", None, 'The grid, as "learning_rate=0.1,0.01 seed=0..4".')
PRINT = absl_flags.DEFINE_bool("print_commands", False, "Only print the commands, one a line.")


def points(grid: str) -> list[dict[str, str]]:
    """The grid's points in order. Raises UsageError for what it can't read."""
    axes: dict[str, list[str]] = {}
    try:
        parts = shlex.split(grid)
    except ValueError as error:
        raise flags.UsageError(f"--grid={grid}: {error}") from None
    for part in parts:
        name, equals, text = part.partition("=")
        if not (equals and text and re.fullmatch(r"[a-z]\w*", name)) or name in (*axes, "workdir", "dry_run"):
            raise flags.UsageError(f"--grid: cannot read {part!r}; accepted is name=value,value or name=first..last")
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", text)
        if span and int(span[2]) - int(span[1]) >= 10_000:
            raise flags.UsageError(f"--grid: {part!r} has more than 10,000 values")
        axes[name] = [str(i) for i in range(int(span[1]), int(span[2]) + 1)] if span else text.split(",")
        if len(set(axes[name])) < len(axes[name]):
            raise flags.UsageError(f"--grid: {part!r} names a value twice")
        if not axes[name] or any(not re.fullmatch(r"[\w.+-]+", value) for value in axes[name]):
            raise flags.UsageError(f"--grid: cannot read {part!r}; values are numbers or words, a range goes upwards")
    if not axes:
        raise flags.UsageError('--grid="name=value,value ..." is needed')
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def table(rows: list[dict], names: list[str]) -> list[list]:
    """[setting, seeds, mean accuracy, standard deviation] for each setting of all but the seed."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        setting = " ".join(f"{name}={row[name]}" for name in names if name != "seed") or "all"
        groups.setdefault(setting, []).append(row["accuracy"])
    return [[key, len(v), statistics.mean(v), statistics.stdev(v) if len(v) > 1 else 0.0] for key, v in groups.items()]


def picture(home: pathlib.Path, results: list[list]) -> None:
    from train import figures

    figure = figures.new_figure(height=1.2 + 0.4 * len(results))
    axes = figure.add_subplot()
    means, spreads = [100 * row[2] for row in results], [100 * row[3] for row in results]
    axes.errorbar(means, range(len(results)), xerr=spreads, fmt="o", capsize=4)
    axes.set_yticks(range(len(results)), [row[0] for row in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlabel("test accuracy, % (bar: one standard deviation over seeds)")
    figures.save_figure(figure, home / "sweep.png")


def main(argv) -> int:
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the runs are kept there")
    if any(flag.lstrip("-").split("=")[0] in ("workdir", "dry_run") for flag in argv[1:]):
        raise flags.UsageError("--workdir and --dry_run are the sweep's own: give them before the --, or not at all")
    grid = points(GRID.value or "")
    commands = []
    for point in grid:
        run = pathlib.Path(WORKDIR.value, ",".join(f"{name}={value}" for name, value in point.items()))
        own = [f"--{name}={value}" for name, value in point.items()]
        commands.append([sys.executable, "-m", "experiments.classify", *argv[1:], *own, f"--workdir={run}"])
    if PRINT.value:
        print("\n".join(shlex.join(["python", *command[1:]]) for command in commands))
        return 0
    home = folder.RunFolder(WORKDIR.value)
    rows, failed = [], 0
    for i, (point, command) in enumerate(zip(grid, commands, strict=True), 1):
        print(f"{i}/{len(grid)}  {' '.join(f'{k}={v}' for k, v in point.items())}", file=sys.stderr, flush=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            # The sweep's own signals go to the run, which saves and ends; the sweep ends with the run's status.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, frame: process.send_signal(number))  # noqa: B023
            output, _ = process.communicate()
            done = subprocess.CompletedProcess(command, process.returncode, output)
        if done.returncode in (2, 130, 143) or done.returncode < 0:  # A bad flag is bad in every run.
            return done.returncode if done.returncode > 0 else 128 - done.returncode
        if done.returncode:
            failed += 1
            continue
        rows.append(point | json.loads(done.stdout.splitlines()[-1]))
    if rows:
        results = table(rows, list(grid[0]))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        folder.write_atomically(home.path / "sweep.csv", text.getvalue())
        picture(home.path, results)
        for setting, seeds, mean, spread in results:
            print(f"{setting:<40} {100 * mean:6.2f} ± {100 * spread:.2f} %  ({seeds} runs)")
    if failed:
        print(f"error: {failed} of {len(grid)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    flags.run(main)
