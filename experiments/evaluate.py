"""Evaluates a checkpoint: python -m experiments.evaluate --workdir=W [--split=test]"""

import csv
import dataclasses
import functools
import io
import json
import sys
import time
from typing import Any

from experiments.cli import app, validation
from experiments.cli.app import require
from experiments.cli.config import TTA
from experiments.cli.options import option


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation"""

    workdir: str = option(None, "Folder of the run to evaluate.", needed="the folder of the run", path=True)
    dataset: str | None = option(None, "Data set to evaluate on; default: the run's own.")
    data_dir: str | None = option(None, "Folder of the data set to evaluate on; default: the run's own.", path=True)
    split: str | None = option(None, "Split to evaluate on; default: test, else val or validation, else all images.")
    batch_size: int | None = option(None, "Batch size; default: the run's own.", "[1, inf)")
    tta: str | None = option(None, "Test-time augmentation, averaged over views; default: the run's own.", choices=TTA)
    skip_corrupt: bool = option(False, "Skip images that can't be decoded instead of stopping.")
    checkpoint: str = option(
        "latest", "Checkpoint to evaluate: the newest or the one with the best score.", choices=("latest", "best")
    )


def classifier(config: EvaluateConfig, run):
    """Returns (run, data set, experiment, class table function) for a run of classify, adapted to this evaluation."""
    from experiments.reporting.classification_report import class_table
    from experiments.setup import classification, evaluation_data, stored_network

    trained = run
    run, shape = evaluation_data.for_evaluation(run, dataset=config.dataset, data_dir=config.data_dir, tta=config.tta)
    validation.check_skip_corrupt(config.skip_corrupt, run.config.dataset)
    skip = config.skip_corrupt or run.config.skip_corrupt
    run = run._replace(config=dataclasses.replace(run.config, skip_corrupt=skip))
    load = functools.partial(classification.load_dataset, shape=shape, least_classes=1)
    dataset = evaluation_data.load(trained, run.config, load)
    if run.info.class_names == evaluation_data.unnamed(len(dataset.class_names)):  # Imported weights.
        run = run._replace(info=dataclasses.replace(run.info, class_names=dataset.class_names))
    return run, dataset, stored_network.experiment_from_run(run), class_table


def segmenter(config: EvaluateConfig, run):
    """Like `classifier`, for a run of segment; images are resized to the run's image size."""
    from experiments.reporting.segmentation_report import class_table
    from experiments.setup import evaluation_data, segmentation, stored_network

    changed = segmentation.for_evaluation(run, dataset=config.dataset, data_dir=config.data_dir)
    form = {"channels": run.info.image_shape[2], "class_names": run.info.class_names}
    load = functools.partial(segmentation.load_dataset, split=config.split, **form)
    dataset = evaluation_data.load(run, changed, load)
    return run._replace(config=changed), dataset, stored_network.experiment_from_run(run), class_table


def generator(config: EvaluateConfig, run):
    """Like `classifier`, for a run of generate."""
    from experiments.reporting.generation_report import share_table
    from experiments.setup import evaluation_data, generation, stored_network

    require(config.split != "train", "--split=train: samples are compared with images not used for training")
    changed = evaluation_data.on_own_data(run, dataset=config.dataset, data_dir=config.data_dir)
    changed = dataclasses.replace(changed, eval_split=config.split or changed.eval_split)
    dataset = evaluation_data.load(run, changed, generation.load_dataset)
    check_data(config, run.info.class_names, dataset)  # Before the classifier is trained.
    needed = "samples are compared with a split of images, and the classifier for that is trained on a split train"
    require("train" in dataset.splits, f"{dataset.name} has no split train: {needed}")
    split = config.split or _default_split(run._replace(config=changed), dataset)
    scorer, _ = generation.create_scorer(changed, run.info, dataset, split)
    run = run._replace(config=changed)
    return run, dataset, stored_network.experiment_from_run(run, scorer=scorer), share_table


def autoencoder(config: EvaluateConfig, run):
    """Like `classifier`, for a run of reconstruct. The classes may differ from the run's, which does not use them."""
    from experiments.reporting.reconstruction_report import score_table
    from experiments.setup import reconstruction, stored_network

    run, dataset = reconstruction.for_evaluation(run, dataset=config.dataset, data_dir=config.data_dir)
    return run, dataset, stored_network.experiment_from_run(run), score_table


def _default_split(run, dataset) -> str:
    """The default split: test, else val or validation. For a run of generate, its --eval_split takes precedence."""
    from experiments.setup.experiment import scoring_split

    given = run.config.eval_split if run.task == "generation" else None
    return given or scoring_split(dataset, hint="; choose one with --split")


def check_data(config: EvaluateConfig, class_names, dataset) -> None:
    """Raises UsageError if the given split does not exist or the classes differ from the run's."""
    known = ", ".join(dataset.splits)
    require(
        not config.split or config.split in dataset.splits,
        f"--split={config.split}: {dataset.name} has no such split, only {known}",
    )
    ours, theirs = list(class_names), list(dataset.class_names)
    require(ours == theirs, f"classes differ: {ours} in the run, {theirs} in the data set")


def aligned(rows: list[list[str]]) -> str:
    """The rows of a table as lines, with right-aligned columns of at least ten characters."""
    widths = [max(10, *map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def main(config: EvaluateConfig) -> int:
    from experiments.setup import saved_run

    run = saved_run.read(config.workdir)
    from data import batches
    from experiments.cli.compilation_cache import start_cache
    from experiments.reporting import run_record
    from experiments.setup import evaluation_data, stored_network
    from models.cpu_kernels import ops
    from train import loop, workdir
    from train.messages import say
    from train.parallel import data_parallel
    from train.task import eval_batch_size

    start_cache()
    if not run.config.cpu_kernels:  # Gives results bit-identical to those of the run's own evaluation.
        ops.disable()
    kinds = {"segmentation": segmenter, "generation": generator, "reconstruction": autoencoder}
    kind = kinds.get(run.task, classifier)
    plain = config.tta is None and not config.skip_corrupt
    require(plain or kind is classifier, "--tta and --skip_corrupt are supported only for runs of classify")
    trained = run
    run, dataset, experiment, class_table = kind(config, run)
    where = f"--data_dir={run.config.data_dir}" if run.config.data_dir else f"--dataset={dataset.name}"
    if kind is classifier:
        missing = [name for name in experiment.info.class_names if name not in dataset.class_names]
        dataset = evaluation_data.with_classes(dataset, experiment.info.class_names)
        if missing:
            say(f"{where} has no images of {len(missing)} of the run's classes: {', '.join(missing)}")
    check_data(config, experiment.info.class_names, dataset)
    split = config.split or _default_split(run, dataset)
    own = config.dataset in (None, trained.config.dataset) and config.data_dir in (None, trained.config.data_dir)
    if own and evaluation_data.is_held_out_anew(trained, dataset, split):
        say(f"warning: {where} has changed since training: {split} is held out anew and may contain training images")
    images, labels = dataset.splits[split]
    shape = tuple(images.shape[1:])
    shapes = f"{list(experiment.info.image_shape)} in the run, {list(shape)} in the data set"
    require(shape == experiment.info.image_shape, f"image shapes differ: {shapes}")
    state = stored_network.restore(experiment, run, config.checkpoint)

    eval_steps = filter(None, (experiment.task.eval_step, experiment.task.constant_eval_step))
    compiled = [data_parallel.parallelize(step, 1, donate=False) for step in eval_steps]
    run_has = eval_batch_size(
        experiment.task, batch_size=run.config.batch_size, examples=len(labels)
    )  # The same batch size gives bit-identical results.
    batch_size = config.batch_size or run_has
    eval_batches = functools.partial(batches.eval_batches, images, labels, batch_size=batch_size)
    began = time.perf_counter()
    for step in compiled:
        step(state, next(eval_batches()))["count"].block_until_ready()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    data, sums = loop.EvalData(eval_batches, len(labels)), dict[str, Any]()
    for step in compiled:
        sums |= loop.evaluate(state, step, data=data)
    seconds = time.perf_counter() - began

    metrics, rate = experiment.task.compute_metrics(sums), len(labels) / seconds
    result = loop.Result(state, metrics, sums, seconds + compile_seconds, compile_seconds, rate)
    _, header, rows = class_table(sums, dataset.class_names)
    print(aligned([header, *rows]), file=sys.stderr)
    summary = run_record.summary(run.config, experiment, result, split, dataset, run.workdir)
    print(json.dumps(summary), flush=True)  # Before confusion.csv, because the folder may not be writable.
    if "confusion" in sums:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *dataset.class_names])
        named = zip(dataset.class_names, sums["confusion"], strict=True)
        writer.writerows([name, *map(int, row)] for name, row in named)
        workdir.write_atomically(run.workdir / "confusion.csv", text.getvalue())
        print(f"confusion matrix of {split}: {run.workdir / 'confusion.csv'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    app.run(main, EvaluateConfig)
