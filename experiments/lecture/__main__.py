"""Runs all topics of the lecture in order and writes one page: python -m experiments.lecture --workdir=W

Each topic runs as a separate command in W/NAME. The same command resumes the lecture and skips topics that are
complete. The page is W/lecture.html. --use=W1,W2 adds other finished runs to the page.
"""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import time

from experiments.cli import app, subprocesses
from experiments.cli.options import option
from experiments.lecture.runs import RUNS

# Flags by topic name; segment and generate are short training runs.
TOPICS: dict[str, list[str]] = {
    "perceptron": [],
    "activations": [],
    "backpropagation": [],
    "convolution": [],
    "pooling": [],
    "softmax": [],
    "vanishing_gradient": [],
    "initialization": [],
    "dropout": [],
    "plain_vs_residual": [],
    "abstraction": [],
    "systems": [],
    "segment": ["--steps=800", "--eval_every=200"],
    "generate": ["--steps=1500", "--eval_every=250"],
}
INTRODUCTION = (
    "Each claim of the lecture was tested by an experiment run for this page. The text is generated from the measured "
    "numbers and states where a claim was not confirmed at this scale. The command below each section repeats its "
    "experiment. A seed is the number with which the random numbers start: another seed gives other initial weights, "
    "and the deviation over the seeds shows how much of a result is chance.",
)


def read(path: pathlib.Path) -> dict:
    """Reads the object in a JSON file. Raises WorkdirError if there is none."""
    from train.workdir import WorkdirError

    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise WorkdirError(f"{path.parent} contains no finished run or topic: {path.name}: {error.strerror}") from None
    except ValueError as error:
        raise WorkdirError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise WorkdirError(f"{path} contains no JSON object")
    return content


def topic_section(name: str, workdir: pathlib.Path):
    """Creates the page section of a finished topic."""
    from experiments.lecture import lesson
    from experiments.lecture import page as lecture_page
    from experiments.lecture.page import Section
    from experiments.lecture.topic import TopicResult

    content, title = read(workdir / "lesson.json"), lesson.read(name).title
    with report_damage(workdir / "lesson.json"):
        figures = [(*entry, workdir / "figures" / f"{entry[0]}.png") for entry in content["figures"]]
        result = {field: content[field] for field in TopicResult._fields}
        section = Section(title, name, figures=figures, command=content["command"], **result)
        lecture_page.page("", (), [section])  # Raises if the section can't be rendered.
        return section


def run_section(workdir: pathlib.Path, lesson_name: str = ""):
    """Creates the page section of a finished training run. A run that is a topic has the lesson `lesson_name`, and
    questions before its figures."""
    from experiments.lecture import lesson
    from experiments.lecture import page as lecture_page
    from experiments.lecture.page import Section
    from experiments.setup import saved_run

    run, summary = read(workdir / "run.json"), read(workdir / "summary.json")
    with report_damage(workdir / "summary.json"):
        command = saved_run.COMMANDS[run["task"]]
        describe, figures = RUNS[command]
        title, text, tables, guesses = describe(summary)
        line = TOPICS[lesson_name] if lesson_name else [f"--flagfile={workdir / 'flags.txt'}"]
        shown = [(name, heading, caption, workdir / "figures" / f"{name}.png") for name, heading, caption in figures]
        shown = [entry for entry in shown if entry[3].exists()]
        numbers = {name: value for name, value in summary.items() if name != "workdir"}
        repeat = shlex.join(["python", "-m", f"experiments.{command}", *line, "--workdir=NEW"])
        section = Section(title, "", text, shown, tables, numbers, repeat)
        if lesson_name:
            section = section._replace(title=lesson.read(lesson_name).title, lesson=lesson_name, guesses=guesses)
        lecture_page.page("", (), [section])  # Raises if the section can't be rendered.
        return section


@contextlib.contextmanager
def report_damage(path: pathlib.Path):
    """Converts exceptions caused by a damaged or unrelated file to a WorkdirError."""
    from train.workdir import WorkdirError

    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkdirError(f"{path} or one of its figures is damaged or not from a finished run: {error!r}") from None


def run_topic(name: str, workdir: pathlib.Path) -> int:
    """Runs a topic and returns its exit status; 128 + N if signal N was forwarded to it."""
    from train.messages import say

    began = time.perf_counter()
    module = name if name in RUNS else f"lecture.{name}"
    ended = subprocesses.run(module, f"--workdir={workdir}", *TOPICS[name])
    status = 128 + ended.signalled if ended.signalled else ended.status
    if status:
        say(f"{name} ended with exit status {status}; repeat the command to resume the lecture")
    else:
        say(f"{name}: {time.perf_counter() - began:.0f} s")
    return status


@dataclasses.dataclass(frozen=True)
class LectureConfig:
    """The lecture"""

    workdir: str = option(None, "Folder of the lecture. Repeat the command to resume.", needed="the folder", path=True)
    use: tuple[str, ...] = option(
        (), "Comma-separated workdirs of finished training runs to add to the page.", path=True
    )
    only: tuple[str, ...] = option(
        (), f"Comma-separated topics to run; the page shows all finished ones. Default: all of {', '.join(TOPICS)}."
    )


def main(config: LectureConfig) -> int:
    app.require(all(config.use), f"--use={','.join(config.use)}: must be a comma-separated list of workdirs")
    only = config.only
    for name in only:
        app.require(name in TOPICS, f"--only={name}: must be one of {', '.join(TOPICS)}")
    from experiments.lecture import page as lecture_page
    from experiments.lecture.zoo import networks
    from experiments.lecture.zoo import page as zoo_page
    from train.messages import say
    from train.workdir import Workdir, WorkdirError, write_atomically

    used = [run_section(pathlib.Path(path).absolute()) for path in config.use]  # First, to report errors early.
    workdir = Workdir(config.workdir)
    if (workdir.path / "run.json").exists() or (workdir.path / "lesson.json").exists():
        raise WorkdirError(f"{workdir.path} contains a single run or topic; use a new --workdir")
    names, began = only or list(TOPICS), time.perf_counter()
    for name in names:
        status = run_topic(name, workdir.path / name)
        if status:
            return status if status > 128 else 1
    # All finished topics of the working directory, also those of earlier commands, which may be of older versions.
    sections = []
    for name in TOPICS:
        folder = workdir.path / name
        if not (folder / "summary.json").exists():
            continue
        try:
            sections.append(run_section(folder, name) if name in RUNS else topic_section(name, folder))
        except WorkdirError as error:
            if name in names:
                raise
            say(f"{name} is not shown: {error}")
    page = lecture_page.page(
        "Introduction to neural networks, executed",
        INTRODUCTION,
        [*sections, *used],
        end=lecture_page.zoo(
            zoo_page.chart(networks.cards().values()), "zoo/zoo.html" * (workdir.path / "zoo/zoo.html").exists()
        )
        + lecture_page.appendix("notation"),
        style=zoo_page.CHART_STYLE,
    )
    write_atomically(workdir.path / "lecture.html", page)
    say(f"page: {workdir.path / 'lecture.html'}")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"topics": names, "seconds": seconds, "page": str(workdir.path / "lecture.html")}))
    return 0


if __name__ == "__main__":
    app.run(main, LectureConfig)
