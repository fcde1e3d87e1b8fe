"""Reads and compares the results that commands print."""

import json

TIMES = {"seconds", "compile_seconds", "images_per_second", "workdir"}


def result(done):
    """The JSON object in the last line of standard output."""
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same(one, other):
    """Whether two results are equal except for times and paths."""
    return {k: v for k, v in one.items() if k not in TIMES} == {k: v for k, v in other.items() if k not in TIMES}
