"""Tests of --profile_steps, the trace of training steps, and of --deterministic."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import SignalAt
from results import result, same

from experiments.cli import validation
from experiments.cli.app import UsageError
from train import loop
from train.parallel import devices, processes
from train.profile import Profile
from train.signals import Interrupted
from train.state import State
from train.task import Task
from train.workdir import WorkdirError


def step(state, batch):
    weights = {"w": state.params["w"] * 0.5 + batch["label"].sum()}
    sums = {"loss": weights["w"], "count": jnp.ones_like(batch["label"], jnp.float32).sum()}
    return state._replace(step=state.step + 1, params=weights), sums


def train(profile, *, start=0, steps=8, stop=None, fetched=lambda number: None):
    """A run of a task without a network; an evaluation is due at step 4. `stop(step)` is the number of a signal, and
    `fetched(step)` is called when the batch of a step is fetched."""
    done = start  # Steps whose batch was fetched.

    def batches(first):
        nonlocal done
        for number in itertools.count(first):
            done += 1
            fetched(number)
            yield {"label": np.full(4, number, np.int32)}

    task = Task("", None, step, lambda state, batch: step(state, batch)[1], lambda sums: {"loss": 0.0}, None,
                ("loss",), ("loss",), ("loss", "min"))  # fmt: skip
    number = property(lambda self: stop(done) if stop else 0)
    checkpoints = types.SimpleNamespace(save=lambda *given, **named: None, wait=lambda: None)
    metrics = types.SimpleNamespace(append=lambda row: None)
    output = loop.Output(checkpoints, metrics, lambda step, row: None, profile=profile)
    with contextlib.closing(profile):  # As training.output does.
        return loop.train(
            State({"w": jnp.zeros(())}, {}, {}, jnp.int32(start), jax.random.key(0)),
            {},
            task=task,
            plan=loop.Plan(steps, eval_every=4, log_every=100, save_every=0, learning_rate=lambda step: 0.1),
            data=loop.Data(batches, loop.EvalData(lambda: [{"label": np.zeros(4, np.int32)}], 4)),
            devices=1,
            output=output,
            stop=type("Signals", (), {"number": number})(),
        ).state


def events(path, name):
    """The events of a name in a trace, in order."""
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    found = [event for plane in planes for line in plane.lines for event in line.events if event.name == name]
    return sorted(found, key=lambda event: event.start_ns)


def traced(path) -> list[int]:
    """The numbers of the steps in a trace."""
    return [dict(event.stats)["step_num"] for event in events(path, "train")]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "start, steps, expected",
    [(0, range(0, 1), [0]), (0, range(2, 6), [2, 3, 4, 5]), (0, range(7, 8), [7]), (4, range(2, 6), [4, 5])],
)
def test_the_trace_contains_the_steps_and_leaves_the_run_unchanged(tmp_path, start, steps, expected):
    """Also of a run that resumes at a step among them, and across the evaluation at step 4."""
    written = []
    found = train(Profile(tmp_path, steps), start=start, fetched=lambda step: written.append(bool(files(tmp_path))))
    plain = train(Profile(), start=start)
    assert written == [step >= steps.stop for step in range(start, 8)]
    assert float(found.params["w"]) == float(plain.params["w"]) and int(found.step) == 8
    place = f"plugins/profile/steps_{expected[0]}_{steps.stop}"
    trace, xplane = files(tmp_path)
    assert trace.startswith(place) and trace.endswith(".trace.json.gz") and xplane.endswith(".xplane.pb")
    assert traced(tmp_path / xplane) == expected


def test_the_trace_begins_before_its_first_step_and_is_written_after_its_last(tmp_path):
    profile = Profile(tmp_path, range(1, 3))
    for step in range(5):
        profile.before(step, ())
        assert bool(list(tmp_path.iterdir())) == (step >= 1)
        profile.after(step + 1, ())
        assert bool(files(tmp_path)) == (step >= 2)
        with jax.profiler.TraceAnnotation("between"):  # Such as an evaluation.
            pass
    (between,) = events(tmp_path / files(tmp_path)[1], "between")
    first, second = events(tmp_path / files(tmp_path)[1], "train")
    assert first.end_ns <= between.start_ns and between.end_ns <= second.start_ns


def test_a_run_that_resumes_later_or_has_no_steps_to_trace_writes_nothing(tmp_path):
    for profile, start in ((Profile(tmp_path, range(2, 4)), 4), (Profile(tmp_path), 0)):
        train(profile, start=start)
        assert not list(tmp_path.iterdir())


def test_a_signal_ends_the_trace(tmp_path, capsys):
    with pytest.raises(Interrupted, match="stopped at step 4"):
        train(Profile(tmp_path, range(2, 7)), stop=lambda step: signal.SIGTERM if step >= 4 else 0)
    assert traced(tmp_path / files(tmp_path)[1]) == [2, 3]
    assert capsys.readouterr().err == f"trace of steps 2 to 3: xprof --logdir={tmp_path}\n"
    train(Profile(tmp_path, range(2, 7)), start=4)  # The rest is another trace.
    assert {path.parent.name: traced(path) for path in tmp_path.rglob("*.pb")} == {
        "steps_2_4": [2, 3],
        "steps_4_7": [4, 5, 6],
    }
    assert capsys.readouterr().err == f"trace of steps 4 to 6: xprof --logdir={tmp_path}\n"


def test_each_process_writes_its_own_trace(tmp_path, monkeypatch):
    for index in range(2):
        monkeypatch.setattr(processes, "index_and_count", lambda index=index: (index, 2))
        train(Profile(tmp_path, range(1, 3)))
    names = [pathlib.Path(name).name for name in files(tmp_path)]
    host = names[0].removesuffix("_0.trace.json.gz")
    assert names == [f"{host}_{index}{ending}" for index in range(2) for ending in (".trace.json.gz", ".xplane.pb")]
    assert [path.name for path in tmp_path.iterdir()] == ["plugins"]


def test_a_trace_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "plugins").write_text("")
    with pytest.raises(WorkdirError, match=f"{tmp_path}: the trace can't be written: .*plugins"):
        train(Profile(tmp_path, range(1, 2)))
    with pytest.raises(FileExistsError, match="plugins"):
        train(Profile(tmp_path / "plugins", range(1, 2)))
    train(Profile(tmp_path / "other", range(1, 2)))
    assert len(files(tmp_path / "other")) == 2


def test_profiled_steps():
    assert validation.profiled_steps("0:1") == range(0, 1) and validation.profiled_steps("100:103") == range(100, 103)
    assert validation.profiled_steps(None) == range(0)
    for given in ("", "3", "3:3", "4:3", "-1:3", "1:2:3", "a:b", "1.0:2", " 1:2", "1:", "1:99999999999"):
        with pytest.raises(UsageError, match=re.escape(f"--profile_steps={given}: must be A:B with 0 <= A < B")):
            validation.profiled_steps(given)
    assert len(validation.profiled_steps("5:1005")) == 1000
    with pytest.raises(UsageError, match="--profile_steps=5:1006: must be at most 1,000 steps"):
        validation.profiled_steps("5:1006")


RUN = ["--model=mlp", "--hidden=8", "--steps=6", "--batch_size=32", "--log_every=1", "--eval_every=3"]


@pytest.mark.slow
def test_a_profiled_and_interrupted_run_equals_a_plain_one(start, tmp_path):
    plain = result(start("classify", f"--workdir={tmp_path / 'plain'}", *RUN))
    parts, flags = tmp_path / "parts", ["--profile_steps=1:5", "--deterministic"]
    stop = SignalAt(signal.SIGTERM, "train.workdir:MetricsFile.append", 3)
    stopped = start("classify", f"--workdir={parts}", *RUN, *flags, signal_at=stop)
    xplane = parts / "profile" / files(parts / "profile")[1]
    assert (
        stopped.returncode == 143 and traced(xplane) == [1, 2] and f"xprof --logdir={parts}/profile\n" in stopped.stderr
    )
    done = start("classify", f"--workdir={parts}", *RUN, "--profile_steps=1:3")  # Both flags may change.
    assert same(result(done), plain) and len(files(parts / "profile")) == 2
    assert "--profile_steps=1:3: no new trace, because the run resumes from step 3" in done.stderr
    again = start("classify", f"--workdir={tmp_path / 'dry'}", *RUN, "--profile_steps=4:6", "--dry_run")
    assert again.returncode == 0 and not (tmp_path / "dry").exists(), again.stderr


# --- --deterministic

FLAGS = "--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true"


@pytest.mark.parametrize(
    "own, expected",
    [
        (None, FLAGS),
        ("", FLAGS),
        (" --xla_a=1  --xla_b=c", f"--xla_a=1  --xla_b=c {FLAGS}"),
        ("--xla_gpu_deterministic_ops", "--xla_gpu_deterministic_ops --xla_gpu_exclude_nondeterministic_ops=true"),
        (FLAGS, FLAGS),
        ("--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=1 --xla_gpu_exclude_nondeterministic_ops=True",
         "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=1 --xla_gpu_exclude_nondeterministic_ops=True"),
    ],
)  # fmt: skip
def test_the_users_xla_flags_are_kept(own, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", own) if own is not None else monkeypatch.delenv("XLA_FLAGS", raising=False)
    devices.make_deterministic()
    assert os.environ["XLA_FLAGS"] == expected


def test_a_file_of_xla_flags_is_kept(tmp_path, monkeypatch):
    (tmp_path / "flags").write_text("--xla_a=1\n--xla_b=2\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    devices.make_deterministic()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_a=1", "--xla_b=2", *FLAGS.split()]
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "none"))
    with pytest.raises(processes.DeviceError, match="none: must be flags, --NAME=VALUE, or a readable file"):
        devices.make_deterministic()


@pytest.mark.parametrize("value", ["false", "0", "False"])
def test_opposite_xla_flags_are_refused(value, monkeypatch):
    flag = f"--xla_gpu_exclude_nondeterministic_ops={value}"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_a=1 {flag}")
    with pytest.raises(processes.DeviceError, match=f"--deterministic contradicts {flag} in XLA_FLAGS; remove one"):
        devices.make_deterministic()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 {flag}"


DEVICES = """
import json
import os

from experiments.cli.config import ClassifyConfig
from experiments.setup import training
from train.signals import Stop

found = training.start_devices(ClassifyConfig(workdir="W", deterministic=True, devices=2), Stop())
import jax

print(json.dumps([found.number, jax.device_count(), float(jax.numpy.ones(3).sum()), os.environ["XLA_FLAGS"]]))
"""


def test_this_version_of_xla_knows_the_flags(start, environment):
    """XLA ends the process at an unknown flag. It reads the user's flags and ours when the devices start."""
    own = "--xla_force_host_platform_device_count=3"
    done = start(DEVICES, environment=environment | {"XLA_FLAGS": own})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2, 3, 3.0, f"{own} {FLAGS}"]
    assert done.stderr == "--deterministic has no effect here: runs on CPUs are deterministic without it\n"
    unknown = start(DEVICES, environment=environment | {"XLA_FLAGS": "--xla_unknown=1"})
    assert unknown.returncode != 0 and "Unknown flag in XLA_FLAGS: --xla_unknown=1" in unknown.stderr
