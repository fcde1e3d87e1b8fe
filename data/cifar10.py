"""CIFAR-10 (Krizhevsky 2009) from its official binary archive, kept as a tfds array_record store.

The archive holds data_batch_1.bin to data_batch_5.bin (train) and test_batch.bin (test), each of 10,000 records: one
byte of the label, then 1,024 bytes for each of red, green and blue, row by row. The pickled Python archive is not read.
"""

import hashlib
import http.client
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request

import numpy as np

from data.dataset import ArgumentError, DataError, Dataset
from data.prepare import tar

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD, RECORDS = 3073, 10_000


def default_dir() -> pathlib.Path:
    """Where `prepare` writes and training reads if no --data_dir is given."""
    return pathlib.Path(os.path.expanduser("~"), "nutshell_data")


def parse(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [10000, 32, 32, 3] and labels int32 [10000] of one file. Raises DataError for another label."""
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise DataError(f"{name} holds the label {labels.max()}, expected 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def read_archive(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The splits of the archive, read in memory: no member is unpacked. Raises DataError for another file."""
    found, wanted = {}, sum(FILES.values(), [])
    with tar.opened(path) as archive:
        for member in archive:
            name = pathlib.PurePosixPath(member.name).name
            if name in ("data_batch_1", "test_batch", "batches.meta"):
                raise DataError(f"{path} is the pickled Python version; the binary one is {pathlib.Path(URL).name}")
            stream = archive.extractfile(member) if member.isfile() and name in wanted else None
            if stream is None:
                continue
            if member.size != RECORD * RECORDS:
                raise DataError(f"{name} has {member.size:,} bytes, expected {RECORDS:,} records of {RECORD:,}")
            found[name] = parse(stream.read(), name)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    return {
        split: (np.concatenate([found[n][0] for n in names]), np.concatenate([found[n][1] for n in names]))
        for split, names in FILES.items()
    }


def train_on(dataset: Dataset, batches: str) -> Dataset:
    """`dataset` with the train split cut to the archive's files `batches`, "1-4" or "1"; the others become the split
    val, as the author of cuda-convnet chose his settings. Raises ValueError for other text or data."""
    match = re.fullmatch(r"([1-5])(?:-([1-5]))?", batches, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise ArgumentError(f"--train_batches={batches}: must be 1 to 5 or a range of them, as 1-4")
    if dataset.name != "cifar10":
        raise ArgumentError(f"--train_batches is supported by --dataset=cifar10, not by {dataset.name}")
    images, labels = dataset.splits["train"]
    batch = np.arange(len(labels)) // RECORDS + 1
    inside = (batch >= first) & (batch <= last)
    splits = {**dataset.splits, "train": (images[inside], labels[inside])}
    if not inside.all():
        splits["val"] = images[~inside], labels[~inside]
    return dataset._replace(splits=splits)


def md5(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def download(target: pathlib.Path, url: str = URL) -> None:
    """Downloads the archive to `target` with a bar; one that was broken off goes on where it stopped.

    Raises DataError for a broken connection (what has come is kept) and for another MD5 (the file is then removed).
    """
    from tqdm import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if done and answer.status != 206:  # The server sends all of it again.
                done = 0
            total = done + int(answer.headers.get("Content-Length", 0))
            with (
                open(part, "ab" if done else "wb") as file,
                tqdm(total=total or None, initial=done, unit="B", unit_scale=True, file=sys.stderr) as bar,
            ):
                while chunk := answer.read(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
            got = part.stat().st_size
            if total and got < total:
                raise DataError(
                    f"the download of {url} broke off at {got:,} of {total:,} bytes; start it again to go on"
                )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # Nothing is left to send: the part is whole.
            raise DataError(f"the download of {url} failed: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"the download of {url} broke off: {error}; start it again to go on") from None
    if md5(part) != MD5:
        part.unlink()
        raise DataError(f"{url} gave a file of another MD5 than {MD5}; it is removed")
    part.replace(target)


def load(data_dir: str | None) -> Dataset:
    """The prepared store in memory. Raises DataError, with the command that prepares it, where there is none."""
    from data import store

    folder = pathlib.Path(data_dir) if data_dir else default_dir()
    if not store.exists(folder, "cifar10"):
        option = f" --data_dir={data_dir}" if data_dir else ""
        command = f"python -m experiments.prepare --dataset=cifar10{option}"
        raise DataError(f"cifar10 is not prepared in {folder}: run `{command}` (add --source=ARCHIVE for a local copy)")
    return Dataset("cifar10", store.read(folder, "cifar10"), CLASSES)
