"""Checks the value of --peer_python before a benchmark starts long work, and describes how a peer failed."""

import shutil
import subprocess

from experiments.cli import app


def last_line(done: subprocess.CompletedProcess) -> str:
    """The last line that a failed program wrote to standard error."""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].removeprefix("ModuleNotFoundError: ")


def check(python: str, *modules: str) -> None:
    """Raises UsageError unless `python` is a command that imports the modules; they are not tried if there are none."""
    accepted = f"must be a Python with {' and '.join(modules or ['torch'])}"
    app.require(shutil.which(python) is not None, f"--peer_python={python}: no such command; {accepted}")
    if modules:
        done = subprocess.run([python, "-c", f"import {', '.join(modules)}"], capture_output=True, text=True)
        app.require(done.returncode == 0, f"--peer_python={python}: {last_line(done)}; {accepted}")
