"""Tests of the lecture page and of the code shared by its topics: cached results, resuming, rejected flags."""

import base64
import contextlib
import functools
import hashlib
import json
import re
import shlex
import signal

import pytest
from absl import flags as absl_flags

from experiments.cli import options, subprocesses
from experiments.lecture import __main__ as lecture
from experiments.lecture import lesson, topic
from experiments.lecture import page as lecture_page
from experiments.lecture.zoo import networks
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


def test_page_is_escaped_and_self_contained(tmp_path):
    figure = figures.new_figure()
    figure.add_subplot().plot([1, 2])
    figures.save_figure(figure, tmp_path / "x.png")
    guess = lecture_page.Guess("x", f"Guess {EVIL}", f"unit {EVIL}", 0, 1, 0.25)
    section = lecture_page.Section(
        f"Title {EVIL}",
        "",
        [f"Text {EVIL}"],
        [("x", f"Figure {EVIL}", f"caption {EVIL}", tmp_path / "x.png")],
        [(f"Table {EVIL}", ["a"], [[EVIL]])],
        {"number": EVIL},
        f"python {EVIL}",
        [guess],
    )
    second = section._replace(title="Second", lesson="pooling", widgets={"pooling": {"evil": "</script>" + EVIL}})
    page = lecture_page.page(f"Page {EVIL}", [EVIL], [section, second])
    assert page.count("<script") == 2 and page.count("</script") == 2 and page.count("&lt;script&gt;") > 10
    assert page.count("<section class") == 2 and '<a href="#topic2">Second</a>' in page and 'id="topic2"' in page
    assert page.count('<div class="part') == 9 and page.count("data:image/png;base64,") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    # The content security policy allows only the page's own script.
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in page
    with pytest.raises(ValueError, match="guesses name the figures y, which do not exist"):
        lecture_page.page("", (), [section._replace(guesses=[guess._replace(figure="y")])])
    for value, slider in ((2.5, 'min="0" max="2.5"'), (-1, 'min="-1" max="1"'), (float("nan"), None)):
        page = lecture_page.page("", (), [section._replace(guesses=[guess._replace(value=value)])])
        assert page.count('<form class="guess"') == page.count(str(slider)) == (slider is not None)
    with pytest.raises(ValueError, match="shows the widget pooling, but its topic has no data for it"):
        lecture_page.page("", (), [second._replace(widgets={})])


def test_a_topic_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(topic, "start_cache", lambda: None)
    made, fails = [], [True]

    def experiment(this_topic):
        def make(seed):
            if seed == 1 and fails:
                raise RuntimeError("killed")
            made.append(seed)
            return seed / 2

        found = [this_topic.cached(f"seed_{seed}", lambda seed=seed: make(seed)) for seed in this_topic.seeds]
        return topic.TopicResult(["text"], {"score": topic.mean_and_std(found)}, widgets={"pooling": 1})

    def start(seeds=3):
        return topic.run("pooling", experiment, workdir=str(tmp_path / "w"), options={"seeds": seeds})

    with pytest.raises(RuntimeError, match="killed"):
        start()
    fails.clear()
    assert start() == 0 and made == [0, 1, 2]
    first = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(first)["score"] == {"mean": 0.5, "std": 0.5}
    assert start() == 0 and made == [0, 1, 2] and capsys.readouterr().out.splitlines()[-1] == first
    section = lecture.topic_section("pooling", tmp_path / "w")
    assert section.text == ["text"] and section.title == lesson.read("pooling").title
    assert section.command == "python -m experiments.lecture.pooling --seeds=3 --workdir=NEW"
    (tmp_path / "w" / "lesson.json").unlink()  # Recreated from the cached results.
    assert start() == 0 and made == [0, 1, 2]
    assert lecture.topic_section("pooling", tmp_path / "w") == section
    with pytest.raises(WorkdirError, match=r"different flags: --seeds=3 \(stored\), 2 \(given\); use a new"):
        start(2)
    stored = tmp_path / "w" / "pieces" / "seed_1.json"
    for text in ("{}", '{"found": 3}', stored.read_text().replace("0.5", "0.6")):
        (tmp_path / "w" / "summary.json").unlink(missing_ok=True)
        stored.write_text(text)
        with pytest.raises(WorkdirError, match="seed_1.json is damaged; delete it to recompute the result"):
            start()
    stored.unlink()
    assert start() == 0 and made == [0, 1, 2, 1]
    with contextlib.closing(Workdir(str(tmp_path / "v"))) as workdir, pytest.raises(ValueError, match="result name"):
        topic.Topic(workdir, {"seeds": 1}).cached("../x", int)


@pytest.mark.parametrize(
    "flag, accepted",
    [
        ("--seeds=101", "must be between 1 and 100"),
        ("--steps=3000000000", "must be between 1 and 2147483647"),
        ("--rate=nan", "must be a finite number"),
    ],
)
def test_a_topics_flags_are_checked_when_they_are_parsed(flag, accepted):
    flag_values = absl_flags.FlagValues()
    options.define(topic.config_class({"seeds": topic.SEEDS, "steps": (9, "Steps."), "rate": (0.5, "A.")}), flag_values)
    with pytest.raises(absl_flags.IllegalFlagValueError, match=accepted):
        flag_values(["topic", "--workdir=W", flag])


@pytest.mark.slow
def test_lecture(start, tmp_path):
    done = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=systems,activations")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    page = (tmp_path / "w" / "lecture.html").read_text()
    assert last["topics"] == ["systems", "activations"] and page.count('id="topic') == 2
    assert page.count('id="zoo"') == page.count('id="notation"') == 1 and "zoo/zoo.html" not in page
    assert page.partition('id="zoo"')[2].count("<svg") == len(networks.NETWORKS)
    assert "61,100,840" in page and "143,667,240" in page and "494,184" in page
    before = (tmp_path / "w" / "systems" / "lesson.json").stat().st_mtime_ns
    again = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=systems,activations")
    assert "run already complete" in again.stderr and (tmp_path / "w" / "lecture.html").read_text() == page
    assert (tmp_path / "w" / "systems" / "lesson.json").stat().st_mtime_ns == before
    # Other finished topics stay on the page, except damaged ones.
    only = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=activations")
    assert only.returncode == 0 and (tmp_path / "w" / "lecture.html").read_text() == page
    (tmp_path / "w" / "systems" / "lesson.json").write_text("{}")
    only = start("lecture", f"--workdir={tmp_path / 'w'}", "--only=activations")
    assert only.returncode == 0 and "systems is not shown: " in only.stderr, only.stderr
    assert (tmp_path / "w" / "lecture.html").read_text().count('id="topic') == 1
    for flags, status, message in (
        (["--only=sysems"], 2, "--only=sysems: must be one of perceptron,"),
        ([f"--use={tmp_path}"], 1, f"{tmp_path} contains no finished run or topic: run.json: No such file"),
        ([f"--use={tmp_path},,x"], 2, "/x: must be a comma-separated list of workdirs"),
    ):
        done = start("lecture", f"--workdir={tmp_path / 'w'}", *flags)
        assert done.returncode == status and message in done.stderr and len(done.stderr.splitlines()) == 1
    done = start("classify", f"--workdir={tmp_path / 'w' / 'activations'}", "--model=mlp", "--steps=1")
    assert done.returncode == 1 and "activations contains options.json of another command; choose a new" in done.stderr
    assert not (tmp_path / "w" / "activations" / "run.json").exists()


def test_sections_of_damaged_or_unrelated_folders(tmp_path):
    workdir = tmp_path / "a b"
    (workdir / "figures").mkdir(parents=True)
    summary = {"model": "mlp", "dataset": "mnist5k", "accuracy": 0.5, "examples": 10, "workdir": "x"}

    def kept(**changed):
        (workdir / "run.json").write_text(json.dumps({"task": "classification"} | changed.get("run", {})))
        (workdir / "summary.json").write_text(json.dumps(summary | changed.get("summary", {})))
        found = {
            "text": ["x"],
            "tables": [],
            "numbers": {},
            "command": "c",
            "figures": [],
            "guesses": [],
            "widgets": {},
        }
        (workdir / "lesson.json").write_text(json.dumps(found | changed.get("lesson", {})))

    kept()
    section = lecture.run_section(workdir)
    assert shlex.split(section.command)[-2:] == [f"--flagfile={workdir / 'flags.txt'}", "--workdir=NEW"]
    assert "workdir" not in section.numbers and lecture.topic_section("activations", workdir).text == ["x"]
    topic_section = functools.partial(lecture.topic_section, "activations")
    for make, changed in (
        (lecture.run_section, {"run": {"task": ["a"]}}),
        (lecture.run_section, {"summary": {"accuracy": [1]}}),
        (topic_section, {"lesson": {"text": 5}}),
        (topic_section, {"lesson": {"figures": [["absent", "a", "b"]]}}),
        (topic_section, {"lesson": {"guesses": [["absent", "a", "b", 0, 1, 0.5]]}}),
    ):
        kept(**changed)
        with pytest.raises(WorkdirError, match="is damaged or not from a finished run"):
            make(workdir)
    kept()
    (workdir / "figures" / "layer1.png").write_text("not an image")
    with pytest.raises(WorkdirError, match="or one of its figures is damaged"):
        lecture.run_section(workdir)


@pytest.mark.slow
def test_signal_handlers_are_restored_after_a_child_process(monkeypatch, environment):
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert subprocesses.run("summary", "--model=nosuch").status == 2
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_lecture_leaves_nothing_running(launch, tmp_path, number):
    running = launch("lecture", f"--workdir={tmp_path}", "--only=plain_vs_residual")
    running.wait_until((tmp_path / "plain_vs_residual/options.json").exists)
    running.send_signal(number)
    done = running.wait()
    assert done.returncode == 128 + number and "plain_vs_residual ended with exit status" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert ("finished parts are saved; the same command resumes" in done.stderr) == (number == signal.SIGINT)
    with contextlib.closing(Workdir(str(tmp_path / "plain_vs_residual"))):  # Not locked by a process.
        assert not (tmp_path / "plain_vs_residual/summary.json").exists()
