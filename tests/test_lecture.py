"""The lecture's page, and what its experiments are built on: pieces that are kept, other flags refused."""

import contextlib
import json
import re
import shlex
import signal

import pytest

from experiments.cli import subprocesses
from experiments.cli.flags import UsageError
from experiments.lecture import __main__ as lecture
from experiments.lecture import page as lecture_page
from experiments.lecture import topic
from experiments.reporting import figures
from train.workdir import Workdir, WorkdirError

EVIL = '<script>alert("x")</script>'


def test_formula_is_checked():
    good = '<math display="block"><msup><mi>x</mi><mn>2</mn></msup></math>'
    assert lecture_page.checked_formula(good) == good
    for bad in (
        "<math><script>1</script></math>",
        '<math><mi onclick="x">a</mi></math>',
        '<math><mi href="http://x">a</mi></math>',
        "<p>x</p>",
        "<mrow><mi>x</mi></mrow>",
        "<math><mi>x</math>",
        "x",
    ):
        with pytest.raises(ValueError, match="a formula"):
            lecture_page.checked_formula(bad)


def test_page_is_escaped_and_whole(tmp_path):
    figure = figures.new_figure()
    figure.add_subplot().plot([1, 2])
    figures.save_figure(figure, tmp_path / "x.png")
    section = lecture_page.Section(
        f"Title {EVIL}",
        [f"Text {EVIL}"],
        "<math><mi>x</mi></math>",
        [(f"Figure {EVIL}", f"caption {EVIL}", tmp_path / "x.png")],
        [(f"Table {EVIL}", ["a"], [[EVIL]])],
        {"number": EVIL},
        f"python {EVIL}",
    )
    page = lecture_page.page(f"Page {EVIL}", [EVIL], [section, section._replace(title="Second", formula="")])
    assert "<script" not in page and page.count("&lt;script&gt;") > 10
    assert page.count("<section class") == 2 and '<a href="#topic2">Second</a>' in page and 'id="topic2"' in page
    assert page.count("<math>") == 1 and page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_an_experiment_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(topic.flags, "start_cache", lambda: None)
    made, fails = [], [True]

    def experiment(run):
        def make(seed):
            if seed == 1 and fails:
                raise RuntimeError("killed")
            made.append(seed)
            return seed / 2

        found = [run.piece(f"seed_{seed}", lambda seed=seed: make(seed)) for seed in run.seeds]
        return topic.Found("T", ["text"], "", {"score": topic.mean_and_std(found)})

    def start(seeds=3):
        return topic.run("name", experiment, workdir=str(tmp_path / "w"), options={"seeds": seeds})

    with pytest.raises(RuntimeError, match="killed"):
        start()
    fails.clear()
    assert start() == 0 and made == [0, 1, 2]
    first = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(first)["score"] == {"mean": 0.5, "std": 0.5}
    assert start() == 0 and made == [0, 1, 2] and capsys.readouterr().out.splitlines()[-1] == first
    section = lecture.lesson_section(tmp_path / "w")
    assert section.title == "T" and section.command == "python -m experiments.lecture.name --seeds=3 --workdir=NEW"
    (tmp_path / "w" / "lesson.json").unlink()  # Made again from the pieces.
    assert start() == 0 and made == [0, 1, 2] and lecture.lesson_section(tmp_path / "w").title == "T"
    with pytest.raises(WorkdirError, match="--seeds: 3 there, 2 here"):
        start(2)
    piece = tmp_path / "w" / "pieces" / "seed_1.json"
    for text in ("{}", '{"found": 3}', piece.read_text().replace("0.5", "0.6")):
        (tmp_path / "w" / "summary.json").unlink(missing_ok=True)
        piece.write_text(text)
        with pytest.raises(WorkdirError, match="seed_1.json is damaged: without it, it is computed again"):
            start()
    piece.unlink()
    assert start() == 0 and made == [0, 1, 2, 1]
    with pytest.raises(UsageError, match="--seeds=3000000000: accepted are 1 to 2147483647"):
        start(3_000_000_000)
    with pytest.raises(UsageError, match="--seeds=0: must be more than 0"):
        start(0)
    with contextlib.closing(Workdir(str(tmp_path / "v"))) as home, pytest.raises(ValueError, match="piece"):
        topic.Lesson(home, {"seeds": 1}).piece("../x", int)


@pytest.mark.slow
def test_lecture(start, tmp_path):
    done = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=systems,activations")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    page = (tmp_path / "w" / "lecture.html").read_text()
    assert last["topics"] == ["systems", "activations"] and page.count("<section class") == 2
    assert "61,100,840" in page and "143,667,240" in page and "494,184 units" in page
    before = (tmp_path / "w" / "systems" / "lesson.json").stat().st_mtime_ns
    again = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=systems,activations")
    assert "this experiment is complete" in again.stderr and (tmp_path / "w" / "lecture.html").read_text() == page
    assert (tmp_path / "w" / "systems" / "lesson.json").stat().st_mtime_ns == before
    for flags, status, message in (
        (["--only=sysems"], 2, "--only=sysems: accepted are perceptron,"),
        ([f"--use={tmp_path}"], 1, f"{tmp_path} holds no finished run or experiment: run.json: No such file"),
        ([f"--use={tmp_path},,x"], 2, f"--use={tmp_path},,x: accepted are workdirs, with commas"),
    ):
        done = start("lecture", f"--workdir={tmp_path / 'w'}", *flags)
        assert done.returncode == status and message in done.stderr and len(done.stderr.splitlines()) == 1
    done = start("classify", f"--workdir={tmp_path / 'w' / 'activations'}", "--model=mlp", "--steps=1")
    assert done.returncode == 1 and "activations holds options.json of another command; choose a new" in done.stderr
    assert not (tmp_path / "w" / "activations" / "run.json").exists()


def test_sections_of_what_is_damaged_or_foreign(tmp_path):
    place = tmp_path / "a b"
    (place / "figures").mkdir(parents=True)
    summary = {"model": "mlp", "dataset": "mnist5k", "accuracy": 0.5, "examples": 10, "workdir": "x"}

    def kept(**changed):
        (place / "run.json").write_text(json.dumps({"task": "classification"} | changed.get("run", {})))
        (place / "summary.json").write_text(json.dumps(summary | changed.get("summary", {})))
        found = {"title": "T", "text": ["x"], "formula": "", "tables": [], "numbers": {}, "command": "c", "figures": []}
        (place / "lesson.json").write_text(json.dumps(found | changed.get("lesson", {})))

    kept()
    section = lecture.run_section(place)
    assert shlex.split(section.command)[-2:] == [f"--flagfile={place / 'flags.txt'}", "--workdir=NEW"]
    assert "workdir" not in section.numbers and lecture.lesson_section(place).title == "T"
    for make, changed in (
        (lecture.run_section, {"run": {"task": ["a"]}}),
        (lecture.run_section, {"summary": {"accuracy": [1]}}),
        (lecture.lesson_section, {"lesson": {"text": 5}}),
        (lecture.lesson_section, {"lesson": {"figures": [["absent", "a", "b"]]}}),
    ):
        kept(**changed)
        with pytest.raises(WorkdirError, match="is damaged or of no finished run"):
            make(place)
    kept()
    (place / "figures" / "layer1.png").write_text("no picture")
    with pytest.raises(WorkdirError, match="or a figure beside it, is damaged"):
        lecture.run_section(place)


def test_signals_are_a_childs_only_while_it_runs(monkeypatch, environment):
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert subprocesses.run("summary", "--model=nosuch").status == 2
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_lecture_leaves_nothing_running(launch, tmp_path, number):
    running = launch("lecture", f"--workdir={tmp_path}", "--only=plain_vs_residual")
    running.wait_until((tmp_path / "plain_vs_residual/options.json").exists)
    running.send_signal(number)
    done = running.wait()
    assert done.returncode == 128 + number and "plain_vs_residual ended with exit status" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    with contextlib.closing(Workdir(str(tmp_path / "plain_vs_residual"))):  # Nobody holds it.
        assert not (tmp_path / "plain_vs_residual/summary.json").exists()
