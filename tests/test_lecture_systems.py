"""Tests of the lecture's topic systems: shortcuts, drawings, and the numbers in its text."""

import contextlib

import pytest
from matplotlib.patches import FancyArrowPatch

from experiments.lecture import systems, topic
from train.workdir import Workdir


def test_shortcuts_of_residual_networks():
    shortcuts = systems.shortcuts("resnet34")
    # conv1, then 16 blocks of two convolutions; the first blocks of stages 2, 3 and 4 are the 4th, 8th and 14th.
    assert [(first, last) for first, last, _ in shortcuts] == [(1 + 2 * i, 2 + 2 * i) for i in range(16)]
    assert [i for i, (_, _, changes) in enumerate(shortcuts) if changes] == [3, 7, 13]
    assert systems.shortcuts("plain34") == systems.shortcuts("vgg19") == []
    assert systems.shortcuts("resnet50")[:2] == [(1, 3, True), (4, 6, False)]


def test_shortcuts_are_drawn():
    rows = {name: systems.weighted(name) for name in ("plain34", "resnet34")}
    drawn = systems.draw_side_by_side(rows, {name: systems.totals(name) for name in rows})
    (axes,) = drawn.axes
    arcs = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert [arc.get_linestyle() for arc in arcs].count(":") == 3 and len(arcs) == 16
    starts = [arc.get_path().vertices[0] for arc in arcs]  # In the second column, above the block's first layer.
    assert all(1.8 < x < 2 for x, _ in starts) and [round(y) for _, y in starts] == list(range(1, 33, 2))
    assert sum(not isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 2 * 34
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names[0] == "112x112 pixels" and names[-3:] == ["dense layer", "shortcut", "shortcut, size changes"]


def test_text_and_guesses(tmp_path, monkeypatch):
    monkeypatch.setattr(topic.Topic, "figure", lambda self, name, drawn, **_: self.figures.append(name))
    with contextlib.closing(Workdir(str(tmp_path / "w"))) as workdir:
        this_topic = topic.Topic(workdir, {})
        found = systems.experiment(this_topic)
    assert this_topic.figures == ["alexnet_split", "traffic", "side_by_side", "dense_block"]
    share, hybrid, times = (guess.value for guess in found.guesses)
    assert share == pytest.approx(100 * 2_469_696 / 61_100_840)
    # 4 bytes, 7/8 of: gradients of the convolutions twice; features and hidden units with their gradients; 11 numbers
    # per image.
    sent = 2 * 2_469_696 + 1024 * (2 * 9216 + 4 * 4096 + 1 + 10) + 2 + 6
    assert hybrid == pytest.approx(4 * 7 / 8 * sent / 1e6)
    assert times == pytest.approx(19_632_062_464 / 3_663_761_408)
    assert "have 4 % of the parameters and do 92 % of the multiply-adds" in found.text[0]
    assert "142 MB per step with hybrid parallelism and 428 MB with data parallelism" in found.text[1]
    assert "from 27 devices on, data parallelism sends less" in found.text[1]
    assert "VGG-19 has 19 layers and needs 5.4 times the multiply-adds of ResNet-34, which has 34" in found.text[2]
    assert found.tables[0][2][-1] == ["alexnet_owt", "494,184", "61,100,840", "714,188,480"]
