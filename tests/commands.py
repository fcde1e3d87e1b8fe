"""Runs the commands of experiments/ as a user does, each forked from one process that has imported their libraries.

Imports take two seconds of CPU time in a fresh interpreter and none in a fork of the preloaded process, which has
initialized no JAX backend. tests/test_documented_commands.py also starts every command in a fresh interpreter.
"""

import atexit
import functools
import importlib
import itertools
import multiprocessing
import os
import pathlib
import resource
import runpy
import sys
import threading
import time
import warnings
from multiprocessing import forkserver
from typing import NamedTuple

import jax
import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])
OPTIMIZATION = "JAX_DISABLE_MOST_OPTIMIZATIONS"
ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 3600  # Timeout of a command in seconds. A loaded machine is many times slower than an idle one.


class Done(NamedTuple):
    """The result of a command, with the field names of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


class SignalAt(NamedTuple):
    """A signal that a command sends to itself after `calls` calls of `name`, so that it arrives at the same point of a
    run regardless of the machine's load."""

    number: int
    name: str  # For example "train.workdir:MetricsFile.append".
    calls: int


def _arm(at):
    module, _, attribute = at.name.partition(":")
    *outer, last = attribute.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    function, calls = getattr(owner, last), itertools.count(1)

    def counted(*arguments, **options):
        result = function(*arguments, **options)
        if next(calls) == at.calls:
            os.kill(os.getpid(), at.number)
        return result

    setattr(owner, last, counted)


def _run(module, arguments, folder, environment, outputs, file_limit, signal_at):
    """In the forked process: runs `python -m MODULE ARGUMENTS`, or `python -c MODULE` if MODULE is source code."""
    assert "preloaded" in sys.modules, "the server could not import tests/preloaded.py"
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    jax.config.update("jax_disable_most_optimizations", OPTIMIZATION in environment)
    # Another worker is writing the cache entry at the same time; JAX then compiles the program itself.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if signal_at:
        _arm(signal_at)
    sys.argv = [module, *arguments]
    try:
        if "\n" in module:
            exec(compile(module, "<program>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        threading._shutdown()  # As at interpreter exit; multiprocessing's processes skip the second call.
        atexit._run_exitfuncs()


class Command:
    """A running `python -m MODULE ARGUMENTS`, with the methods of subprocess.Popen."""

    def __init__(self, module, *arguments, folder, environment, output, file_limit=None, signal_at=None):
        self.outputs = [output / name for name in ("stdout", "stderr")]
        for path in self.outputs:
            path.touch()
        read = {name: value for name, value in environment.items() if name.startswith("JAX_") and name != OPTIMIZATION}
        assert read.items() <= os.environ.items(), "JAX reads its environment variables at import, in the fork server"
        given = (module, [*map(str, arguments)], folder, dict(environment), self.outputs, file_limit, signal_at)
        self.process = CONTEXT.Process(target=_run, args=given)
        self.process.start()

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()
        self.process.join()

    def wait(self) -> Done:
        """Waits for the command to finish."""
        self.process.join(LIMIT)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {LIMIT} s: {self.stderr()}")
        return Done(self.process.exitcode, self.stdout(), self.stderr())

    def stdout(self) -> str:
        return self.outputs[0].read_text()

    def stderr(self) -> str:
        return self.outputs[1].read_text()

    def wait_until(self, condition) -> None:
        """Waits until `condition()` is true; fails if the command finishes first."""
        deadline = time.monotonic() + LIMIT
        while True:
            ended = self.poll() is not None
            if condition():
                return
            assert not ended, f"finished too early with exit status {self.poll()}: {self.stderr()}"
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(self.stderr())
            time.sleep(0.01)


def start_server(environment) -> None:
    """Starts the fork server of the commands if it is not running."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        forkserver.ensure_running()
