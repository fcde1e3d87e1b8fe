"""Tests of the figures of a sweep, and of which runs are started when a sweep is repeated."""

import contextlib
import json
import signal

import pytest

from experiments import sweep
from experiments.cli import options, subprocesses
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.reporting import sweep_table
from train.workdir import Workdir


def test_the_curves_of_a_sweep_are_means_with_a_band_per_setting(monkeypatch, tmp_path):
    rows = []
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        for seed in (0, 1):
            (tmp_path / f"{name}{seed}").mkdir()
            text = f"step,eval_accuracy\n1,\n2,{accuracy}\n4,{accuracy + seed / 8}\n"
            (tmp_path / f"{name}{seed}" / "metrics.csv").write_text(text)
            rows.append({"model": name, "seed": seed, "split": "val", "workdir": str(tmp_path / f"{name}{seed}")})
    drawn = []
    monkeypatch.setattr(
        "experiments.reporting.figures.save_figure", lambda figure, path: drawn.append((figure, path.name))
    )
    sweep_table.curves(tmp_path, rows, ["model", "seed"])
    (figure, name) = drawn[0]
    lines = figure.axes[0].lines
    assert name == "sweep_curves.png" and [list(line.get_xdata()) for line in lines] == [[2, 4]] * 2
    assert [list(line.get_ydata()) for line in lines] == [[50, 56.25], [75, 81.25]]
    assert [line.get_color() for line in lines] == ["C0", "C1"]
    spread = 12.5 / 2**0.5  # The standard deviation of two values that differ by 12.5.
    for band, mean in zip(figure.axes[0].collections, (56.25, 81.25), strict=True):
        assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(min(mean - spread, mean - 6.25))
        assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(mean + spread)
    assert figure.axes[0].get_ylabel() == "val accuracy, %"
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["model=a", "model=b"]
    sweep_table.curves(tmp_path, rows[:2], ["model", "seed"])
    assert drawn[1][0].axes[0].get_legend() is None  # One setting needs no legend.
    for figure, _ in drawn:
        figure.draw_without_rendering()
        (title,) = [text for text in figure.texts if "Mean and standard deviation" in text.get_text()]
        assert 0 <= title.get_window_extent().x0 < title.get_window_extent().x1 <= figure.bbox.width


@pytest.mark.parametrize("damaged", [None, b"step,loss\n1,x\n2,y\n", b"a,b\n1,2\n", b"\xff\xfe"])
def test_a_run_without_metrics_is_still_in_the_table(damaged, finished_sweep, tmp_path, capsys):
    path = tmp_path / "s/seed=1/metrics.csv"
    path.unlink() if damaged is None else path.write_bytes(damaged)
    status, _, rows = finished_sweep()
    printed = capsys.readouterr()
    assert status == 0 and len(rows) == 1 + 3 and "(3 runs)" in printed.out
    assert f"{path} can't be read: this run is missing from sweep_curves.png" in printed.err


@pytest.fixture
def finished_sweep(monkeypatch, tmp_path):
    """A sweep of three complete runs. Calling it repeats the sweep and returns (status, seeds for which classify was
    started, rows of sweep.csv)."""
    facts = {"class_names": ["0", "1"], "image_shape": [28, 28, 1], "splits": {"train": 8}, "mean": [1.0], "std": [2.0]}
    for seed in range(3):
        folder = tmp_path / "s" / f"seed={seed}"
        folder.mkdir(parents=True)
        config = ClassifyConfig(model="perceptron", steps=10, seed=seed, workdir=str(folder))
        run = {"task": "classification", "flags": options.to_json(config), **facts, "data_digests": {"train": "a"}}
        summary = {"accuracy": seed / 4, "fingerprint": "f", "split": "test", "step": 10, "workdir": "elsewhere"}
        (folder / "run.json").write_text(json.dumps(run))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.csv").write_text("step,eval_accuracy\n10,0.5\n")
    monkeypatch.setattr("experiments.reporting.figures.save_figure", lambda figure, path: None)

    def again(*flags, refuse=False, ended=None):
        started = []

        def classify(module, *arguments):
            started.append(arguments[-2].removeprefix("--seed="))
            output = "" if refuse else '{"accuracy": 0.0, "split": "test"}'
            return ended or subprocesses.Ended(int(bool(refuse)), output, 0)

        monkeypatch.setattr(subprocesses, "run", classify)
        arguments = ["--model=perceptron", "--steps=10", *flags]
        with contextlib.closing(Workdir(str(tmp_path / "s"))) as lock:  # A command holds the lock until it ends.
            monkeypatch.setattr(sweep, "Workdir", lambda path: lock)
            status = sweep.main(sweep.SweepConfig(str(tmp_path / "s"), "seed=0..2"), arguments)
        table = tmp_path / "s" / "sweep.csv"
        return status, started, table.read_text().splitlines() if table.exists() else []

    again.folder = tmp_path / "s"
    return again


def test_a_finished_sweep_starts_one_run_to_compare_the_data(finished_sweep):
    status, started, rows = finished_sweep()
    assert (status, started) == (0, ["0"])
    assert [row.split(",")[:2] for row in rows] == [["seed", "accuracy"], ["0", "0.0"], ["1", "0.25"], ["2", "0.5"]]
    assert f"{finished_sweep.folder}/seed=2" in rows[3] and "elsewhere" not in rows[3]  # The current location.


@pytest.mark.parametrize(("status", "number"), [(0, signal.SIGINT), (1, signal.SIGTERM), (130, signal.SIGINT)])
def test_a_signal_stops_the_sweep_also_if_the_run_ended_on_its_own(finished_sweep, status, number):
    ended = subprocesses.Ended(status, '{"accuracy": 0.0, "split": "test"}', number)
    assert finished_sweep("--steps=20", ended=ended)[:2] == (128 + number, ["0"])


def test_a_flagfile_with_dry_run_is_refused(finished_sweep, tmp_path):
    (tmp_path / "f.flags").write_text("--model=perceptron\n--dry_run\n")
    with pytest.raises(UsageError, match="--workdir and --dry_run are not allowed after the --"):
        finished_sweep(f"--flagfile={tmp_path}/f.flags")


@pytest.mark.parametrize("flag", ["--learning_rate=0.2", "--steps=20", "--devices=2", "--data_dir=D", "--steps=x"])
def test_classify_is_started_for_runs_with_other_flags(finished_sweep, flag):
    assert finished_sweep(flag, refuse=True) == (1, ["0", "1", "2"], [])


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("run.json", '"data_digests": {"train": "a"}', '"data_digests": {"train": "b"}'),
        ("run.json", '"data_digests": {"train": "a"}', '"data_digests": {}'),
        ("run.json", '"learning_rate": 0.1', '"learning_rate": 0.2'),
        ("run.json", '"devices": null', '"devices": 2'),
        ("run.json", '"task": "classification"', '"task": "generation"'),
        ("summary.json", '"fingerprint"', '"another"'),
        ("summary.json", "{", ""),
    ],
)
def test_classify_is_started_for_a_run_with_other_flags_or_data_or_incomplete(finished_sweep, name, before, after):
    path = finished_sweep.folder / "seed=1" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert finished_sweep()[1] == ["0", "1"]
