"""Labels picture files: python -m experiments.predict --workdir=W picture.png ... [--top=3]"""

import csv
import pathlib
import sys

from absl import flags as absl_flags

from experiments import flags
from train import parallel

WORKDIR = absl_flags.DEFINE_string("workdir", None, "Folder of the run.")
TOP = absl_flags.DEFINE_integer("top", 1, "Most probable labels printed for each file.")
WHICH = absl_flags.DEFINE_enum("checkpoint", "latest", ["latest", "best"], "Checkpoint to use.")


def main(argv) -> int:
    files = argv[1:]
    if not WORKDIR.value:
        raise flags.UsageError("--workdir=FOLDER is needed: the run whose network labels the files")
    if not files:
        raise flags.UsageError("no picture given: predict --workdir=W FILE ...")
    from experiments import records

    run = records.load_run(WORKDIR.value)
    labels = run["task"] != "segmentation"
    if not 1 <= TOP.value <= len(run["class_names"]):
        raise flags.UsageError(f"--top={TOP.value}: accepted are 1 to {len(run['class_names'])}, the number of classes")
    flags.require(labels or TOP.value == 1, "--top is for runs of classify")
    parallel.start_devices(None)
    flags.start_cache()
    import numpy as np

    from data import DataError
    from experiments import views

    pictures, kept, status = [], [], 0
    for file in files:
        try:
            pictures.append(views.read_picture(file, run))
            kept.append(file)
        except DataError as error:
            records.print_line(f"error: {error}")
            status = 1
    if kept:
        (write_labels if labels else write_masks)(run, kept, np.stack(pictures))
    return status


def write_labels(run: dict, files: list[str], pictures) -> None:
    """The most probable classes as CSV on standard output."""
    import numpy as np

    from experiments import build, look, records

    setup = build.read_again(run)
    state = records.restore(setup, str(WORKDIR.value), str(WHICH.value))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "label", "probability"])
    for file, row in zip(files, look.predictions(setup.task, state, pictures, 32), strict=True):
        for i in np.argsort(-row, kind="stable")[: TOP.value]:
            writer.writerow([file, run["class_names"][i], f"{row[i]:.6f}"])


def write_masks(run: dict, files: list[str], pictures) -> None:
    """PNG files of classes and overlays, and a legend, in the run's folder; their names as CSV on standard output."""
    from experiments import look_segmentation, records, segmentation

    place = records.absolute(str(WORKDIR.value)) / "predictions"
    for file in files:
        inside = pathlib.Path(file).resolve().parent == place.resolve()
        flags.require(not inside, f"{file} lies where masks are written, {place}; copy it to another folder")
    setup = segmentation.read_again(run)
    state = records.restore(setup, str(WORKDIR.value), str(WHICH.value))
    found = look_segmentation.masks(setup.task, state, pictures)
    rows = look_segmentation.write_masks(place, files, found, run["class_names"])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "mask", "overlay"])
    writer.writerows(rows)


if __name__ == "__main__":
    flags.run(main)
