"""A grid of runs, one workdir each.

python -m experiments.sweep --workdir=W --grid="learning_rate=0.1,0.01 seed=0..4" -- --model=mlp --steps=500
"""

import csv
import io
import json
import pathlib
import shlex
import sys

from absl import flags as absl_flags

from experiments.cli import flags, subprocesses
from experiments.reporting import sweep_table
from train import workdir

WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the sweep; each point's run is a folder in it.")
GRID = absl_flags.DEFINE_string("grid", None, 'The grid, as "learning_rate=0.1,0.01 seed=0..4".')
PRINT = absl_flags.DEFINE_bool("print_commands", False, "Only print the commands, one a line.")


def main(argv) -> int:
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the runs are kept there")
    if any(flag.lstrip("-").split("=")[0] in ("workdir", "dry_run") for flag in argv[1:]):
        raise flags.UsageError("--workdir and --dry_run are the sweep's own: give them before the --, or not at all")
    points = sweep_table.points(GRID.value or "")
    runs = []
    for point in points:
        run = pathlib.Path(WORKDIR.value, ",".join(f"{name}={value}" for name, value in point.items()))
        own = [f"--{name}={value}" for name, value in point.items()]
        runs.append([*argv[1:], *own, f"--workdir={run}"])
    if PRINT.value:
        print("\n".join(shlex.join([sys.executable, "-m", "experiments.classify", *run]) for run in runs))
        return 0
    home = workdir.Workdir(WORKDIR.value)
    rows, failed, stopped = [], 0, 0
    for i, (point, arguments) in enumerate(zip(points, runs, strict=True), 1):
        print(f"{i}/{len(points)}  {' '.join(f'{k}={v}' for k, v in point.items())}", file=sys.stderr, flush=True)
        done = subprocesses.run("classify", *arguments)
        if done.status == 2 or done.status > 128:  # A bad flag is mended before more is run.
            stopped = done.status
            break
        if done.status:
            failed += 1
            continue
        place = {"workdir": arguments[-1].removeprefix("--workdir=")}  # A finished run may have been moved since.
        rows.append(point | json.loads(done.output.splitlines()[-1]) | place)
    if rows:
        results = sweep_table.table(rows, list(points[0]))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        workdir.write_atomically(home.path / "sweep.csv", text.getvalue())
        sweep_table.picture(home.path, results)
        sweep_table.curves(home.path, rows, list(points[0]))
        for setting, seeds, mean, spread in results:
            deviation = f"± {100 * spread:.2f} %  ({seeds} runs)" if seeds > 1 else "%  (1 run)"
            print(f"{setting:<40} {100 * mean:6.2f} {deviation}")
        print(f"table: {home.path / 'sweep.csv'}, pictures: sweep.png, sweep_curves.png", file=sys.stderr)
    if failed:
        print(f"error: {failed} of {len(points)} runs failed; the same command tries them again", file=sys.stderr)
    return stopped or (1 if failed else 0)


if __name__ == "__main__":
    flags.run(main)
