"""Combines the results of benchmarks/accelerator.sh: python -m benchmarks.accelerator_table --folder=OUT

Reads OUT/*.jsonl, writes OUT/accelerator.json and OUT/accelerator.md, and prints the latter.
"""

import json
import pathlib
from typing import Any

import jax
from absl import flags as absl_flags

from experiments.cli import app

PARTS = ("numerics", "steps", "peer", "training")


def read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """The JSON objects of each part; other lines, and a last line that was cut off, are skipped."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in PARTS:
        path = folder / f"{part}.jsonl"
        found[part] = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                found[part].append(row)
    return found


def table(heads: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """A Markdown table; empty without rows."""
    lines = [heads, ("---",) * len(heads), *rows] if rows else []
    return [f"| {' | '.join(line)} |" for line in lines] + [""] * bool(rows)


def steps_row(row: dict[str, Any]) -> list[str]:
    first = [row["model"], row["dtype"], str(row["batch_size"])]
    if "error" in row:
        return [*first, row["error"], "", "", ""]
    share = f"{100 * row['share_of_peak']:.1f} %" if "share_of_peak" in row else ""
    tflops = f"{row['tflops']:.1f}" if "tflops" in row else ""
    return [*first, f"{row['images_per_second']:,.0f}", f"{row['step_ms']:.1f}", tflops, share]


def markdown(found: dict[str, list[dict[str, Any]]], device: str) -> str:
    lines = [f"Device: {device}; jax {jax.__version__}.", ""]
    heads = "model", "dtype", "batch size", "images/s", "step, ms", "TFLOP/s", "of peak"
    lines += table(heads, [steps_row(row) for row in found["steps"] + found["peer"]])
    for row in found["training"]:
        lines += [
            f"dcnn.flags: {100 * row['accuracy']:.2f} % after {row['step']:,} steps in {row['seconds']:.0f} s.",
            "",
        ]
    checks = [
        [row["check"], f"{row['error']:.1e}", f"{row['limit']:.0e}", "yes" if row["passed"] else "**no**"]
        for row in found["numerics"]
    ]
    return "\n".join([*lines, *table(("check", "error", "limit", "passed"), checks)]).rstrip() + "\n"


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; accelerator_table takes no positional arguments")
    folder = pathlib.Path(absl_flags.FLAGS.folder)
    names = [f"{part}.jsonl" for part in PARTS]
    there = any((folder / name).exists() for name in names)
    app.require(there, f"--folder={folder}: contains none of {', '.join(names)}")
    found, device = read(folder), jax.devices()[0].device_kind
    (folder / "accelerator.json").write_text(json.dumps({"device": device, "jax": jax.__version__, **found}, indent=1))
    text = markdown(found, device)
    (folder / "accelerator.md").write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    absl_flags.DEFINE_string("folder", None, "The script's output folder.", required=True)
    app.run(main)
