"""Tests of training with two processes."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import socket

import jax
import numpy as np
import pytest
from commands import SignalAt
from results import result

from data import batches, stream
from train.parallel import devices, processes

COMMON = ["--steps=80", "--batch_size=32", "--log_every=20", "--eval_every=40", "--save_every=10"]


def free_port():
    """Returns a port below the system's ephemeral ports, from a range of 300 that belongs to this worker. It is not
    drawn by the global random generator, which plugins seed alike in all workers."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.SystemRandom().sample(range(10_000 + worker % 70 * 300, 10_300 + worker % 70 * 300), 300):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("localhost", port))
            return port
    raise OSError("no port of localhost is free")


# classify with a small network that has AlexNet's structure.
HYBRID = """
import functools

import models
from tests.test_hybrid import Tiny

options = {"widths": (4, 8, 8, 8, 8), "units": 30}
models.MODELS["alexnet_owt"] = models.ModelSpec(module=functools.partial(Tiny, **options))
from experiments import classify
from experiments.cli import app

app.run(classify.main, classify.ClassifyConfig)
"""
# Sent only in the second process, at the third exchange between the processes during training.
STOP_SECOND = SignalAt(signal.SIGTERM, "train.parallel.processes:max_over_processes", 8)


@pytest.fixture(scope="module")
def pair(launch):
    """pair(*arguments) runs two processes of one run, each with its flag in `own`. Returns (exit statuses, summary or
    None, standard errors)."""

    def run(*arguments, program="classify", own=("--keep=2",) * 2, stop_second=None):
        group = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2"]
        both = [
            launch(program, *arguments, *group, f"--process_id={i}", own[i], signal_at=stop_second if i else None)
            for i in range(2)
        ]
        first, second = (process.wait() for process in both)
        errors = first.stderr, second.stderr
        assert "Traceback" not in "".join(errors), errors
        lines = [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")]  # Output of the library.
        assert lines == [], errors
        summary = json.loads(first.stdout.splitlines()[-1]) if first.returncode == 0 else None
        return [first.returncode, second.returncode], summary, errors

    return run


RUN = ["--model=mlp", "--hidden=16", "--dropout=0.2", "--augment=digits", *COMMON]


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """The workdir and the summary of a run with two processes."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    statuses, summary, errors = pair(f"--workdir={workdir}", *RUN)
    assert statuses == [0, 0] and summary["step"] == 80 and "2 cpu devices in 2 processes" in errors[0]
    return workdir, summary


@pytest.mark.slow
def test_two_processes_equal_two_devices_of_one_process(whole, start, tmp_path):
    alone = result(start("classify", f"--workdir={tmp_path / 'alone'}", "--devices=2", *RUN))
    stored = json.loads((whole[0] / "run.json").read_text())["flags"]
    assert [stored[name] for name in ("coordinator_address", "num_processes", "process_id")] == [None] * 3
    flags = (whole[0] / "flags.txt").read_text()
    assert "process" not in flags and "coordinator" not in flags
    assert alone["accuracy"] == pytest.approx(whole[1]["accuracy"], abs=0.01)
    assert alone["loss"] == pytest.approx(whole[1]["loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_both_refuse_another_run(whole, pair):
    statuses, _, errors = pair(f"--workdir={whole[0]}", *RUN, "--seed=1")
    assert statuses == [1, 1], errors
    assert "--seed=0 (stored), 1 (given)" in errors[0] and "another process of this run failed" in errors[1]


@pytest.mark.slow
def test_two_processes_stop_and_resume_together(whole, tmp_path, pair):
    parts = tmp_path / "parts"
    statuses, _, errors = pair(f"--workdir={parts}", *RUN, stop_second=STOP_SECOND)
    assert statuses == [143, 143] and "stopped at step" in errors[0]
    statuses, resumed, errors = pair(f"--workdir={parts}", *RUN)
    assert statuses == [0, 0] and "resuming from step" in errors[0]
    assert resumed["fingerprint"] == whole[1]["fingerprint"]
    rows = [(place / "metrics.csv").read_text().splitlines() for place in (whole[0], parts)]
    kept = [[row.split(",")[:5] for row in lines] for lines in rows]
    assert kept[0] == kept[1] and len(rows[0]) == 5


@pytest.mark.slow
def test_two_processes_stop_early_together(tmp_path, pair, start):
    """With this learning rate no prediction changes, so the first evaluation remains the best."""
    run = [*RUN, "--eval_every=10", "--learning_rate=1e-12", "--val_fraction=0.1", "--patience=2"]
    run += ["--mixup=0.4", "--ema=0.9"]
    statuses, summary, errors = pair(f"--workdir={tmp_path / 'both'}", *run)
    assert statuses == [0, 0] and (summary["step"], summary["stopped_early"]) == (30, True), errors
    alone = result(start("classify", f"--workdir={tmp_path / 'alone'}", "--devices=2", *run))
    assert alone["step"] == 30 and alone["loss"] == pytest.approx(summary["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "own, message",
    [
        (["--seed=1", "--seed=2"], "--seed=2 in this process, --seed=1 in the first"),
        (["--keep=2", "--hidden=5,6"], "--hidden=5,6 in this process, --hidden=none in the first"),
    ],
)
def test_processes_with_different_flags_are_refused(tmp_path, pair, own, message):
    statuses, _, errors = pair(f"--workdir={tmp_path / 'unlike'}", "--model=mlp", *COMMON, own=own)
    assert statuses == [1, 2] and message in errors[1], errors
    assert "another process of this run failed" in errors[0]


@pytest.mark.slow
def test_two_processes_shard_the_dense_layers(tmp_path, pair, start):
    run = ["--model=alexnet_owt", "--augment=digits", "--learning_rate=0.01", *COMMON]
    run += ["--fc_passes=2", "--parallelism=hybrid"]
    parts, data = tmp_path / "parts", tmp_path / "data"
    statuses, _, errors = pair(f"--workdir={parts}", *run, program=HYBRID, stop_second=STOP_SECOND)
    assert statuses == [143, 143] and "stopped at step" in errors[0]
    shutil.copytree(parts, data)
    statuses, resumed, errors = pair(f"--workdir={parts}", *run, program=HYBRID)
    assert statuses == [0, 0] and "resuming from step" in errors[0] and resumed["step"] == 80
    # The same checkpoint resumed on one device, with data parallelism.
    done = start(HYBRID, f"--workdir={data}", *run, "--parallelism=data", "--fc_passes=1")
    assert "resuming from step" in done.stderr
    assert result(done)["loss"] == pytest.approx(resumed["loss"], rel=0.01)


@pytest.mark.parametrize(
    "count, accepted",
    [(1, "at most {}, the number of devices on this machine"), (2, "{}, the number of devices of all 2 processes")],
)
def test_more_devices_than_exist_are_refused(monkeypatch, count, accepted):
    number = len(jax.devices())
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")  # Keeps the devices of this process.
    monkeypatch.setattr(devices, "keep_memory", lambda: None)
    monkeypatch.setattr(processes, "fail_together", contextlib.nullcontext)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    message = f"--devices={number + 1}: must be {accepted.format(number)}"
    with pytest.raises(processes.DeviceError, match=f"^{message}$"):
        devices.start_devices(number + 1)


def test_incomplete_arguments_are_refused():
    for given in (("a:1", None, 0), (None, 2, 0), ("a:1", 2, 2), ("a:1", 2, -1)):
        with pytest.raises(processes.DeviceError, match="all three are needed"):
            processes.join(*given)
    with pytest.raises(processes.DeviceError, match="--coordinator_address=localhost: must be HOST:PORT"):
        processes.join("localhost", 2, 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_processes_batches_concatenate_to_the_global_batch(streamed):
    pixels = np.arange(22, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    labels = np.arange(22, dtype=np.int32)
    images = pixels
    if streamed:
        view = stream.View(4, random=True)
        images = stream.Stream(lambda example, crop: pixels[example][:4, :4], np.arange(22), channels=3, view=view)

    def train(part, start=3, **order):
        found = batches.train_batches(images, labels, batch_size=8, seed=0, start=start, part=part, **order)
        return [next(found) for _ in range(4)]

    micro_batches = functools.partial(train, devices=2, micro_batches=2)

    def evaluation(part):
        return list(batches.eval_batches(images, labels, batch_size=8, part=part))

    for make in (train, micro_batches, evaluation):
        for whole, *parts in zip(make((0, 1)), make((0, 2)), make((1, 2)), strict=True):
            for name, expected in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)
    for batch, ordered in zip(train((0, 1)), micro_batches((0, 1)), strict=True):
        for name, values in batch.items():  # Each device has its half of each micro-batch.
            np.testing.assert_array_equal(ordered[name], values[[0, 1, 4, 5, 2, 3, 6, 7]])


WAITING = """
import signal
import sys

import jax

from train.parallel import processes

initialize = jax.distributed.initialize


def announced(*arguments, **options):
    print("waits", flush=True)
    initialize(*arguments, **options)


jax.distributed.initialize = announced
signal.signal(signal.SIGTERM, lambda *_: None)  # As in a run; a Python handler would run only after the call returns.
processes.WAIT = int(sys.argv[3])
processes.join(sys.argv[1], 2, int(sys.argv[2]))
"""


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_without_its_peer_fails_with_one_line(index, start):
    port = free_port()
    done = start(WAITING, f"localhost:{port}", index, 2)
    first, last = done.stderr.splitlines()
    whom = ["the other process", "process 0"][index]
    assert first == f"process {index} of 2: waiting up to 2 s for {whom} at localhost:{port}"
    assert done.returncode == 1 and last == f"error: the processes at localhost:{port} did not connect within 2 s"


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_waiting_for_its_peer_ends_at_a_signal(index, launch):
    waiting = launch(WAITING, f"localhost:{free_port()}", index, 10_000)
    waiting.wait_until(lambda: "waits\n" in waiting.stdout())
    output = waiting.stderr()  # While it waits.
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait().returncode == -signal.SIGTERM and "waiting up to 10000 s for " in output
