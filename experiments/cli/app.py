"""Runs a command: parses its flags into a config and reports expected errors in one line with an exit status."""

import functools
import io
import logging
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from experiments.cli import help, options

FLAGS = flags.FLAGS
STANDARD_OUTPUT = "standard output"


class _StandardOutput(io.FileIO):
    """Standard output as a file object. Write errors, such as a full disk, contain its name."""

    def write(self, content) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from None


class UsageError(ValueError):
    """An invalid flag: reported in one line, exit status 2."""


def require(condition: bool, message: str) -> None:
    """Raises UsageError(message) unless the condition holds."""
    if not condition:
        raise UsageError(message)


def _open_standard_streams() -> None:
    """Opens /dev/null for standard streams that are closed, for example by 2>&-. Otherwise a file opened later could
    get their file descriptor and receive the output."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115 - open until the process ends.
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        own, output = sys.stdout, io.BufferedWriter(_StandardOutput(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(output, own.encoding, own.errors, line_buffering=own.line_buffering)


def _drop_output() -> int:
    """Discards further output if standard output can't be written. Returns the exit status of a process killed by
    SIGPIPE, for a closed pipe such as `| head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + signal.SIGPIPE


def _deliver_swallowed_interrupts() -> None:
    """Sends SIGINT again if a KeyboardInterrupt was raised in a garbage collector callback (jax has one) or a
    destructor: Python only prints such an exception, and the command would continue."""
    report = sys.unraisablehook

    def again(unraisable):
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return report(unraisable)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    sys.unraisablehook = again


def _use_single_precision() -> None:
    """Disables JAX_ENABLE_X64, which may be set for other programs: some arrays would be float64 and results would
    change."""
    if os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "t", "yes", "y", "on"):
        print("JAX_ENABLE_X64 has no effect: this command computes in float32", file=sys.stderr)
        os.environ["JAX_ENABLE_X64"] = "0"
        if "jax" in sys.modules:  # jax has already read the variable.
            sys.modules["jax"].config.update("jax_enable_x64", False)


def _help(config_class: type | None, positional: bool) -> str:
    """Returns the text of --help. For a command without a config class, lists the absl flags of its module."""
    main = sys.modules["__main__"]
    doc, spec = main.__doc__ or "", getattr(main, "__spec__", None)
    name = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
    name = getattr(main, "STARTED_AS", name)  # Set by the console script.
    if config_class is not None:
        return help.text(config_class, doc, name, positional=positional)
    return "\n".join([help.text(None, doc, name), "", FLAGS.main_module_help()])


def _parse(argv, *, config_class: type | None = None, positional: bool = False):
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        try:
            print(_help(config_class, positional), flush=True)
        except BrokenPipeError:
            sys.exit(_drop_output())
        except OSError as error:
            print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
            _drop_output()
            sys.exit(1)
        sys.exit(0)
    try:
        return FLAGS(argv)
    except (flags.Error, OSError, ValueError) as error:  # ValueError: --noFLAG=value, or a file that is not text.
        line = " ".join(str(error).removeprefix("ERROR:: ").split())
        for kind, accepted in (("int", "an integer"), ("float", "a number")):
            line = re.sub(
                rf"(invalid literal for {kind}\(\)|could not convert string to {kind}).*", f"must be {accepted}", line
            )
        line = line.removeprefix("flag ")
        print("error:", line, file=sys.stderr)
        sys.exit(2)


def _explain(error: Exception) -> tuple[int, str] | None:
    """Returns (exit status, message) for an error that the user can fix, or None for an internal error, which keeps its
    traceback."""
    if isinstance(error, UsageError):
        return 2, f"error: {error}"
    import jax

    import data  # Lazy: signal handlers come before slow imports, and a usage error needs none of these.
    from models.errors import ModelError
    from train.checkpoint import CheckpointError
    from train.parallel.processes import DeviceError
    from train.signals import Interrupted
    from train.workdir import WorkdirError

    if isinstance(error, Interrupted):
        return error.exit_status, str(error)
    if isinstance(error, DeviceError | ModelError | data.ArgumentError):
        return 2, f"error: {error}"
    if isinstance(error, data.DataError | CheckpointError | WorkdirError | FloatingPointError):
        return 1, f"error: {error}"
    lost = isinstance(error, jax.errors.JaxRuntimeError | ValueError) and jax.distributed.is_initialized()
    if lost and re.search("gloo", str(error), re.IGNORECASE):
        return 1, f"error: lost connection to another process of this run: {str(error).splitlines()[0]}"
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
        return 1, "error: out of memory; try a smaller network or batch: " + str(error).splitlines()[0]
    if isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error):
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return 1, f"error: JAX_PLATFORMS={platforms}: {str(error).partition(' (set JAX_PLATFORMS')[0]}"
    if isinstance(error, MemoryError):
        return 1, f"error: out of memory: {error}".rstrip(": ")
    if isinstance(error, UnicodeEncodeError):
        return 2, f"error: {error.object!r} can't be encoded as {error.encoding}"
    if isinstance(error, OSError):
        return 1, f"error: {error.strerror or error}: {error.filename or _working_folder(error)}".rstrip(": ")
    return None


def _working_folder(error: OSError) -> str:
    """Names the working folder if it is the cause of an OSError without a file name, else returns ""."""
    try:
        os.getcwd()
    except OSError as other:
        return "the working folder" if other.errno == error.errno else ""
    return ""


def run(main: Callable[..., int | None], config_class: type | None = None, *, positional: bool = False) -> None:
    """Runs `main(config)` with a `config_class` made from the flags, `main(config, arguments)` if the command takes
    `positional` arguments, or `main(argv)` without a `config_class`.

    Expected errors are reported in one line on standard error, with status 2 for an invalid flag and 1 otherwise.
    """
    _open_standard_streams()
    _deliver_swallowed_interrupts()
    if config_class is not None:
        options.define(config_class)

    def called(argv) -> Any:
        if config_class is None:
            return main(argv)
        config = options.from_flags(config_class)
        if positional:
            return main(config, argv[1:])
        file, extra = pathlib.Path(argv[0]), " ".join(argv[1:])
        name = file.parent.name if file.stem == "__main__" else file.stem
        require(not extra, f"{name} takes no positional arguments; given: {extra!r}")
        return main(config)

    def guarded(argv):
        if not FLAGS["verbosity"].present:  # tfds logs every step of reading and writing.
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            _use_single_precision()
            status = called(argv)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            return _drop_output()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            from train.messages import one_line

            explained = _explain(error)
            if "jax" in sys.modules:  # Without jax, there are no other processes.
                from train.parallel.processes import leave_soon

                leave_soon(1 if explained is None else explained[0])
            if explained is None:
                raise
            print(one_line(explained[1]), file=sys.stderr, flush=True)
            if getattr(error, "filename", None) == STANDARD_OUTPUT:
                _drop_output()  # Flushing the rest of its buffer at exit would fail again.
            return explained[0]

    for noisy in ("jax", "orbax", "tensorboardX", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    parse = functools.partial(_parse, config_class=config_class, positional=positional)
    app.run(guarded, flags_parser=parse)
