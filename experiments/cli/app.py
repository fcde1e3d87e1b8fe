"""How an entry point starts and fails: an expected failure is one line and an exit status, no traceback."""

import logging
import re
import sys

from absl import app, flags
from absl import logging as absl_logging

FLAGS = flags.FLAGS


class UsageError(ValueError):
    """A bad flag: one line, exit status 2."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _parse(argv):
    if any(a in ("--help", "-h", "-help") for a in argv[1:]):
        ours = [FLAGS.module_help(name) for name in FLAGS.flags_by_module_dict() if name.startswith("experiments.")]
        print("\n".join([f"{sys.modules['__main__'].__doc__}\n", *ours, FLAGS.main_module_help()]))
        sys.exit(0)
    try:
        return FLAGS(argv)
    except (flags.Error, OSError, UnicodeError) as error:
        line = " ".join(str(error).removeprefix("ERROR:: ").split())
        for kind, accepted in (("int", "a whole number"), ("float", "a number")):
            line = re.sub(
                rf"(invalid literal for {kind}\(\)|could not convert string to {kind}).*", f"must be {accepted}", line
            )
        print("error:", line, file=sys.stderr)
        sys.exit(2)


def _explain(error: Exception) -> tuple[int, str] | None:
    """(exit status, line) for a failure that is the user's to mend; None for one that is ours."""
    import jax

    from data import DataError  # Late: a run listens to signals before it imports what is slow.
    from train.checkpoint import CheckpointError
    from train.parallel.devices import DeviceError
    from train.signals import Interrupted
    from train.workdir import WorkdirError

    if isinstance(error, Interrupted):
        return error.exit_status, str(error)
    if isinstance(error, UsageError | DeviceError):
        return 2, f"error: {error}"
    if isinstance(error, DataError | CheckpointError | WorkdirError | FloatingPointError):
        return 1, f"error: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError | ValueError) and re.search("gloo", str(error), re.IGNORECASE):
        return 1, f"error: another process of this run is gone: {str(error).splitlines()[0]}"
    if isinstance(error, jax.errors.JaxRuntimeError) and re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
        return 1, "error: the network or batch needs more memory than there is: " + str(error).splitlines()[0]
    if isinstance(error, MemoryError):
        return 1, f"error: there is not enough memory: {error}".rstrip(": ")
    if isinstance(error, UnicodeEncodeError):
        return 2, f"error: {error.object!r} is not text in {error.encoding}"
    if isinstance(error, OSError):
        return 1, f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
    return None


def one_line(text: str) -> str:
    """`text` with what does not print escaped: a file's name may hold a line break."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run(main) -> None:
    """Runs `main(argv)`: an expected failure is one line on standard error, status 2 for a bad flag and 1 otherwise."""

    def guarded(argv):
        if not FLAGS["verbosity"].present:  # tfds tells of every step in reading and writing.
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            from train.parallel.processes import leave_soon

            explained = _explain(error)
            leave_soon(1 if explained is None else explained[0])
            if explained is None:
                raise
            print(one_line(explained[1]), file=sys.stderr, flush=True)
            return explained[0]

    for noisy in ("jax", "orbax", "tensorboardX", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    app.run(guarded, flags_parser=_parse)
