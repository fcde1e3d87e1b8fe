"""Runs a command in a subprocess and forwards signals to it, for sweep, reproduce and lecture. Without forwarding, the
subprocess would continue after its parent and keep its workdir locked."""

import os
import pathlib
import signal
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Ended(NamedTuple):
    status: int  # The exit status; 128 + N if the command was killed by signal N.
    output: str  # Its standard output.
    signalled: int  # The first forwarded signal, or 0.


def _environment() -> dict[str, str]:
    if not (ROOT / "pyproject.toml").exists():  # Installed: site-packages must not precede the standard library.
        return dict(os.environ)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def run(module: str, *arguments: str) -> Ended:
    """Runs experiments.MODULE and waits until it ends; forwards SIGTERM and SIGINT to it. In a checkout, its code is
    used, also if the package is installed from another checkout."""
    # -P: do not import a train.py or data.py from the current folder.
    command, signals = [sys.executable, "-P", "-m", f"experiments.{module}", *arguments], list[int]()
    # A separate process group: otherwise Ctrl-C would reach it twice, and the second one ends a run without saving.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0, env=_environment()) as process:

        def pass_on(number, frame):
            del frame
            signals.append(number)
            process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            output, _ = process.communicate()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ended(status, output, signals[0] if signals else 0)
