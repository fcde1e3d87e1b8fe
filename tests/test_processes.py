"""Two real processes that train together."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data import batches, stream
from train import processes

COMMON = ["--steps=160", "--batch_size=32", "--log_every=20", "--eval_every=80", "--save_every=10"]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


CLASSIFY = ["-m", "experiments.classify"]
# The same with a small network of AlexNet's form in its place.
HYBRID = """
import models
from tests.test_hybrid import Tiny

models.REGISTRY["alexnet_owt"] = (Tiny, {"widths": (4, 8, 8, 8, 8), "units": 30})
from experiments import classify, flags

flags.run(classify.main)
"""


def launch(environment, *arguments, program=CLASSIFY, count=2, own=("--keep=2",) * 2):
    """The processes of one run, each with a flag of its own."""
    command = [sys.executable, *program, *arguments]
    if count == 1:
        return [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)]
    command.append(f"--coordinator_address=localhost:{free_port()}")
    return [
        subprocess.Popen(
            [*command, "--num_processes=2", f"--process_id={i}", own[i]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for i in range(2)
    ]  # fmt: skip


def finish(pair):
    """(exit status, summary or None, standard error of the first) of the run."""
    (out, error), *others = (process.communicate(timeout=300) for process in pair)
    status = pair[0].returncode
    for process, (other_out, other_error) in zip(pair[1:], others, strict=True):
        lines = [line for line in other_out.splitlines() if not line.startswith("[Gloo]")]  # The library's own.
        assert process.returncode == status and lines == [], error + other_error
        assert "Traceback" not in error + other_error, error + other_error
    return status, json.loads(out.splitlines()[-1]) if status == 0 else None, error


def stop_second(pair, workdir):
    """Tells the second process alone to stop, once there is a checkpoint: both do."""
    deadline = time.monotonic() + 200
    while not list((workdir / "checkpoints").glob("*0/about")) and time.monotonic() < deadline:
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGTERM)
    status, _, error = finish(pair)
    assert status == 143 and "stopped at step" in error


def test_two_processes_train_stop_and_go_on_together(tmp_path, environment):
    run = ["--model=mlp", "--dropout=0.2", "--augment=digits", *COMMON]
    status, whole, error = finish(launch(environment, f"--workdir={tmp_path / 'whole'}", *run))
    assert status == 0 and whole["step"] == 160 and "2 cpu devices in 2 processes" in error
    _, summary, _ = finish(launch(environment, f"--workdir={tmp_path / 'alone'}", "--devices=2", *run, count=1))
    assert summary["accuracy"] == pytest.approx(whole["accuracy"], abs=0.01)
    assert summary["loss"] == pytest.approx(whole["loss"], rel=1e-3)

    parts = tmp_path / "parts"
    stop_second(launch(environment, f"--workdir={parts}", *run), parts)
    status, resumed, error = finish(launch(environment, f"--workdir={parts}", *run))
    assert status == 0 and "going on from step" in error
    assert resumed["fingerprint"] == whole["fingerprint"]
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "parts")]
    kept = [[row.split(",")[:5] for row in lines] for lines in rows]
    assert kept[0] == kept[1] and len(rows[0]) == 9

    for own, statuses, told in (
        (["--seed=1", "--seed=2"], [1, 2], "--seed=2 in this process, --seed=1 in the first"),
        (["--keep=2", "--momentum=nan"], [1, 2], "--momentum=nan in this process, --momentum=0.9 in the first"),
    ):
        pair = launch(environment, f"--workdir={tmp_path / 'unlike'}", *run, own=own)
        errors = [process.communicate(timeout=100)[1] for process in pair]
        assert [process.returncode for process in pair] == statuses and told in errors[1], errors
        assert "another process of this run has stopped" in errors[0]

    pair = launch(environment, f"--workdir={parts}", *run, "--seed=1")
    errors = [process.communicate(timeout=100)[1] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], errors
    assert "--seed: 0 there, 1 here" in errors[0] and "another process of this run has stopped" in errors[1]


def test_two_processes_divide_the_dense_layers(tmp_path, environment):
    run = ["--model=alexnet_owt", "--augment=digits", "--learning_rate=0.01", *COMMON]
    run += ["--steps=100", "--save_every=10", "--fc_passes=2", "--parallelism=hybrid"]
    program, parts, data = ["-c", HYBRID], tmp_path / "parts", tmp_path / "data"
    stop_second(launch(environment, f"--workdir={parts}", *run, program=program), parts)
    shutil.copytree(parts, data)
    status, resumed, error = finish(launch(environment, f"--workdir={parts}", *run, program=program))
    assert status == 0 and "going on from step" in error and resumed["step"] == 100
    # The same checkpoint on one device, in data parallelism.
    alone = [*run, "--parallelism=data", "--fc_passes=1"]
    status, there, error = finish(launch(environment, f"--workdir={data}", *alone, program=program, count=1))
    assert status == 0 and "going on from step" in error
    assert there["loss"] == pytest.approx(resumed["loss"], rel=0.01)


def test_arguments_that_are_incomplete():
    for given in (("a:1", None, 0), (None, 2, 0), ("a:1", 2, 2), ("a:1", 2, -1)):
        with pytest.raises(ValueError, match="all three are needed"):
            processes.join(*given)
    with pytest.raises(ValueError, match="--coordinator_address=localhost: accepted is HOST:PORT"):
        processes.join("localhost", 2, 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_processes_rows_are_those_of_the_whole_batch(streamed):
    pictures = np.arange(22, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    labels = np.arange(22, dtype=np.int32)
    images = pictures
    if streamed:
        view = stream.View(4, random=True)
        images = stream.Stream(lambda example, crop: pictures[example][:4, :4], np.arange(22), channels=3, view=view)

    def train(part, start=3):
        found = batches.train_batches(images, labels, batch_size=8, seed=0, start=start, part=part)
        return [next(found) for _ in range(4)]

    def evaluation(part):
        return list(batches.eval_batches(images, labels, batch_size=8, part=part))

    for make in (train, evaluation):
        for whole, *parts in zip(make((0, 1)), make((0, 2)), make((1, 2)), strict=True):
            for name, expected in whole.items():
                np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)


WAITING = """
import sys
from train import processes

processes.WAIT = int(sys.argv[3])
print("waits", flush=True)
processes.join(sys.argv[1], 2, int(sys.argv[2]))
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_left_alone_ends_at_a_signal_or_with_one_line(index):
    command = [sys.executable, "-c", WAITING, f"localhost:{free_port()}", str(index)]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stderr.startswith("error: the processes at localhost:"), done.stderr
    assert done.stderr.endswith("did not find each other in 2 s\n") and done.stderr.count("\n") == 1
    with subprocess.Popen([*command, "200"], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout and waiting.stdout.readline() == "waits\n"
        time.sleep(1)
        waiting.terminate()
        assert waiting.wait(timeout=20) == -signal.SIGTERM
