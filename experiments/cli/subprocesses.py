"""A command that sweep and lecture run, and which gets their signals: it would hold its folder and go on alone."""

import signal
import subprocess
import sys
from typing import NamedTuple


class Ended(NamedTuple):
    status: int  # The exit status, 128 and the signal's number where a signal ended the command.
    output: str  # Its standard output.
    signalled: int  # The first signal that was passed on, or 0.


def run(module: str, *arguments: str) -> Ended:
    """experiments.MODULE with its arguments, to its end. SIGTERM and SIGINT go to it meanwhile."""
    # -P: a train.py or data.py in the current folder is not this project's.
    command, signals = [sys.executable, "-P", "-m", f"experiments.{module}", *arguments], list[int]()
    # In a group of its own, or a terminal's Ctrl-C would reach it twice, and the second ends a run unsaved.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as process:

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
