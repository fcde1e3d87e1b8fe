"""The records of a run in its workdir: flags.txt, run.json and summary.json."""

import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

import numpy as np

from data.dataset import Dataset, digests
from experiments.cli import options
from experiments.cli.config import TrainingConfig
from experiments.reporting import environment
from experiments.setup import saved_run
from experiments.setup.experiment import Experiment
from models import summary as layer_summary
from train import checkpoint, leaves
from train.loop import Result
from train.messages import say
from train.parallel import processes
from train.state import State, parameter_count
from train.task import Task
from train.workdir import Workdir, WorkdirError, write_atomically

OTHERS = ("options.json", "lecture.html", "sweep.csv")  # Files of lecture topics, the lecture and sweeps.
# Entries of a dry run's summary: scores after two steps are omitted.
DRY_RUN = ("model", "dataset", "split", "examples", "step", "parameters", "seconds", "compile_seconds")


def stored_summary(
    workdir: Workdir, config: TrainingConfig, experiment: Experiment, dataset: Dataset, split: str
) -> dict | None:
    """The summary of the workdir's run if it is complete, else None. Raises WorkdirError, with both values, if the run
    was created with different flags, data or evaluated split."""
    run = workdir.read_json("run.json")
    if run is None:
        found = [f"{name} of another command" for name in OTHERS if (workdir.path / name).exists()]
        found += ["checkpoints without a run.json"][: len(checkpoint.Checkpoints(workdir.path).steps())]
        if found:
            raise WorkdirError(f"{workdir.path} contains {found[0]}; choose a new --workdir")
        return None
    if not isinstance(run.get("flags"), dict):
        raise WorkdirError(f"{workdir.path / 'run.json'} is damaged: it contains no flags")
    if run.get("task") != experiment.task.name:
        task = str(run.get("task"))
        command = saved_run.COMMANDS.get(task, task)
        raise WorkdirError(f"{workdir.path} contains a run of {command}; choose a new --workdir")
    try:
        stored = options.from_json(type(config), run["flags"])
    except ValueError as error:
        raise WorkdirError(f"{workdir.path / 'run.json'}: {error}") from None
    check_flags(workdir, config, stored)
    before = saved_run.eval_split(run, stored)
    if split != before:
        both = f"{workdir.path} was evaluated on {before} (stored), {split} was given"
        raise WorkdirError(f"{both}; give --eval_split={before}, or choose a new --workdir")
    if not config.dry_run_data:
        check_data(workdir, run, experiment, dataset)
    complete = workdir.read_json("summary.json")
    needed = {experiment.task.best[0], "fingerprint", "split", "step"}
    return complete if complete and needed <= complete.keys() else None


def check_flags(workdir: Workdir, config: TrainingConfig, stored: TrainingConfig) -> None:
    """Raises WorkdirError if a flag that affects the results differs from the stored one."""
    resumable = {name for name, spec in options.specs(type(config)).items() if spec.resumable}
    if getattr(config, "fc_update", None) == "accumulate":  # These distribute the work without changing the result.
        resumable |= {"parallelism", "fc_passes"}
    pairs = [
        f"--{name}={options.given(before)} (stored), {options.given(now)} (given)"
        for name in sorted(field.name for field in dataclasses.fields(config))
        if name not in resumable and (before := getattr(stored, name)) != (now := getattr(config, name))
    ]
    if pairs:
        raise WorkdirError(
            f"{workdir.path} was created with different flags: {'; '.join(pairs)}; choose a new --workdir"
        )


def check_data(workdir: Workdir, run: dict, experiment: Experiment, dataset: Dataset) -> None:
    """Raises WorkdirError if the data set differs from the stored one."""
    info = experiment.info
    facts: dict[str, Any] = {"class_names": list(info.class_names), "image_shape": list(info.image_shape)}
    facts |= {"splits": counts(dataset), "mean": list(info.mean), "std": list(info.std)}
    if hasattr(info, "class_weights"):  # May be computed from the training labels.
        facts["class_weights"] = list(info.class_weights)
    for name, given in facts.items():
        stored = run.get(name, given)
        same = stored == given
        if name in ("mean", "std", "class_weights") and saved_run.are_numbers(stored):
            # Rounding may differ between machines.
            same = len(stored) == len(given) and np.allclose(stored, given, rtol=1e-5)
        if not same:
            raise WorkdirError(
                f"{workdir.path} was created with different data: {name} {stored} (stored), {given} (given)"
            )
    stored = run.get("data_digests", {})
    given = digests(dataset) if stored else {}  # Not recorded by older versions.
    changed = [split for split in given if stored.get(split, given[split]) != given[split]]
    if changed:
        both = f"{workdir.path} was created with different data: the labels or images of {', '.join(changed)}"
        raise WorkdirError(f"{both} have changed; choose a new --workdir")


def counts(dataset: Dataset) -> dict[str, int]:
    """The number of examples in each split."""
    return {split: len(labels) for split, (_, labels) in dataset.splits.items()}


def describe(dataset: Dataset, state: State) -> str:
    by_split = sorted(counts(dataset).items(), key=lambda entry: entry[0] != "train")  # train first.
    images = ", ".join(f"{count:,} {split}" for split, count in by_split)
    return f"{parameter_count(state.params):,} parameters; {images} images{_classes(dataset)}"


def _classes(dataset: Dataset) -> str:
    """The classes of a folder, which may not be the intended ones if --data_dir is one level too high or too low."""
    names = dataset.class_names if dataset.name == "folder" else ()
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return f" of {len(names):,} classes: {', '.join(names[:10])}{more}" if names else ""


def write_start(
    workdir: Workdir,
    config: Any,
    experiment: Experiment,
    dataset: Dataset,
    state: State,
    *,
    split: str | None,
    steps: int,
    devices: str,
) -> None:
    """Writes flags.txt and run.json. A resumed run keeps the time of its first start. `split` is the evaluated
    split."""
    stored = workdir.read_json("run.json") or {}
    # So that a single process can load flags.txt.
    config = dataclasses.replace(config, **dict.fromkeys(options.OF_ONE_PROCESS))
    layers = layer_summary.layers(experiment.model, experiment.input_shape)
    run = {
        "task": experiment.task.name,
        "flags": options.to_json(config),
        "command": sys.argv,
        **environment.describe(),
        "devices": devices,
        "seed": config.seed,
        "steps": steps,
        "parameters": parameter_count(state.params),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "dataset": config.dataset,
        **dataclasses.asdict(experiment.info),
        "splits": counts(dataset),
        "eval_split": split,
        "data_digests": stored.get("data_digests") or ({} if config.dry_run_data else digests(dataset)),
        "start": stored.get("start") or _now(),
        "end": None,
    }
    write_atomically(workdir.path / "flags.txt", "".join(f"{line}\n" for line in options.flag_lines(config)))
    workdir.write_json("run.json", run)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_end(workdir: Workdir, summary: dict) -> None:
    """Writes the end time to run.json, then summary.json, which marks the run as complete."""
    workdir.write_json("run.json", (workdir.read_json("run.json") or {}) | {"end": _now()})
    workdir.write_json("summary.json", summary)


def summary(
    config: Any, experiment: Experiment, result: Result, split: str, dataset: Dataset, workdir: pathlib.Path
) -> dict[str, Any]:
    """The content of summary.json and of the last line of standard output: the scores on `split`, and, if test was
    scored only at the end, its scores with the prefix test_."""
    # The floor of a GAN's score refers to the images of `split`, not of test.
    tests = {f"test_{name}": value for name, value in result.test_metrics.items() if name != "floor"}
    if tests:
        tests["test_examples"] = counts(dataset)["test"]
    return {
        "model": config.model,
        "dataset": config.dataset,
        "split": split,
        **{name: result.metrics[name] for name in experiment.task.metrics if name in result.metrics},
        **experiment.task.details(result.sums),
        "examples": counts(dataset)[split],
        **tests,
        "step": int(result.state.step),
        **({"stopped_early": True} if result.stopped_early else {}),
        "seed": config.seed,
        "parameters": parameter_count(result.state.params),
        "seconds": round(result.seconds, 2),
        "compile_seconds": round(result.compile_seconds, 2),
        "images_per_second": round(result.images_per_second, 1),
        "fingerprint": leaves.fingerprint(result.state.params, result.state.opt_state, result.state.average),
        "workdir": str(workdir),
    }


def _score(summary: dict, part: str = "") -> str:
    """Formats a run's main score; the `part` "test_" selects its score on the test split."""
    if "classifier_fid" in summary:
        return f"classifier_fid {summary[f'{part}classifier_fid']:.2f}"
    if "kl" in summary:
        return f"ELBO {-summary[f'{part}loss']:.2f} nats"
    if "psnr" in summary:
        return f"PSNR {summary[f'{part}psnr']:.2f} dB"
    name, title = ("accuracy", "accuracy") if "accuracy" in summary else ("mean_iou", "mean IoU")
    return f"{title} {100 * summary[f'{part}{name}']:.2f} %"


def headline(summary: dict) -> str:
    score, test = _score(summary), ""
    if "classifier_fid" in summary:
        score += f" between {summary['floor']:.2f} (real images) and {summary['ceiling']:.1f} (untrained)"
    if "test_examples" in summary:
        test = f"test {_score(summary, 'test_')} of {summary['test_examples']:,} images, "
    early = " (stopped early)" if summary.get("stopped_early") else ""
    return (
        f"{test}{summary['split']} {score} of {summary['examples']:,} images, loss "
        f"{summary['loss']:.4f}, step {summary['step']:,}{early}, {summary['seconds']:.0f} s"
    )


def columns(task: Task) -> list[str]:
    """The header of metrics.csv."""
    parts = (("train", task.train_metrics), ("eval", task.metrics))
    names = [f"{part}_{name}" for part, metrics in parts for name in metrics]
    return ["step", *names, "learning_rate", "seconds", "images_per_second"]


def print_complete(summary: dict) -> int:
    """Prints the summary of a run that was already complete; returns the exit status."""
    if processes.is_main():
        try:
            line = headline(summary)
        except (KeyError, TypeError, ValueError) as error:
            raise WorkdirError(f"summary.json of this run is damaged: {error!r}") from None
        say(f"run already complete in {summary.get('workdir')}: {line}; use a new --workdir to start another")
        print(json.dumps(summary))
    return 0


def finish(workdir: Workdir, config: TrainingConfig, summary: dict) -> int:
    """Writes and prints the summary of a completed run; returns the exit status. A dry run's summary has no scores."""
    write_end(workdir, summary)
    if config.dry_run:
        say("dry run passed: two small steps, an evaluation, a checkpoint and a report; all outputs are discarded")
        summary = {name: summary[name] for name in DRY_RUN}
    else:
        say(f"report: {workdir.path / 'report.html'}")
        say(f"done: {headline(summary)}")
    print(json.dumps(summary))
    return 0
