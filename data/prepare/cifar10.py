"""Reads CIFAR-10's official binary archive.

It contains data_batch_1.bin to data_batch_5.bin (train) and test_batch.bin (test) with 10,000 records each. A record is
one byte for the label, then 1,024 bytes each for red, green and blue in row-major order. The pickled Python archive is
not supported.
"""

import pathlib

import numpy as np

from data import cifar10
from data.dataset import DataError
from data.prepare import tar

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 3073  # Bytes.
OTHERWISE = (
    "a mirror is https://huggingface.co/datasets/uoft-cs/cifar10/tree/main/plain_text: download its two Parquet files "
    "and add --source=FOLDER"
)


def parse(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [10000, 32, 32, 3] and labels int32 [10000] of one file. Raises DataError for invalid labels."""
    records = np.frombuffer(content, np.uint8).reshape(cifar10.RECORDS, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise DataError(f"{name} contains the label {labels.max()}, expected 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def read_archive(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the splits of the archive into memory without unpacking files. Raises DataError for any other archive."""
    found, wanted = {}, sum(FILES.values(), [])
    with tar.opened(path) as archive:
        for member in archive:
            name = pathlib.PurePosixPath(member.name).name
            if name in ("data_batch_1", "test_batch", "batches.meta"):
                raise DataError(f"{path} is the Python version; use the binary version, {pathlib.Path(URL).name}")
            stream = archive.extractfile(member) if member.isfile() and name in wanted else None
            if stream is None:
                continue
            if member.size != RECORD * cifar10.RECORDS:
                raise DataError(f"{name} has {member.size:,} bytes, expected {cifar10.RECORDS:,} records of {RECORD:,}")
            found[name] = parse(stream.read(), name)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    return {
        split: (np.concatenate([found[n][0] for n in names]), np.concatenate([found[n][1] for n in names]))
        for split, names in FILES.items()
    }
