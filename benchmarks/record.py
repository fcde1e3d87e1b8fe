"""Trains with the recipe of a CIFAR-10 speed record in PyTorch, to compare its accuracy and time with this project's:

    python -m benchmarks.record --peer_python=PYTHON --data_dir=FOLDER [--seeds=0,1]
    python -m benchmarks.record --peer_python=PYTHON --dataset=fashion_mnist

PYTHON has torch and NumPy. The recipe is in record_in_torch.py; it reaches 94 % on the original CIFAR-10 in 9.9 epochs
(Jordan 2024). FOLDER contains images of 25 to 64 pixels per side as train/CLASS/*.jpg, at least 1,024 (a batch), and
test/CLASS/*.jpg (or png). Prints one JSON object for each seed on standard output, as soon as it is known: the accuracy
on the test split with six views of each image and with one, the seconds, and the number of parameters and steps.
"""

import math
import pathlib
import signal
import subprocess
import tempfile

import numpy as np
from absl import flags as absl_flags

import data
from benchmarks import peer_python
from data.stream import usable_cores
from experiments.cli import app

PEER_PYTHON = absl_flags.DEFINE_string("peer_python", None, "Python with torch and NumPy.", required=True)
DATASET = absl_flags.DEFINE_string("dataset", "folder", "Data set with the splits train and test.")
DATA_DIR = absl_flags.DEFINE_string("data_dir", None, "Folder of the data set.")
SEEDS = absl_flags.DEFINE_list("seeds", ["0", "1"], "Seeds.")
EPOCHS = absl_flags.DEFINE_float("epochs", 9.9, "Passes over the training images.", 0.01, 1000)
absl_flags.register_validator("epochs", lambda epochs: not math.isnan(epochs), "must be a number from 0.01 to 1000")
SCRIPT = pathlib.Path(__file__).with_name("record_in_torch.py")
SMALLEST = 1024  # Training images: one batch.


def write(path: pathlib.Path) -> None:
    """Loads the data set and writes its splits for record_in_torch.py."""
    dataset = data.load(DATASET.value, DATA_DIR.value)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        app.require(split in dataset.splits, f"--dataset={DATASET.value}: has no split {split}")
        images, labels = dataset.splits[split]
        in_memory = isinstance(images, np.ndarray) and labels.ndim == 1
        app.require(in_memory, f"--dataset={DATASET.value}: must have labeled images of at most 64 pixels per side")
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    count, side = len(arrays["train_labels"]), min(arrays["train_images"].shape[1:3])
    app.require(count >= SMALLEST, f"--dataset={DATASET.value}: {count} training images; must have {SMALLEST} or more")
    app.require(side >= 25, f"--dataset={DATASET.value}: images of {side} pixels; must have 25 or more per side")
    np.savez(path, **arrays)  # type: ignore[arg-type]  # The stub confuses the arrays with allow_pickle.


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; record takes no positional arguments")
    for seed in SEEDS.value or [""]:
        valid = seed.isdecimal() and int(seed) < 2**63
        app.require(valid, f"--seeds={seed}: must be a list of integers of 0 or more, less than 2**63")
    peer_python.check(PEER_PYTHON.value, "torch", "numpy")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # An exception also ends the training program.
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "data.npz")
        write(path)
        for seed in SEEDS.value:
            options = [f"--data={path}", f"--seed={seed}", f"--epochs={EPOCHS.value}", f"--threads={usable_cores()}"]
            done = subprocess.run([PEER_PYTHON.value, SCRIPT, *options], stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise ChildProcessError(f"{SCRIPT.name} failed with exit status {done.returncode}")
            print(done.stdout.strip(), flush=True)
    return 0


if __name__ == "__main__":
    app.run(main)
