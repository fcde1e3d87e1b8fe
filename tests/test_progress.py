"""Tests of the progress that a run prints without a terminal."""

import time

import pytest

from experiments.reporting.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_a_line_for_each_evaluation_and_every_half_minute(clock, capsys):
    with Progress(0, 1000, split="test", shown=True) as progress:
        for step, seconds, evaluated in (
            (10, 5, False),
            (20, 7, True),
            (30, 20, False),
            (40, 37, False),
            (1000, 50, True),
        ):
            clock[0] = 100.0 + seconds
            progress(step, {"train_loss": 2.0 / step} | ({"eval_loss": 0.5} if evaluated else {}))
    lines = capsys.readouterr().err.splitlines()
    # 10 steps in 2 seconds leave 980 steps for 196; 30 in 32 leave 960 for 1024.
    assert lines == [
        "step 20/1000  loss 0.1  test loss 0.5  0:03:16 left",
        "step 40/1000  loss 0.05  0:17:04 left",
        "step 1000/1000  loss 0.002  test loss 0.5",
    ]


def test_a_run_that_is_not_shown_prints_no_progress(clock, capsys):
    with Progress(0, 10, split="test", shown=False) as progress:
        progress(10, {"train_loss": 1.0, "eval_loss": 1.0})
    assert capsys.readouterr().err == ""
