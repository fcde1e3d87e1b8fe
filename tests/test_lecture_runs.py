"""Tests of the text of the lecture page about finished training runs."""

import json

import pytest

from experiments.lecture import __main__ as lecture
from experiments.lecture import lesson
from experiments.lecture.runs import RUNS
from experiments.reporting import figures

SEGMENT = {
    "dataset": "digit_scenes",
    "global_accuracy": 0.9612,
    "mean_iou": 0.615,
    "iou": {"background": 0.95, "0": 0.28, "1": None},
    "examples": 500,
    "step": 1200,
}
GENERATE = {
    "dataset": "mnist5k",
    "classifier_fid": 7.25,
    "floor": 0.35,
    "ceiling": 75.8,
    "coverage_min": 0.041,
    "coverage_max": 0.173,
    "accuracy_fake": 0.975,
    "split": "val",
    "step": 1200,
}


def test_segment():
    title, text, tables, guesses = RUNS["segment"].describe(SEGMENT)
    assert title == "SegNet: a class for every pixel (1,200 steps)"
    assert "right class for 96.1 % of the pixels of 500 images of digit_scenes" in text[0] and "is 61.5 %" in text[0]
    assert tables[0][2] == [["background", "95 %"], ["0", "28 %"], ["1", "none"]]
    assert guesses[0][3:] == (0, 100, pytest.approx(61.5))


def test_generate():
    _, text, tables, guesses = RUNS["generate"].describe(GENERATE)
    assert "of samples to val images, in" in text[0] and tables[0][0] == "Fréchet distance to val images"
    assert "of a classifier, is 7.2." in text[0] and "4 % of the samples to the rarest class and 17 %" in text[0]
    assert "still recognizes 98 % of the samples" in text[0]
    assert [row[1] for row in tables[0][2]] == ["0.35", "7.25", "75.80"]
    assert guesses[0][3:] == (0, 76, 7.25) and "training images is 0.3, that" in guesses[0][1]
    worse = RUNS["generate"].describe({**GENERATE, "classifier_fid": 80.5}).guesses[0]
    assert worse[3:] == (0, 81, 80.5)  # A score above the ceiling is in the range, too.


def test_only_topics_have_a_lesson_and_guesses(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "run.json").write_text(json.dumps({"task": "segmentation"}))
    (tmp_path / "summary.json").write_text(json.dumps(SEGMENT))
    figures.save_figure(figures.new_figure(), tmp_path / "figures" / "predictions.png")
    used, as_topic = lecture.run_section(tmp_path), lecture.run_section(tmp_path, "segment")
    assert (used.lesson, used.guesses, used.title) == ("", (), "SegNet: a class for every pixel (1,200 steps)")
    assert (as_topic.lesson, as_topic.title) == ("segment", lesson.read("segment").title)
    assert as_topic.guesses[0][0] == "predictions" and as_topic.tables == used.tables
    assert as_topic.command == "python -m experiments.segment --steps=800 --eval_every=200 --workdir=NEW"
