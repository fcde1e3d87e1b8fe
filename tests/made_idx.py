"""Small data sets, learned quickly, in the files of MNIST and Fashion-MNIST."""

import gzip
import struct

import numpy as np

from data import idx


def encoded(values) -> bytes:
    """An idx file of unsigned bytes."""
    values = np.asarray(values, np.uint8)
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder, *, train=40, test=20, seed=0, name=lambda file: f"{file}.gz"):
    """Writes the four files to the folder, each under `name`, compressed if that ends with .gz, and returns the splits
    as {split: (images [N, 28, 28], labels [N])}."""
    folder.mkdir(parents=True, exist_ok=True)
    random, splits = np.random.default_rng(seed), {}
    for (split, files), count in zip(idx.FILES.items(), (train, test), strict=True):
        labels = (np.arange(count) % 10).astype(np.uint8)
        bands = np.arange(28) // 3 == labels[:, None]  # Three rows of the image, which depend on the class, are bright.
        images = random.integers(0, 100, (count, 28, 28)).astype(np.uint8) + np.uint8(150) * bands[:, :, None]
        splits[split] = images, labels
        for file, values in zip(files, splits[split], strict=True):
            text, path = encoded(values), folder / name(file)
            path.write_bytes(gzip.compress(text, 1, mtime=0) if path.suffix == ".gz" else text)
    return splits
