"""Compares SegNet-Basic's step with a peer's: python -m benchmarks.segmentation --peer=torch_step.py
--peer_python=PYTHON

benchmarks.twins describes the method. Batches have 8 images of 96x128 pixels, with 11 classes of equal weight. There is
no local response normalization, because the peer's network has none.
"""

import jax
import numpy as np

import models
from benchmarks import tasks, twins
from experiments.cli import app

BATCH_SIZE, IMAGE_SHAPE, CLASSES = 8, (96, 128, 3), 11


def twin() -> twins.Twin:
    task = tasks.segmenter(models.create("segnet_basic", CLASSES, normalise_channels=False), IMAGE_SHAPE, CLASSES)
    batch_size = twins.BATCH.value or BATCH_SIZE
    random = np.random.default_rng(0)
    images = random.normal(size=(batch_size, *IMAGE_SHAPE)).astype(np.float32)
    labels = random.integers(0, CLASSES, (batch_size, *IMAGE_SHAPE[:2]), np.int32)
    return twins.Twin(task, jax.device_put({"image": images, "label": labels}))


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; segmentation takes no positional arguments")
    twins.check()
    twins.compare({"segnet_basic": twin()})
    return 0


if __name__ == "__main__":
    app.run(main)
