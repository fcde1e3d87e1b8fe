"""What a command that was started has printed."""

import json

TIMES = {"seconds", "compile_seconds", "images_per_second", "workdir"}


def result(done):
    """The last line of standard output."""
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same(one, other):
    """Whether two runs ended with the same numbers, but for times and places."""
    return {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}
