"""Measures what fine-tuning gains with few images: python -m benchmarks.fine_tuning --workdir=W [--figure=FILE.png]

Writes the digits of mnist5k as folders of PNG files, W/first (digits 0 to 4) and, for each seed and number of training
images per class, W/second (digits 5 to 9). For each seed, trains a network on 0 to 4, then on 5 to 9: fine-tuned from
those weights, with a frozen backbone (linear probe), and from scratch, with the same flags. Prints the accuracies on
the 500 test images of 5 to 9 as a Markdown table of means and standard deviations over the seeds, and as JSON in the
last line. The training images are a random subset for each seed. Repeating the command continues where it stopped.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

from data import mnist5k
from experiments.cli import app, options, subprocesses
from experiments.cli.app import require
from experiments.cli.options import option
from experiments.reporting import figures
from train.messages import say
from train.workdir import WorkdirError

METHODS = ("fine-tuned", "linear probe", "from scratch")
COLOURS = ("eval", "test", "train")
FLAGS = "--optimizer=sgd --learning_rate=0.05 --nesterov --weight_decay=0.0005 --schedule=one_cycle --batch_size=32"
FIRST, SECOND = range(5), range(5, 10)
LARGEST = 400  # Training images per class in mnist5k.


@dataclasses.dataclass(frozen=True)
class FineTuningBenchmark:
    """The measurement"""

    workdir: str = option(None, "Folder of the images and runs.", needed="the folder of the measurement", path=True)
    model: str = option("cnn", "Network.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of subsets and runs.", "[0, 1000]")
    counts: tuple[int, ...] = option((10, 50, 400), "Training images per class of digits 5 to 9.", f"[1, {LARGEST}]")
    steps: int = option(500, "Training steps of each run.", "[1, 100000]")
    figure: str | None = option(None, "Also plot the accuracies to this PNG file.", path=True)


def write_images(folder: pathlib.Path, digits: range, rows: Callable[[np.ndarray], np.ndarray]) -> pathlib.Path:
    """Writes the digits as SPLIT/CLASS/*.png, unless this is already complete, and returns the folder. `rows` selects
    the training images of a class from their indices."""
    if (folder / "complete").exists():
        return folder
    for split, (images, labels) in mnist5k.load().splits.items():
        for digit in digits:
            place = folder / split / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            of_class = np.flatnonzero(labels == digit)
            for i in rows(of_class) if split == "train" else of_class:
                Image.fromarray(images[i, ..., 0]).save(place / f"{i}.png")
    (folder / "complete").touch()
    return folder


def classify(workdir: pathlib.Path, data_dir: pathlib.Path, *flags: str) -> float:
    """The test accuracy of a run of classify in a process of its own."""
    arguments = [f"--workdir={workdir}", "--dataset=folder", f"--data_dir={data_dir}", *FLAGS.split(), *flags]
    done = subprocesses.run("classify", *arguments)
    if done.status > 128:
        sys.exit(done.status)
    if done.status:
        raise WorkdirError(f"the run in {workdir} has failed with exit status {done.status}")
    return json.loads(done.output.splitlines()[-1])["accuracy"]


def measure(config: FineTuningBenchmark) -> tuple[list[float], dict[str, dict[int, list[float]]]]:
    """Returns (accuracies on digits 0 to 4, accuracies on 5 to 9 by method and number of images), one per seed."""
    root = pathlib.Path(config.workdir)
    own = f"--model={config.model}", f"--steps={config.steps}", f"--eval_every={config.steps}"
    first = write_images(root / "first", FIRST, lambda rows: rows)
    sources, found = [], {method: {count: list[float]() for count in config.counts} for method in METHODS}
    for seed in config.seeds:
        source = root / f"seed{seed}" / "source"
        sources.append(classify(source, first, *own, f"--seed={seed}"))
        for count in config.counts:

            def subset(rows, seed=seed, count=count):
                return np.random.default_rng((seed, int(rows[0]))).permutation(rows)[:count]

            second = write_images(root / "second" / f"seed{seed}" / str(count), SECOND, subset)
            for method, flags in zip(METHODS, ([], ["--freeze=backbone"], None), strict=True):
                given = [] if flags is None else [f"--init_from={source}", *flags]
                place = root / f"seed{seed}" / f"{count} {method}".replace(" ", "_")
                found[method][count].append(classify(place, second, *own, f"--seed={seed}", *given))
                say(f"seed {seed}, {count} images per class, {method}: {100 * found[method][count][-1]:.2f} %")
    return sources, found


def percent(values: list[float]) -> str:
    """Mean and sample standard deviation of accuracies."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread} %"


def table(found: dict[str, dict[int, list[float]]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| images per class | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|"]
    counts = found[METHODS[0]]
    return lines + [f"| {n} | {' | '.join(percent(found[method][n]) for method in METHODS)} |" for n in counts]


def draw(path: str, found: dict[str, dict[int, list[float]]]) -> None:
    """Plots the mean accuracies with error bars of one standard deviation."""
    import matplotlib

    with matplotlib.rc_context(figures.STYLE):
        drawn = figures.new_figure(height=3.9)
        axes, ends = drawn.add_subplot(), []
        axes.set_title("Test accuracy on digits 5 to 9")
        for method, colour in zip(METHODS, COLOURS, strict=True):
            counts, values = list(found[method]), list(found[method].values())
            means = [100 * statistics.mean(one) for one in values]
            spread = [100 * statistics.stdev(one) if len(one) > 1 else 0.0 for one in values]
            axes.errorbar(counts, means, spread, fmt="o-", color=figures.COLOURS[colour], capsize=3)
            ends.append((means[-1], method, colour))
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("training images per class")
        axes.yaxis.set_major_formatter("{x:g} %")
        drawn.draw_without_rendering()  # Label distances are in points of the final layout.
        figures.label_ends(axes, ends)
    figures.save_figure(drawn, path)


def main(config: FineTuningBenchmark) -> int:
    for name in ("seeds", "counts"):
        values = getattr(config, name)
        require(len(set(values)) == len(values) > 0, f"--{name}={options.given(values)}: must be different numbers")
    sources, found = measure(config)
    say(f"accuracy on digits 0 to 4: {percent(sources)}")
    print(*table(found), sep="\n")
    print(json.dumps({"sources": sources, "accuracies": found}))
    if config.figure:
        draw(config.figure, found)
    return 0


if __name__ == "__main__":
    app.run(main, FineTuningBenchmark)
