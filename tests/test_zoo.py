"""Tests of the code shared by the networks of the zoo: drawings, the page, resuming, rejected flags."""

import json
import re
import sys
import types
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from experiments.cli import app
from experiments.lecture import lesson
from experiments.lecture import page as lecture_page
from experiments.lecture.topic import mean_and_std
from experiments.lecture.zoo import __main__ as zoo
from experiments.lecture.zoo import drawing, networks, page
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from train.workdir import WorkdirError

EVIL = '<script>alert("x")</script>'
FORMULA = "<math><mi>x</mi></math>"


def card(name: str, run) -> Card:
    def report(results):
        with matplotlib.rc_context(figures.STYLE):
            figure = figures.new_figure()
            figure.add_subplot().plot([result["score"] for result in results])
        numbers = {"score": mean_and_std([result["score"] for result in results])}
        return Findings(f"Found {EVIL}", numbers, {"score": 0.1}, figure, f"caption {EVIL}")

    diagram = Diagram((Layer("input", 2), Layer("hidden", 3), Layer("output", 1)))
    return Card(name, f"Title {EVIL}", diagram, EVIL, FORMULA, EVIL, EVIL, run, report, EVIL)


@pytest.fixture
def trained(monkeypatch):
    """Replaces the zoo by two networks and returns the list of the (name, seed) pairs that were trained."""
    done: list[tuple[str, int]] = []

    def make(name):
        def run(seed):
            done.append((name, seed))
            return {"score": seed + 0.5}

        return card(name, run)

    cards = (make("one"), make("two"))
    for module in (zoo, networks):
        monkeypatch.setattr(module, "NETWORKS", {"one": "fake", "two": "fake"})
    monkeypatch.setitem(sys.modules, "experiments.lecture.zoo.fake", types.SimpleNamespace(CARDS=cards))
    monkeypatch.setattr("experiments.cli.compilation_cache.start_cache", lambda: None)
    return done


def start(workdir, only=(), seeds=1) -> int:
    return zoo.main(zoo.ZooConfig(workdir=str(workdir), only=only, seeds=seeds))


def test_networks_are_trained_once_and_all_results_are_shown(trained, tmp_path, capsys):
    assert start(tmp_path / "w", only=("two",), seeds=2) == 0 and trained == [("two", 0), ("two", 1)]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "w/summary.json").read_text())
    assert last["networks"].keys() == {"two"}
    two = last["networks"]["two"]
    assert two["numbers"] == {"score": {"mean": 1.0, "std": pytest.approx(0.5**0.5)}}
    assert two["baseline"] == {"score": 0.1} and two["seconds"] >= 0
    shown = (tmp_path / "w/zoo.html").read_text()
    assert shown.count("<details") == 2 and shown.count("Not trained in this run.") == 1
    assert re.findall(r'id="(\w+)"><summary>(?:(?!</summary>).)*<p>not trained</p></summary>', shown) == ["one"]
    assert "lecture.zoo --only=two --seeds=2 --workdir=NEW" in shown
    assert start(tmp_path / "w", seeds=2) == 0 and trained == [("two", 0), ("two", 1), ("one", 0), ("one", 1)]
    shown = (tmp_path / "w/zoo.html").read_text()
    assert shown.index('id="one"') < shown.index('id="two"') and "Not trained" not in shown
    assert start(tmp_path / "w", seeds=2) == 0 and len(trained) == 4
    assert start(tmp_path / "w", only=("one",), seeds=3) == 0 and trained[4:] == [("one", 2)]
    piece = tmp_path / "w/pieces/one_seed0.json"
    piece.write_text(piece.read_text().replace("0.5", "0.6"))
    with pytest.raises(WorkdirError, match=r"one_seed0\.json is damaged; delete it to recompute the result"):
        start(tmp_path / "w", seeds=2)
    piece.write_text(piece.read_text()[:20])
    with pytest.raises(WorkdirError, match=r"one_seed0\.json is damaged: .*; delete it to recompute the result"):
        start(tmp_path / "w", seeds=2)


@pytest.mark.parametrize(("error", "advice"), [(RuntimeError, False), (KeyboardInterrupt, True)])
def test_a_network_that_fails_is_trained_again_and_the_others_are_kept(
    trained, tmp_path, monkeypatch, capsys, error, advice
):
    def fails(seed):
        raise error("killed")

    cards = networks.cards()
    monkeypatch.setattr(zoo, "cards", lambda: cards | {"two": card("two", fails)})
    with pytest.raises(error, match="killed"):
        start(tmp_path / "w")
    assert ("finished parts are saved; the same command resumes" in capsys.readouterr().err) == advice
    monkeypatch.setattr(zoo, "cards", lambda: cards)
    assert start(tmp_path / "w") == 0 and trained == [("one", 0), ("two", 0)]


def test_unknown_networks_and_folders_of_other_commands_are_refused(trained, tmp_path):
    with pytest.raises(app.UsageError, match="--only=three: must be one of one, two"):
        start(tmp_path / "w", only=("three",))
    assert not (tmp_path / "w").exists()
    (tmp_path / "topic").mkdir()
    (tmp_path / "topic/options.json").write_text('{"experiment": "pooling", "seeds": 1}')
    with pytest.raises(WorkdirError, match="was created with another command; use a new --workdir"):
        start(tmp_path / "topic")


def test_the_page_is_escaped_and_self_contained(trained, tmp_path):
    assert start(tmp_path / "w") == 0
    shown = (tmp_path / "w/zoo.html").read_text()
    assert "<script" not in shown and shown.count("&lt;script&gt;") > 10
    assert shown.count("data:image/png;base64,") == 2 and not re.search(r'(src|href)="(?!data:|#)', shown)


def drawn(diagram: Diagram) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.svg(diagram, "a title"))


def count(svg: ElementTree.Element, tag: str, **attributes: str) -> int:
    return sum(all(item.get(key) == value for key, value in attributes.items()) for item in svg.iter(tag))


def test_a_drawing_has_every_cell_and_every_connection():
    layers = (Layer("input", 2), Layer("hidden", 3), Layer("hidden", 3, "one"), Layer("output", 5, "near"))
    svg = drawn(Diagram(layers, skips=((1, 2),)))
    assert svg.find("title").text == "a title"
    assert count(svg, "circle", r="8") == 13
    assert count(svg, "path") == 3  # Three curves of the skip.
    everything = drawn(Diagram((Layer("input", 2), Layer("hidden", 3))))
    assert count(everything, "line") == 6
    assert count(drawn(Diagram((Layer("backfed", 5),), "circle")), "line") == 10


@pytest.mark.parametrize("form", ["scattered", "grid"])
def test_the_cells_of_a_drawing_lie_inside_and_do_not_overlap(form):
    svg = drawn(Diagram((Layer("input", 3), Layer("hidden", 16), Layer("output", 3)), form))
    centers = np.array([(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle") if c.get("r") == "8"])
    distances = np.linalg.norm(centers[:, None] - centers[None], axis=-1) + 1e3 * np.eye(len(centers))
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert len(centers) == 22 and distances.min() >= 2 * drawing.RADIUS
    assert (centers > drawing.RADIUS).all() and (centers + drawing.RADIUS < (width, height)).all()


def test_kinds_of_cells_differ_in_color_or_mark():
    looks = {(kind.colour, kind.mark) for kind in drawing.KINDS.values()}
    assert len(looks) == len(drawing.KINDS)
    legend = drawing.legend(["hidden", "input"])
    assert legend.count("<li>") == 2 and legend.index("</svg> input") < legend.index("</svg> hidden")


def test_every_card_of_the_zoo_is_valid():
    for name, each in networks.cards().items():
        assert each.name == name and len(re.findall(r"\.(\s|$)", each.idea)) == 2, f"{name}: an idea has two sentences"
        assert lecture_page.checked_formula(lesson.formula(each.formula, display=True))
        assert each.rule.endswith(".") and each.reference
        assert count(drawn(each.diagram), "circle", r="8") == sum(layer.count for layer in each.diagram.layers)
    assert page.page([page.Shown(each) for each in networks.cards().values()], 1).count("<details") == len(
        networks.NETWORKS
    )
