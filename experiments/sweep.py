"""Trains a grid of classifiers, each in its own workdir.

python -m experiments.sweep --workdir=W --grid="learning_rate=0.1,0.01 seed=0..4" -- --model=mlp --steps=500
"""

import csv
import dataclasses
import io
import json
import pathlib
import shlex
import sys

from experiments.cli import app, options, subprocesses
from experiments.cli.app import require
from experiments.cli.config import ClassifyConfig
from experiments.cli.options import option
from experiments.reporting import sweep_table
from experiments.setup import finished_run
from train.workdir import Workdir, WorkdirError, write_atomically

OWN = "--workdir and --dry_run are not allowed after the --; the sweep sets each run's --workdir"


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Sweep"""

    workdir: str = option(
        None, "Folder of the sweep; each run gets a subfolder.", needed="the folder of the sweep", path=True
    )
    grid: str = option("", 'The grid, such as "learning_rate=0.1,0.01 seed=0..4".')
    print_commands: bool = option(False, "Only print the commands, one per line.")


def _dry_run(arguments: list[str]) -> bool:
    """Whether classify would get --dry_run, for example from a --flagfile."""
    try:
        return options.from_arguments(ClassifyConfig, arguments).dry_run
    except (OSError, ValueError):  # classify reports the bad flag.
        return False


def main(config: SweepConfig, classify_flags: list[str]) -> int:
    own = any(flag.lstrip("-").split("=")[0] in ("workdir", "dry_run") for flag in classify_flags)
    require(not own, OWN)
    points = sweep_table.points(config.grid)
    given = {flag.lstrip("-").split("=")[0] for flag in classify_flags if flag.startswith("-")}
    twice = [name for name in points[0] if given & {name, f"no{name}"}]
    require(not twice, f"--{' --'.join(twice)} after the -- has no effect: --grid sets its value in each run")
    runs = []
    for point in points:
        run = pathlib.Path(config.workdir, ",".join(f"{name}={value}" for name, value in point.items()))
        own_flags = [f"--{name}={value}" for name, value in point.items()]
        runs.append([*classify_flags, *own_flags, f"--workdir={run}"])
    require(not _dry_run(runs[0]), OWN)
    if config.print_commands:
        print("\n".join(shlex.join([sys.executable, "-m", "experiments.classify", *run]) for run in runs))
        return 0
    workdir = Workdir(config.workdir)
    if (workdir.path / "run.json").exists():
        raise WorkdirError(f"{workdir.path} contains a single run; choose a new --workdir")
    rows, failed, stopped = [], 0, 0
    checked: finished_run.Finished | None = None  # A run whose stored data set classify has verified.
    for i, (point, arguments) in enumerate(zip(points, runs, strict=True), 1):
        print(f"{i}/{len(points)}  {' '.join(f'{k}={v}' for k, v in point.items())}", file=sys.stderr, flush=True)
        place = {"workdir": arguments[-1].removeprefix("--workdir=")}  # A finished run may have been moved.
        finished = finished_run.read(arguments)
        if checked and finished and finished_run.on_same_data(checked, finished):
            print(f"run already complete in {place['workdir']}", file=sys.stderr, flush=True)
            rows.append(point | finished.summary | place)
            continue
        done = subprocesses.run("classify", *arguments)
        if done.status == 0:
            checked = checked or finished or finished_run.read(arguments)
            rows.append(point | json.loads(done.output.splitlines()[-1]) | place)
        elif done.status == 2 or done.status > 128:  # A bad flag would fail in all further runs.
            stopped = done.status
        else:
            failed += 1
        if done.signalled:  # Also if the run was about to end and ended as usual.
            stopped = 128 + done.signalled
        if stopped:
            break
    if rows:
        results = sweep_table.table(rows, list(points[0]))
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)  # Metrics may differ between data sets.
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(workdir.path / "sweep.csv", text.getvalue())
        sweep_table.draw(workdir.path, rows, results)
        sweep_table.curves(workdir.path, rows, list(points[0]))
        for setting, seeds, mean, spread in results:
            deviation = f"± {100 * spread:.2f} %  ({seeds} runs)" if seeds > 1 else "%  (1 run)"
            print(f"{setting:<40} {100 * mean:6.2f} {deviation}")
        if any(row["split"] == "test" for row in rows):
            note = "these are test accuracies; to choose a setting, compare validation accuracies (--val_fraction)"
            print(note, file=sys.stderr)
        print(f"table: {workdir.path / 'sweep.csv'}, figures: sweep.png, sweep_curves.png", file=sys.stderr)
    if failed:
        print(f"error: {failed} of {len(points)} runs failed; the same command retries them", file=sys.stderr)
    return stopped or (1 if failed else 0)


if __name__ == "__main__":
    app.run(main, SweepConfig, positional=True)
