"""Messages to the user, on standard error; standard output is for results."""

import contextlib
import sys


def one_line(text: str) -> str:
    """Escapes the unprintable characters of `text`, such as a line break in a file name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(line: str) -> None:
    """Prints one line, on process 0 only. A closed terminal does not end the run."""
    from train.parallel import processes  # Imported late, with jax, which is not needed to reject a bad flag.

    if processes.is_main():
        with contextlib.suppress(BrokenPipeError):
            print(one_line(line), file=sys.stderr, flush=True)
