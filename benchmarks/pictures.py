"""Generates JPEGs of ImageNet's usual size and measures how fast the input path reads them."""

import pathlib
import time

import numpy as np
from PIL import Image, ImageFilter

from data import batches, folder, stream

BATCH, SIDE = 64, 224


def make(root: pathlib.Path, count: int) -> None:
    """Writes JPEGs of smooth noise, 500 x 375 pixels, quality 90: about 60 kB each (ImageNet's average is 110 kB)."""
    random = np.random.default_rng(0)
    for i in range(count):
        place = root / "train" / f"class{i % 4}"
        place.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(random.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        noise.filter(ImageFilter.GaussianBlur(1)).save(place / f"{i:05d}.jpg", quality=90)


def rate(root: pathlib.Path, count: int) -> float:
    """Images per second in the second pass over the images; the first pass warms up."""
    images, labels = folder.load(str(root), view=stream.view(SIDE, "resized_crop"), always=True).splits["train"]
    source, per_pass = batches.train_batches(images, labels, batch_size=BATCH, seed=0), count // BATCH
    for _ in range(per_pass):
        next(source)
    began = time.perf_counter()
    for _ in range(per_pass):
        next(source)
    return per_pass * BATCH / (time.perf_counter() - began)
