"""Labels picture files: python -m experiments.predict --workdir=W picture.png ... [--top=3]"""

import csv
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
    names = run["class_names"]
    if not 1 <= TOP.value <= len(names):
        raise flags.UsageError(f"--top={TOP.value}: accepted are 1 to {len(names)}, the number of classes")
    parallel.start_devices(None)
    flags.start_cache()
    import numpy as np

    from data import DataError
    from experiments import build, look, views

    pictures, kept, status = [], [], 0
    for file in files:
        try:
            pictures.append(views.read_picture(file, run))
            kept.append(file)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    setup = build.read_again(run)
    state = records.restore(setup, WORKDIR.value, WHICH.value)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "label", "probability"])
    if pictures:
        for file, row in zip(kept, look.predictions(setup.task, state, np.stack(pictures), 32), strict=True):
            for i in np.argsort(-row, kind="stable")[: TOP.value]:
                writer.writerow([file, names[i], f"{row[i]:.6f}"])
    return status


if __name__ == "__main__":
    flags.run(main)
