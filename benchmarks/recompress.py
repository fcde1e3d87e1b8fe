"""Writes Fashion-MNIST with images that went through JPEG, to measure what the compression costs in accuracy:

    python -m benchmarks.recompress --out=FOLDER [--quality=75]
    python -m experiments.classify --flagfile=experiments/recipes/fashion_dcnn.flags --data_dir=FOLDER --workdir=W

Each image is encoded as a grayscale JPEG of the given quality and decoded again. FOLDER gets the four idx files, with
unchanged labels. Prints the peak signal-to-noise ratio of the training images, in dB.
"""

import io
import pathlib
import struct

import numpy as np
from absl import flags as absl_flags
from PIL import Image

from data import idx
from experiments.cli import app
from train.tasks import reconstruction
from train.workdir import write_atomically

OUT = absl_flags.DEFINE_string("out", None, "Folder for the files; it must not contain any of them.", required=True)
QUALITY = absl_flags.DEFINE_integer("quality", 75, "Quality of the JPEGs, as in libjpeg.", 1, 100)
DATA_DIR = absl_flags.DEFINE_string("data_dir", None, "Folder of the original files.")


def through_jpeg(image_HW: np.ndarray, quality: int) -> np.ndarray:
    """The grayscale image as decoded from a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image_HW).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def as_idx(values: np.ndarray) -> bytes:
    """An idx file of bytes (see data.idx)."""
    header = bytes([0, 0, idx.UNSIGNED_BYTES, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; recompress takes no positional arguments")
    app.require(bool(OUT.value), "--out must be given: the folder for the files")
    out = pathlib.Path(OUT.value)
    there = sorted(map(str, idx.find([out]).values()))
    app.require(not there, f"--out={out}: already contains {there[0] if there else ''}")
    dataset = idx.load("fashion_mnist", DATA_DIR.value)
    for split, (images, labels) in dataset.splits.items():
        changed = np.stack([through_jpeg(image, QUALITY.value) for image in images[..., 0]])
        for name, values in zip(idx.FILES[split], (changed, labels), strict=True):
            write_atomically(out / name, as_idx(values))
        if split == "train":
            errors = reconstruction.mean_squared_error(images[..., 0] / 255, changed / 255)
            ratio = float(reconstruction.psnr(errors.mean()))
            print(f"{len(images):,} training images of quality {QUALITY.value}: {ratio:.2f} dB")
    return 0


if __name__ == "__main__":
    app.run(main)
