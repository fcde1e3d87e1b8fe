"""Repeats a finished run and compares the results: python -m experiments.reproduce --run=W --workdir=NEW"""

import dataclasses
import json
import math
import pathlib
import re
import sys
from typing import Any

from experiments.cli import app, options, subprocesses
from experiments.cli.app import require
from experiments.cli.options import option
from train.workdir import WorkdirError

TIMES = ("seconds", "images_per_second")  # Columns of metrics.csv that differ between any two runs.


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Reproduction"""

    run: str = option(None, "Folder of the finished run to repeat.", needed="the folder of the finished run", path=True)
    workdir: str = option(None, "Folder of the new run.", needed="the folder of the new run", path=True)
    data_dir: str | None = option(None, "Folder of the data set, if it has been moved.", path=True)


def read_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a JSON file of a run's folder. Raises WorkdirError if it can't be read."""
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or (name == "summary.json" and "fingerprint" not in found):
        raise WorkdirError(f"{folder} does not contain a finished run: no readable {name}")
    return found


def read_rows(folder: pathlib.Path) -> list[dict[str, float | None]]:
    """Reads the rows of a run's metrics.csv. Raises WorkdirError if they can't be read."""
    from experiments.reporting import report

    try:
        rows = report.read_metrics(folder / "metrics.csv")
    except (OSError, ValueError):
        rows = []
    if not rows or any(row.get("step") is None for row in rows):  # A finished run has at least one row.
        raise WorkdirError(f"{folder} does not contain a finished run: no readable metrics.csv")
    return rows


def metric_differences(stored: dict, here: dict) -> dict[str, tuple[Any, Any]]:
    """The entries that differ between two summaries, by name; ignores times, workdir and fingerprint."""
    left_out = {"compile_seconds", "workdir", "fingerprint", *TIMES}
    names = [name for name in stored.keys() | here.keys() if name not in left_out]
    pairs = {name: (stored.get(name), here.get(name)) for name in sorted(names)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def first_different_step(stored: list[dict], here: list[dict]) -> int | None:
    """The first step at which the rows of metrics.csv differ, ignoring times; None if there is none."""
    tables = [
        {row["step"]: {k: v for k, v in row.items() if k not in TIMES and v is not None} for row in rows}
        for rows in (stored, here)
    ]
    steps = sorted(tables[0].keys() | tables[1].keys())
    return next((int(step) for step in steps if tables[0].get(step) != tables[1].get(step)), None)


def main(config: ReproduceConfig) -> int:
    from experiments.reporting import environment
    from experiments.setup import saved_run

    run, new = saved_run.read(config.run, flag="run"), pathlib.Path(config.workdir)
    stored_run, stored = (read_json(run.workdir, name) for name in ("run.json", "summary.json"))
    rows = read_rows(run.workdir)  # Fail before the new run, which may take hours.
    require(new.resolve() != run.workdir.resolve(), f"--workdir={new}: must differ from --run")

    # --- The same flags.
    changed: dict[str, Any] = {"workdir": config.workdir}
    if config.data_dir is not None:
        changed["data_dir"] = config.data_dir
    if "eval_split" not in stored_run:  # Older versions chose a different split if both test and val existed.
        changed["eval_split"] = run.eval_split
    devices = re.match(r"(\d+) cpu", str(stored_run.get("devices")))
    if run.config.devices is None and devices:  # On CPUs one process simulates the devices of all processes.
        changed["devices"] = int(devices[1])
    flags = options.flag_lines(dataclasses.replace(run.config, **changed))
    done = subprocesses.run(saved_run.COMMANDS[run.task], *flags)
    if done.status:
        return done.status

    # --- Compare.
    here_run, here = (read_json(new, name) for name in ("run.json", "summary.json"))
    metrics = metric_differences(stored, here)
    step = first_different_step(rows, read_rows(new))
    identical = stored.get("fingerprint") == here.get("fingerprint") and not metrics and step is None
    lines = environment.differences(stored_run, here_run)
    if identical:
        print(f"identical: parameters, metrics and the {len(rows)} rows of metrics.csv", file=sys.stderr)
    else:
        state = "equal" if stored.get("fingerprint") == here.get("fingerprint") else "different"
        where = "metrics.csv is equal" if step is None else f"metrics.csv differs first at step {step}"
        print(f"not identical: parameters {state}; {where}", file=sys.stderr)
        for name, (before, now) in metrics.items():
            numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (before, now))
            by = f", difference {now - before:.3g}" if numbers else ""
            print(f"  {name}: {before} (run), {now} (here){by}", file=sys.stderr)
        print(
            "differences in the environment:" if lines else "no known difference in the environment",
            file=sys.stderr,
        )
        for line in lines:
            print(f"  {line}", file=sys.stderr)
    found = {"identical": identical, "fingerprint": [stored.get("fingerprint"), here.get("fingerprint")]}
    found |= {"metrics": {name: list(pair) for name, pair in metrics.items()}, "first_different_step": step}
    print(json.dumps(found | {"environment": lines, "run": str(run.workdir), "workdir": config.workdir}))
    return 0 if identical else 1


if __name__ == "__main__":
    app.run(main, ReproduceConfig)
