"""Tests with runs of an older version: stored_runs/ was created by commit b9dec07, of 28 November 2026."""

import contextlib
import json
import shutil
import tarfile

import numpy as np
import pytest
from commands import ROOT
from results import result

import data
import experiments
from experiments.cli.config import GenerateConfig, SegmentConfig
from experiments.reporting import run_record
from experiments.setup import saved_run
from train.workdir import Workdir, WorkdirError

STORED = ROOT / "tests" / "stored_runs"
FLAGS = (
    *("--model=mlp", "--hidden=4", "--activation=tanh", "--steps=24", "--batch_size=64", "--learning_rate=0.05"),
    *("--schedule=step", "--drops=0.5,0.75", "--weight_decay=0.001", "--label_smoothing=0.1"),
    *("--eval_every=12", "--log_every=4"),
)
LOSS, ACCURACY = 1.7865311889648436, 0.424  # Of an uninterrupted run of the older version.


@pytest.fixture
def stopped_run(tmp_path):
    """The workdir of a run that was stopped by a signal at step 12."""
    workdir = tmp_path / "W"
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Since Python 3.11.4.
    with tarfile.open(STORED / "classify.tar.gz") as archive:
        archive.extractall(workdir, **options)
    return workdir


@pytest.mark.slow
def test_a_run_stopped_in_an_older_version_resumes(stopped_run, start):
    rows = (stopped_run / "metrics.csv").read_text()
    done = start("classify", f"--workdir={stopped_run}", *FLAGS)
    assert done.returncode == 0 and "resuming from step 12" in done.stderr, done.stderr
    summary = result(done)
    assert summary["loss"] == pytest.approx(LOSS, rel=1e-3) and summary["accuracy"] == pytest.approx(ACCURACY, abs=0.01)
    assert (stopped_run / "metrics.csv").read_text().startswith(rows)
    # The run can also be loaded, for example in a notebook.
    run, (images, labels) = experiments.load_run(str(stopped_run)), data.load("mnist5k").splits["test"]
    probabilities = run.predict(images)
    assert (probabilities.argmax(-1) == labels).mean() == pytest.approx(summary["accuracy"])
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1e-5)
    assert run.class_names == tuple("0123456789") and run.config.hidden == (4,)
    logits = run.experiment.model.apply(run.variables, np.zeros((1, 28, 28, 1), np.float32), train=False)
    assert logits.shape == (1, 10)
    assert run.predict(images[:0]).shape == (0, 10)
    with pytest.raises(ValueError, match="checkpoint must be 'latest' or 'best', not 'newest'"):
        experiments.load_run(str(stopped_run), "newest")
    with pytest.raises(ValueError, match=r"images must be uint8 of shape \[N, 28, 28, 1\], not float64"):
        run.predict(images / 255.0)


def test_another_flag_is_refused_with_both_values(stopped_run, start):
    done = start("classify", f"--workdir={stopped_run}", *FLAGS, "--learning_rate=0.06")
    both = "was created with different flags: --learning_rate=0.05 (stored), 0.06 (given); choose a new --workdir"
    assert (done.returncode, done.stderr) == (1, f"error: {stopped_run} {both}\n")


@pytest.mark.parametrize("command, config_class", [("segment", SegmentConfig), ("generate", GenerateConfig)])
def test_runs_of_older_versions_can_be_loaded(tmp_path, command, config_class):
    shutil.copy(STORED / f"{command}.json", tmp_path / "run.json")
    run, stored = saved_run.read(str(tmp_path)), json.loads((tmp_path / "run.json").read_text())
    assert isinstance(run.config, config_class) and list(run.info.class_names) == stored["class_names"]
    with contextlib.closing(Workdir(str(tmp_path))) as workdir:
        run_record.check_flags(workdir, run.config, config_class(**stored["flags"] | {"drops": (0.5, 0.75)}))


def test_an_unknown_stored_flag_is_a_one_line_error(stopped_run, start):
    run = json.loads((stopped_run / "run.json").read_text())
    run["flags"]["warp"] = 9
    (stopped_run / "run.json").write_text(json.dumps(run))
    with pytest.raises(WorkdirError, match="run.json: --warp=9: this version has no such flag"):
        saved_run.read(str(stopped_run))
    done = start("classify", f"--workdir={stopped_run}", *FLAGS)
    assert done.returncode == 1 and done.stderr.endswith("--warp=9: this version has no such flag\n")
    assert done.stderr.count("\n") == 1
