"""Every experiment of the lecture, in its order, on one page: python -m experiments.lecture --workdir=W

Each runs as a command of its own in W/NAME; started again, the lecture goes on behind those that are complete. The page
is W/lecture.html. --use=W1,W2 shows finished runs of classify, segment and generate beside the short ones.
"""

import contextlib
import json
import pathlib
import shlex
import time

from absl import flags as absl_flags

from experiments.cli import flags, subprocesses

# Lessons by name; a list is a training run's command, with its title and what it is to show.
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
# (title, text, figures as (file, heading, caption)) by command.
RUNS: dict[str, tuple[str, str, tuple[tuple[str, str, str], ...]]] = {
    "segment": (
        "SegNet: a class for every pixel ({step:,} steps)",
        "The encoder pools and keeps each maximum's place; the decoder puts values back at those places and convolves. "
        "After {step:,} steps on {dataset} the mean intersection over union of its classes with the true ones is "
        "{mean_iou:.1%}.",
        (("predictions", "Predictions", "test pictures, their classes and the network's"),),
    ),
    "generate": (
        "Generative adversarial nets: deconvolutions draw ({step:,} steps)",
        "A generator of deconvolutions learns to be taken for real by a discriminator that learns to tell. After "
        "{step:,} steps on {dataset} the distance of its samples to real pictures, by a classifier's features, is "
        "{classifier_fid:.1f}, between {floor:.2f} for other real pictures and {ceiling:.1f} before training.",
        (
            ("samples", "Samples", "not picked: the first latent vectors of a fixed seed"),
            ("samples_over_time", "Samples over time", "the same latent vectors after so many steps"),
        ),
    ),
    "classify": (
        "A classifier: {model} on {dataset}",
        "It is right on {accuracy:.2%} of {examples:,} pictures.",
        (("layer1", "Layer-1 filters", "each on its own scale from black to white"),),
    ),
}
INTRODUCTION = (
    "Each claim of the lecture is an experiment that was run for this page: its text is written from its numbers, and "
    "says so where a claim was not seen at this scale. The command below each section repeats it alone.",
)


def read(path: pathlib.Path) -> dict:
    """A JSON file's object. Raises WorkdirError where there is none."""
    from train.workdir import WorkdirError

    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise WorkdirError(
            f"{path.parent} holds no finished run or experiment: {path.name}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise WorkdirError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise WorkdirError(f"{path} holds no JSON object")
    return found


def lesson_section(place: pathlib.Path):
    """The section of a finished lesson."""
    from experiments.lecture import page as lecture_page
    from experiments.lecture.page import Section

    found = read(place / "lesson.json")
    with sound(place / "lesson.json"):
        figures = [(title, caption, place / "figures" / f"{name}.png") for name, title, caption in found["figures"]]
        made = Section(figures=figures, **{name: found[name] for name in Section._fields if name != "figures"})
        lecture_page.page("", (), [made])
        return made


def run_section(place: pathlib.Path):
    """The section of a finished training run."""
    from experiments.lecture import page as lecture_page
    from experiments.lecture.page import Section

    run, summary = read(place / "run.json"), read(place / "summary.json")
    with sound(place / "summary.json"):
        command = {"segmentation": "segment", "generation": "generate"}.get(run["task"], "classify")
        title, text, figures = RUNS[command]
        title, text = title.format(**summary), text.format(**summary)
        line = shlex.join(["python", "-m", f"experiments.{command}", f"--flagfile={place / 'flags.txt'}"])
        shown = [(heading, caption, place / "figures" / f"{name}.png") for name, heading, caption in figures]
        shown = [entry for entry in shown if entry[2].exists()]
        numbers = {name: value for name, value in summary.items() if name != "workdir"}
        made = Section(title, [text], "", shown, [], numbers, f"{line} --workdir=NEW")
        lecture_page.page("", (), [made])
        return made


@contextlib.contextmanager
def sound(path: pathlib.Path):
    """Inside it, what a damaged or a foreign file makes go wrong is one line."""
    from train.workdir import WorkdirError

    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise WorkdirError(f"{path}, or a figure beside it, is damaged or of no finished run: {error!r}") from None


def run_topic(name: str, place: pathlib.Path) -> int:
    """Runs one topic to its end; its exit status, 128 and the signal's number where one ended it."""

    began = time.perf_counter()
    module = name if name in RUNS else f"lecture.{name}"
    ended = subprocesses.run(module, f"--workdir={place}", *TOPICS[name])
    status = 128 + ended.signalled if ended.signalled else ended.status
    if status:
        say(f"{name} ended with exit status {status}; started again, the lecture goes on there")
    else:
        say(f"{name}: {time.perf_counter() - began:.0f} s")
    return status


def define_flags() -> None:
    absl_flags.DEFINE_string("workdir", None, "Folder of the lecture; started again in it, it goes on.")
    absl_flags.DEFINE_list("use", [], "Workdirs of finished runs that the page shows as well.")
    absl_flags.DEFINE_list("only", [], f"Topics to run and show; default all: {', '.join(TOPICS)}.")


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; lecture takes flags alone")
    values = absl_flags.FLAGS.flag_values_dict()
    workdir, only = values["workdir"], values["only"]
    if not workdir:
        raise flags.UsageError("--workdir=FOLDER is needed: the lecture is kept there")
    flags.require(all(values["use"]), f"--use={','.join(values['use'])}: accepted are workdirs, with commas")
    for name in only:
        flags.require(name in TOPICS, f"--only={name}: accepted are {', '.join(TOPICS)}")
    from experiments.lecture import page as lecture_page
    from train import workdir as folder

    used = [run_section(pathlib.Path(place).absolute()) for place in values["use"]]  # Before anything takes long.
    home = folder.Workdir(workdir)
    if (home.path / "run.json").exists() or (home.path / "lesson.json").exists():
        raise folder.WorkdirError(f"{home.path} holds a run of its own; choose a new --workdir")
    names, began = only or list(TOPICS), time.perf_counter()
    for name in names:
        status = run_topic(name, home.path / name)
        if status:
            return status if status > 128 else 1
    sections = [(run_section if name in RUNS else lesson_section)(home.path / name) for name in names]
    page = lecture_page.page("Introduction to neural networks, executed", INTRODUCTION, [*sections, *used])
    folder.write_atomically(home.path / "lecture.html", page)
    say(f"the page: {home.path / 'lecture.html'}")
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"topics": names, "seconds": seconds, "page": str(home.path / "lecture.html")}))
    return 0


if __name__ == "__main__":
    define_flags()
    flags.run(main)
