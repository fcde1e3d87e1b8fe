"""Scores a checkpoint: python -m experiments.evaluate --workdir=W [--split=test]"""

import csv
import io
import json
import sys
import time

from absl import flags as absl_flags

from experiments.cli import flags

WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the run to score.")
DATASET = absl_flags.DEFINE_string("dataset", None, "Data set to score on; default: the run's own.")
DATA_DIR = absl_flags.DEFINE_string("data_dir", None, "Folder of the data set to score on; default: the run's own.")
SPLIT = absl_flags.DEFINE_string("split", None, "Split to score on; default: test, else val or validation.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", None, "Images a batch; default: as the run has it.")
TTA = absl_flags.DEFINE_enum("tta", None, flags.TTA, "Views of each picture that are averaged; default: the run's own.")
SKIP = absl_flags.DEFINE_bool("skip_corrupt", False, "Leave out pictures that can't be decoded instead of stopping.")
WHICH = absl_flags.DEFINE_enum(
    "checkpoint", "latest", ["latest", "best"], "Checkpoint to score: the newest or the one of the best evaluation."
)


def classifier(run: dict):
    """(flags, setup, data set, table of classes) of a run of classify."""
    from experiments.setup import classification, preprocessing
    from train.tasks.classification import class_table

    run, shape = preprocessing.for_evaluation(run, dataset=DATASET.value, data_dir=DATA_DIR.value, tta=TTA.value)
    config = run["flags"] | {"skip_corrupt": SKIP.value or run["flags"]["skip_corrupt"]}
    dataset = classification.load_dataset(config, shape=shape)
    if run["class_names"] == preprocessing.unnamed(len(dataset.class_names)):  # Imported without a folder of pictures.
        run["class_names"] = list(dataset.class_names)
    return config, classification.read_again(run), dataset, class_table


def segmenter(run: dict):
    """The same of a run of segment, whose pictures are resized to the run's."""
    from experiments.reporting import segmentation_report
    from experiments.setup import segmentation

    config, setup = segmentation.for_evaluation(run, dataset=DATASET.value, data_dir=DATA_DIR.value)
    return config, setup, segmentation.load_dataset(config, split=SPLIT.value), segmentation_report.class_table


def generator(run: dict):
    """The same of a run of generate."""
    from experiments.reporting import generation_report
    from experiments.setup import generation, preprocessing

    flags.require(SPLIT.value != "train", "--split=train: samples are compared with pictures not trained on")
    config = preprocessing.on_own_data(run, dataset=DATASET.value, data_dir=DATA_DIR.value)
    dataset = generation.load_dataset(config)
    check_data(run["class_names"], dataset)  # Before the classifier is trained.
    config = config | {"eval_split": SPLIT.value or config["eval_split"]}
    return config, generation.read_again(run | {"flags": config}, scored=True), dataset, generation_report.share_table


def check_data(class_names, dataset) -> None:
    """Raises UsageError where the split asked for is not there, or the classes are others."""
    if SPLIT.value and SPLIT.value not in dataset.splits:
        raise flags.UsageError(f"--split={SPLIT.value}: {dataset.name} has {', '.join(dataset.splits)}")
    ours, theirs = list(class_names), list(dataset.class_names)
    flags.require(ours == theirs, f"classes differ: {ours} in the run, {theirs} here")


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; evaluate takes flags alone")
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the run to score")
    if BATCH_SIZE.value is not None and BATCH_SIZE.value <= 0:
        raise flags.UsageError(f"--batch_size={BATCH_SIZE.value}: must be more than 0")
    from experiments.reporting import run_record

    run = run_record.load_run(WORKDIR.value)
    flags.start_cache()
    from data import batches
    from experiments.setup import classification
    from train import loop, task, workdir
    from train.parallel import data_parallel

    kind = {"segmentation": segmenter, "generation": generator}.get(run["task"], classifier)
    plain = TTA.value is None and not SKIP.value
    flags.require(plain or kind is classifier, "--tta and --skip_corrupt are for runs of classify")
    config, setup, dataset, class_table = kind(run)
    check_data(setup.about.class_names, dataset)
    split = SPLIT.value or classification.eval_split(
        dataset, config["eval_split"] if run["task"] == "generation" else None
    )
    images, labels = dataset.splits[split]
    if images.shape[1:] != setup.about.image_shape:
        shapes = f"{list(setup.about.image_shape)} in the run, {list(images.shape[1:])} here"
        raise flags.UsageError(f"pictures differ: {shapes}")
    state = run_record.restore(setup, WORKDIR.value, WHICH.value)
    eval_step = data_parallel.parallelize(setup.task.eval_step, 1, donate=False)
    run_has = task.eval_batch(setup.task, batch_size=config["batch_size"], examples=len(labels))  # For the same bits.
    batch_size = BATCH_SIZE.value or run_has
    parts = batches.eval_batches(images, labels, batch_size=batch_size)
    began = time.perf_counter()
    loop.add(None, eval_step(state, next(parts)))
    compile_seconds = time.perf_counter() - began
    parts = batches.eval_batches(images, labels, batch_size=batch_size)
    began = time.perf_counter()
    sums = loop.evaluate(state, eval_step, batches=parts, examples=len(labels))
    seconds = time.perf_counter() - began
    result = loop.Result(
        state, setup.task.finish(sums), sums, seconds + compile_seconds, compile_seconds, len(labels) / seconds
    )
    home = run_record.absolute(WORKDIR.value)
    _, header, rows = class_table(sums, dataset.class_names)
    for row in [header, *rows]:
        print("  ".join(f"{cell:>10}" for cell in row), file=sys.stderr)
    summary = run_record.summary(config, setup, result, split, len(labels), str(home))
    print(json.dumps(summary), flush=True)  # Before confusion.csv, for which the folder may give no leave.
    if "confusion" in sums:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *dataset.class_names])
        named = zip(dataset.class_names, sums["confusion"], strict=True)
        writer.writerows([name, *map(int, row)] for name, row in named)
        workdir.write_atomically(home / "confusion.csv", text.getvalue())
        print(f"confusion matrix of {split}: {home / 'confusion.csv'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    flags.run(main)
