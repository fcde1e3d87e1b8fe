"""Tests of the training loop's schedule: images per second, measured by a fake clock, and metrics computed once."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import loop
from train.state import State
from train.task import Task

BATCH = 8


@pytest.fixture
def clock(monkeypatch):
    """A fake clock that only the test advances."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    return now


def counted(state, batch):
    return {"loss": jnp.zeros(()), "count": jnp.ones_like(batch["label"], jnp.float32).sum() + 0 * state.step}


def test_images_per_second_leave_out_evaluations_and_checkpoints(clock):
    """A step takes one second, an evaluation 100, a checkpoint 1000, whether or not the step has a row of metrics."""
    rows, saved, evaluations = [], [], []

    def step(state, batch):
        return state._replace(step=state.step + 1), counted(state, batch)

    def train_batches(start):
        while True:
            clock.seconds += 1
            yield {"label": np.zeros(BATCH, np.int32)}

    def eval_batches():
        clock.seconds += 100
        evaluations.append(len(rows))
        yield {"label": np.zeros(BATCH, np.int32)}

    def save(number, state, **rest):
        clock.seconds += 1000
        saved.append(number)

    def constant(state, batch):
        return {"constant": counted(state, batch)["count"] / 2, "count": counted(state, batch)["count"]}

    def metrics_of(sums):
        return {"loss": float(sums["loss"]), "constant": float(sums.get("constant", 0))}

    checkpoints = types.SimpleNamespace(save=save, wait=lambda: None)
    output = loop.Output(checkpoints, types.SimpleNamespace(append=rows.append), lambda step, row: None)
    task = Task("", None, step, counted, metrics_of, None, ("loss",), ("loss",), ("loss", "min"))
    task = task._replace(constant_eval_step=constant)
    result = loop.train(
        State({}, {}, {}, jnp.zeros((), jnp.int32), jax.random.key(0)),
        {},
        task=task,
        plan=loop.Plan(12, eval_every=8, log_every=4, save_every=3, learning_rate=lambda step: 0.1),
        data=loop.Data(train_batches, loop.EvalData(eval_batches, BATCH)),
        devices=1,
        output=output,
        stop=types.SimpleNamespace(number=0),
    )
    assert saved == [3, 6, 8, 9, 12] and [row["step"] for row in rows] == [4, 8, 12]
    # The first evaluation after a start computes the constant metrics, which the second reports too.
    assert evaluations == [1, 1, 2] and [row.get("eval_constant") for row in rows] == [None, BATCH / 2, BATCH / 2]
    assert [row["images_per_second"] for row in rows] == [BATCH] * 3 and result.images_per_second == BATCH
