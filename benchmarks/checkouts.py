"""Compares the step times of another checkout with this one's: python -m benchmarks.checkouts --before=FOLDER

FOLDER is another checkout, such as a git worktree of an earlier commit. Each of the two runs its steps in a persistent
process, in alternating turns of --seconds; the order changes from turn to turn. The machine's speed drifts, so the
ratio this / before of two consecutive turns is far more stable than the ratio of separate runs. The table has the
median and the quartiles of these ratios. A ratio below 1 means that this checkout is faster.
"""

import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from benchmarks import classifiers, stepper, twins
from experiments.cli import app
from train.messages import say

BEFORE = absl_flags.DEFINE_string("before", "", "Folder of the other checkout.")
TURNS = absl_flags.DEFINE_integer("turns", 20, "Turns of each checkout.", lower_bound=2)
absl_flags.set_default(classifiers.MODELS, ["mlp", "resnet20"])
absl_flags.set_default(twins.SECONDS, 1.0)
THIS = pathlib.Path(__file__).resolve().parents[1]


class CheckoutError(OSError):
    """A checkout's process has ended; reported as one line with exit status 1."""


class Steps:
    """A process that runs steps of one checkout on request."""

    def __init__(self, folder: pathlib.Path, process: subprocess.Popen, errors):
        self.folder, self.process, self.errors = folder, process, errors
        found = self._line()
        if pathlib.Path(found).resolve() != folder:
            raise CheckoutError(f"{folder}: its process imports the benchmarks of {found}")

    def _line(self) -> str:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or [f"exit status {self.process.wait()}"])[-1]
            raise CheckoutError(f"{self.folder}: {last}")
        return line.strip()

    def ms(self, steps: int) -> float:
        """The mean milliseconds per step, over `steps` steps."""
        print(steps, file=self.process.stdin, flush=True)
        return float(self._line())


@contextlib.contextmanager
def steps_of(folder: pathlib.Path, name: str) -> Iterator[Steps]:
    command = [sys.executable, "-P", str(stepper.__file__), f"--models={name}"]
    command += [f"--batch={twins.BATCH.value}"] if twins.BATCH.value else []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        ) as process,
    ):  # fmt: skip
        try:
            yield Steps(folder, process, errors)
        finally:
            process.kill()


def measure(name: str, before: pathlib.Path, *, turns: int, seconds: float) -> dict[str, Any]:
    """Returns one row of the table."""
    with steps_of(before, name) as other, steps_of(THIS, name) as this:
        steps = max(1, math.ceil(1e3 * seconds / min(other.ms(3), this.ms(3))))
        pairs = []
        for turn in range(turns):
            order = (other, this) if turn % 2 == 0 else (this, other)
            ms = {one: one.ms(steps) for one in order}
            pairs.append((ms[other], ms[this]))
    return summarise(name, pairs) | {"steps": steps}


def summarise(name: str, pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Summarizes the pairs (before, this) of milliseconds per step, one pair per turn."""
    low, middle, high = statistics.quantiles([this / before for before, this in pairs], n=4, method="inclusive")
    before, this = (statistics.median(side) for side in zip(*pairs, strict=True))
    row = {"model": name, "before_ms": before, "this_ms": this, "ratio": middle, "quartiles": [low, high]}
    return row | {"turns": pairs}


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'model':<14} {'before ms':>10} {'this ms':>10} {'this / before':>14}  quartiles"]
    for row in rows:
        line = "{model:<14} {before_ms:>10.2f} {this_ms:>10.2f} {ratio:>14.3f}".format(**row)
        lines.append(line + "  {:.3f} to {:.3f}".format(*row["quartiles"]))
    return lines


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; checkouts takes no positional arguments")
    twins.refuse("peer", "peer_python", "rounds", "forward_only")
    classifiers.check_models()
    app.require(bool(BEFORE.value), "--before is required: the folder of the other checkout")
    before = pathlib.Path(BEFORE.value).expanduser().resolve()
    is_checkout = (before / "benchmarks" / "classifiers.py").is_file()
    app.require(is_checkout, f"--before={BEFORE.value}: not a checkout, because benchmarks/classifiers.py is missing")
    print(f"before: {before}", f"this:   {THIS}", sep="\n", flush=True)
    rows = []
    for name in classifiers.MODELS.value:
        rows.append(measure(name, before, turns=TURNS.value, seconds=twins.SECONDS.value))
        say(f"{name}: {rows[-1]['ratio']:.3f}")
    print(*table(rows), sep="\n")
    if twins.JSON.value:
        print(json.dumps({"before": str(before), "this": str(THIS), "rows": rows}))
    return 0


if __name__ == "__main__":
    app.run(main)
