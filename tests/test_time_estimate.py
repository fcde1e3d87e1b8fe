"""Tests of the estimated time of a run: its format, when it is printed, and what would shorten the run."""

import time

import jax
import pytest

import models
from experiments.cli.config import ClassifyConfig, SegmentConfig
from experiments.reporting import time_estimate
from experiments.setup import training
from experiments.setup.experiment import ClassificationInfo, Experiment
from train.metrics import Timer


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (10, "1 min"),
        (700, "12 min"),
        (3570, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (86000, "23 h 53 min"),
        (86370, "1 day 0 h"),
        (190000, "2 days 5 h"),
    ],
)
def test_durations_are_rounded(seconds, text):
    assert time_estimate.duration(seconds) == text


def test_the_line_names_what_would_shorten_a_run():
    assert time_estimate.line(700, 1234.4, []) == "estimated time: about 12 min at 1,234 images/s"
    assert time_estimate.line(700, 0.51234, []) == "estimated time: about 12 min at 0.51 images/s"
    line = time_estimate.line(12000, 12, ["--image_size=96", "--model=cnn", "fewer --epochs"])
    assert line == (
        "estimated time: about 3 h 20 min at 12 images/s; on a CPU, --image_size=96, --model=cnn or fewer --epochs "
        "would shorten it"
    )
    assert time_estimate.line(12000, 12, ["fewer --steps"]).endswith("on a CPU, fewer --steps would shorten it")


def test_it_is_printed_once_after_the_first_seconds(capsys):
    called = []
    estimate = time_estimate.TimeEstimate(
        steps=1000, batch_size=10, evaluated=lambda step: 600, shorter=lambda: called.append(1) or ["--model=cnn"]
    )
    estimate(1, 10, 100.0)  # The speed of a single step is not known: the next one may still be running.
    estimate(2, 20, 9.0)
    assert capsys.readouterr().err == ""
    estimate(3, 30, 30.0)  # 9,970 images, and 600 at a third of the time, at 1 image/s.
    estimate(4, 40, 40.0)
    expected = "estimated time: about 2 h 50 min at 1 images/s; on a CPU, --model=cnn would shorten it\n"
    assert capsys.readouterr().err == expected and called == [1]
    for seconds, expected in ((10.0, "about 8 min at 4 images/s\n"), (0.1, "")):  # Short runs need no advice.
        estimate = time_estimate.TimeEstimate(200, 10, evaluated=lambda step: 0, shorter=lambda: called.append(2))
        estimate(4, 40, seconds)
        assert capsys.readouterr().err.endswith(expected) and called == [1]


def experiment(model, side, channels=3, classes=3):
    info = ClassificationInfo((side, side, channels), (0.0,), (1.0,), tuple("abc"))
    return Experiment(info, (side, side, channels), models.create(model, classes), None, None)


def test_settings_that_would_shorten_a_run():
    def settings(model, side, dataset="folder", **flags):
        config = ClassifyConfig(workdir="W", model=model, dataset=dataset, **flags)
        return time_estimate.shorter_settings(config, experiment(model, side))

    assert settings("vgg11", 224) == ["--image_size=96", "--model=resnet18", "fewer --epochs"]
    assert settings("cnn", 64, steps=9) == ["fewer --steps"]
    assert settings("vgg11", 32, "cifar10") == ["--model=cifar_resnet20", "fewer --epochs"]
    assert time_estimate.shorter_settings(SegmentConfig(workdir="W"), experiment("cnn", 64)) == ["fewer --epochs"]
    assert settings("mlp", 6) == ["fewer --epochs"]  # Smaller than cnn supports.


def test_networks_that_need_large_images_get_no_smaller_ones(monkeypatch):
    config = ClassifyConfig(workdir="W", model="cnn", dataset="folder")

    def refuse(model, input_shape):
        if input_shape[0] < 224:
            raise models.ModelError("too small")
        return 1

    monkeypatch.setattr(time_estimate.summary, "multiply_adds", refuse)
    assert time_estimate.shorter_settings(config, experiment("cnn", 224)) == ["fewer --epochs"]


def test_a_timer_measures_all_intervals(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timer = Timer(0.0)
    assert timer.measured() == (0, 0.0)
    timer.start_interval()
    timer.count(8)
    now[0] = 2.0
    assert timer.measured() == (8, 2.0)
    timer.images_per_second()
    now[0] = 50.0  # An evaluation.
    timer.start_interval()
    timer.count(8)
    now[0] = 53.0
    assert timer.measured() == (16, 5.0)


def test_the_evaluations_of_a_run_are_counted():
    from data.dataset import Dataset

    sizes = {"train": 100, "val": 30, "test": 50}
    dataset = Dataset("d", {name: (range(n), range(n)) for name, n in sizes.items()}, ("a", "b"))
    config = ClassifyConfig(workdir="W", eval_every=4)
    task = type("Task", (), {"early_steps": 0})
    found = training.estimate(config, experiment("cnn", 32)._replace(task=task), dataset, "val", 10)
    # After steps 4, 8 and 10, and once on test.
    assert [found.evaluated(step) for step in (0, 3, 4, 9)] == [140, 140, 110, 80]
    assert not found.printed and jax.default_backend() == "cpu"
    task.early_steps = 3
    assert training.estimate(config, experiment("cnn", 32)._replace(task=task), dataset, "test", 10).printed
