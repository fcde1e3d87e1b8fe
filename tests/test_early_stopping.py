"""Tests of --patience: the step at which a run stops, its record in checkpoints, and its results."""

import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import SignalAt
from results import result, same

from train import loop
from train.early_stopping import EarlyStopping
from train.state import State
from train.task import Task


@pytest.mark.parametrize(
    "direction, scores, stop",
    [
        ("max", [0.5, 0.6, 0.6, 0.7, 0.1, 0.8, 0.7], None),
        ("max", [0.5, 0.6, 0.6, 0.5, 0.4], 4),  # An equal score is not a new best one.
        ("max", [0.5, 0.4, 0.3, 0.2], 3),
        ("min", [0.5, 0.4, 0.3, 0.3, 0.4], 5),
        ("min", [0.5, 0.6, 0.7], 3),
    ],
)
def test_the_evaluation_at_which_a_run_stops(direction, scores, stop):
    stopping, found = EarlyStopping(2, ("score", direction), None), None
    for number, score in enumerate(scores, 1):
        stopping = EarlyStopping(2, ("score", direction), json.loads(json.dumps(stopping.record)))  # As if resumed.
        stopping.evaluated({"score": score, "loss": 0.0})
        if stopping.stops:
            found = number
            break
    assert found == stop


def test_without_patience_nothing_is_recorded():
    stopping = EarlyStopping(0, ("score", "max"), None)
    for _ in range(5):
        stopping.evaluated({"score": 0.0})
    assert stopping.record is None and not stopping.stops


SCORES = jnp.asarray([0.0, 0.0, 0.3, 0.0, 0.5, 0.0, 0.4, 0.0, 0.5, 0.0, 0.9, 0.0, 0.9])  # By step.


def run_loop(patience, start=0, record=None):
    """Runs the training loop for at most 12 steps, with an evaluation after every second step, from step `start`.
    Returns (its result, the record of each checkpoint)."""
    saved = {}

    def step(state, batch):
        return state._replace(step=state.step + 1), {"loss": jnp.zeros(()), "count": jnp.ones(())}

    def evaluate(state, batch):
        return {"loss": jnp.zeros(()), "count": jnp.ones(()), "score": SCORES[state.step]}

    def metrics_of(sums):
        return {"loss": float(sums["loss"]), "score": float(sums.get("score", 0))}

    def batches(start=0):
        while True:
            yield {"label": np.zeros(1, np.int32)}

    def save(number, state, record, metrics):
        saved[number] = json.loads(json.dumps(record))

    one = loop.EvalData(lambda: [next(batches())], 1)
    metrics = ("loss", "score"), ("loss",), ("score", "max")
    result = loop.train(
        State({}, {}, {}, jnp.asarray(start, jnp.int32), jax.random.key(0)),
        record or {},
        task=Task("", None, step, evaluate, metrics_of, None, *metrics),
        plan=loop.Plan(12, 2, 0, 0, lambda step: 0.1, patience),
        data=loop.Data(batches, one, one),
        devices=1,
        output=loop.Output(
            types.SimpleNamespace(save=save, wait=lambda: None),
            types.SimpleNamespace(append=lambda row: None),
            lambda step, row: None,
        ),
        stop=types.SimpleNamespace(number=0),
    )
    return result, saved


def test_the_loop_stops_and_resumes_at_the_same_step():
    """The best score is at step 4; it is not improved at steps 6 and 8."""
    stopped, saved = run_loop(2)
    assert int(stopped.state.step) == 8 and stopped.stopped_early and list(saved) == [2, 4, 6, 8]
    assert saved[6]["early_stopping"] == {"best_score": 0.5, "evaluations_since": 1}
    assert stopped.metrics["score"] == stopped.test_metrics["score"] == 0.5
    for step, record in saved.items():  # As after a kill. After the last one, no step is left.
        resumed, rest = run_loop(2, step, record)
        assert int(resumed.state.step) == 8 and resumed.stopped_early and resumed.metrics == stopped.metrics
        assert {number: part["early_stopping"] for number, part in rest.items()} == {
            number: part["early_stopping"] for number, part in saved.items() if number > step
        }
    for patience in (0, 3):
        complete, saved = run_loop(patience)
        assert int(complete.state.step) == 12 and not complete.stopped_early
        assert ("early_stopping" in saved[12]) == bool(patience)


# With this learning rate no prediction changes, so the first evaluation remains the best.
STILL = ["--model=mlp", "--hidden=8", "--learning_rate=1e-12", "--batch_size=32", "--steps=12", "--eval_every=2"]
STILL += ["--log_every=1", "--val_fraction=0.1", "--patience=2", "--ema=0.9", "--mixup=0.4", "--cutmix=1"]


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    return workdir, start("classify", f"--workdir={workdir}", *STILL)


def test_a_stopped_run_is_complete(stopped, start):
    workdir, first = stopped
    summary = result(first)
    assert (summary["step"], summary["stopped_early"], summary["split"]) == (6, True, "val")
    assert "test_accuracy" in summary and "step 6 (stopped early)" in first.stderr
    assert json.loads((workdir / "summary.json").read_text()) == summary
    page = (workdir / "report.html").read_text()
    assert "The run stopped early" in page and "exponential moving average of the weights (--ema)" in page
    assert "loss and accuracy are those of mixed images" in page and "val images; rows: true classes" in page
    again = start("classify", f"--workdir={workdir}", *STILL)
    assert result(again) == summary and "run already complete" in again.stderr
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [2, 4, 6]  # The best is kept.


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 5])
def test_a_killed_run_stops_at_the_same_step(stopped, start, tmp_path, rows):
    workdir, first = stopped
    kill = SignalAt(signal.SIGKILL, "train.workdir:MetricsFile.append", rows)
    arguments = ["classify", f"--workdir={tmp_path / 'w'}", *STILL]
    assert start(*arguments, signal_at=kill).returncode == -signal.SIGKILL
    assert same(result(start(*arguments)), result(first))
