"""Lines for the person who watches a run, on standard error: standard output is for results."""

import contextlib
import sys


def one_line(text: str) -> str:
    """`text` with what does not print escaped: a file's name may hold a line break."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(line: str) -> None:
    """Prints one line. Of several processes the first alone does. A terminal that is gone does not end a run."""
    from train.parallel import processes  # Late: jax, which it imports, is not needed to refuse a bad flag.

    if processes.is_main():
        with contextlib.suppress(BrokenPipeError):
            print(one_line(line), file=sys.stderr, flush=True)
