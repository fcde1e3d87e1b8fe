"""Labels picture files: python -m experiments.predict --workdir=W picture.png ... [--top=3]"""

import csv
import pathlib
import sys

from absl import flags as absl_flags

from experiments.cli import flags

MOST = 100_000  # Samples of one call.
WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the run.")
TOP = absl_flags.DEFINE_integer("top", 1, "Most probable labels printed for each file.")
SAMPLES = absl_flags.DEFINE_integer("samples", None, "Of a run of generate: how many pictures to make.")
SEED = absl_flags.DEFINE_integer("seed", 0, "Of a run of generate: seed of the latent vectors.")
OUT = absl_flags.DEFINE_string("out", None, "Of a run of generate: folder of the pictures; default W/predictions.")
WHICH = absl_flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Checkpoint to use.")


def main(argv) -> int:
    files = argv[1:]
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the run whose network is used")
    from experiments.reporting import run_record

    run = run_record.load_run(WORKDIR.value)
    if run["task"] == "generation":
        return write_samples(run, files)
    for name, value in (("samples", SAMPLES.value), ("out", OUT.value)):
        flags.require(value is None, f"--{name}={value} is for runs of generate")
    if not files:
        raise flags.UsageError("no picture given: predict --workdir=W FILE ...")
    labels = run["task"] != "segmentation"
    if not 1 <= TOP.value <= len(run["class_names"]):
        raise flags.UsageError(f"--top={TOP.value}: accepted are 1 to {len(run['class_names'])}, the number of classes")
    flags.require(labels or TOP.value == 1, "--top is for runs of classify")
    from train.parallel.devices import start_devices

    start_devices(None)
    flags.start_cache()
    import numpy as np

    from data import DataError
    from experiments.setup import preprocessing

    pictures, kept, status = [], [], 0
    for file in files:
        try:
            pictures.append(preprocessing.read_picture(file, run))
            kept.append(file)
        except DataError as error:
            run_record.print_line(f"error: {error}")
            status = 1
    if kept:
        (write_labels if labels else write_masks)(run, kept, np.stack(pictures))
    return status


def write_samples(run: dict, files: list[str]) -> int:
    """PNG files of samples and a grid; their names as CSV on standard output."""
    flags.require(not files, f"unexpected argument {next(iter(files), '')!r}: a run of generate makes pictures")
    flags.require(TOP.value == 1, "--top is for runs of classify")
    count = SAMPLES.value
    if count is None:
        raise flags.UsageError("--samples=N is needed: how many pictures a run of generate is to make")
    flags.require(count > 0, f"--samples={count}: accepted are 1 to {MOST}")
    flags.require(count <= MOST, f"--samples={count}: accepted are 1 to {MOST}")
    flags.require(0 <= SEED.value < 2**32, f"--seed={SEED.value}: accepted are 0 to {2**32 - 1}")
    from train.parallel.devices import start_devices

    start_devices(None)
    flags.start_cache()
    from experiments.reporting import generation_report, run_record
    from experiments.setup import generation

    setup = generation.read_again(run, scored=False)
    state = run_record.restore(setup, str(WORKDIR.value), str(WHICH.value))
    classes = len(run["class_names"])
    batch = generation_report.latent_batch(count, SEED.value, latents=setup.latents, classes=classes)
    images = generation_report.samples(setup.task.predict_step, state, batch)
    place = pathlib.Path(OUT.value) if OUT.value else run_record.absolute(str(WORKDIR.value)) / "predictions"
    columns = generation_report.columns_of(classes, conditional=setup.model.conditional)
    names = generation_report.write_samples(place, images, columns=columns)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class"] if setup.model.conditional else ["file"])
    for i, name in enumerate(names):
        writer.writerow([name, run["class_names"][i % classes]] if setup.model.conditional else [name])
    return 0


def write_labels(run: dict, files: list[str], pictures) -> None:
    """The most probable classes as CSV on standard output."""
    import numpy as np

    from experiments.reporting import classification_report, run_record
    from experiments.setup import classification

    setup = classification.read_again(run)
    state = run_record.restore(setup, str(WORKDIR.value), str(WHICH.value))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "label", "probability"])
    for file, row in zip(files, classification_report.predictions(setup.task, state, pictures, 32), strict=True):
        for i in np.argsort(-row, kind="stable")[: TOP.value]:
            writer.writerow([file, run["class_names"][i], f"{row[i]:.6f}"])


def write_masks(run: dict, files: list[str], pictures) -> None:
    """PNG files of classes and overlays, and a legend, in the run's folder; their names as CSV on standard output."""
    from experiments.reporting import run_record, segmentation_report
    from experiments.setup import segmentation

    place = run_record.absolute(str(WORKDIR.value)) / "predictions"
    for file in files:
        inside = pathlib.Path(file).resolve().parent == place.resolve()
        flags.require(not inside, f"{file} lies where masks are written, {place}; copy it to another folder")
    setup = segmentation.read_again(run)
    state = run_record.restore(setup, str(WORKDIR.value), str(WHICH.value))
    found = segmentation_report.masks(setup.task, state, pictures)
    rows = segmentation_report.write_masks(place, files, found, run["class_names"])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "mask", "overlay"])
    writer.writerows(rows)


if __name__ == "__main__":
    flags.run(main)
