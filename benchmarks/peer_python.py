"""Checks the value of --peer_python before a benchmark starts long work, and describes how a peer failed."""

import shutil
import subprocess

from experiments.cli import app


def last_line(done: subprocess.CompletedProcess) -> str:
    """The last line that a failed program wrote to standard error."""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1].removeprefix("ModuleNotFoundError: ")


def refusal(python: str, why: str, *modules: str) -> app.UsageError:
    """The error for a Python that is not accepted."""
    return app.UsageError(f"--peer_python={python}: {why}; must be a Python with {' and '.join(modules or ['torch'])}")


def check(python: str, *modules: str) -> None:
    """Raises UsageError unless `python` is a command that imports the modules; they are not tried if there are none."""
    if shutil.which(python) is None:
        raise refusal(python, "no such command", *modules)
    if modules:
        done = subprocess.run([python, "-c", f"import {', '.join(modules)}"], capture_output=True, text=True)
        if done.returncode:
            raise refusal(python, last_line(done), *modules)
