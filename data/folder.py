"""Pictures in folders, SPLIT/CLASS/*.jpg or png: small ones of one size, held in memory.

They are decoded once, in parallel, and kept as an array in a file next to the folder; the file is made again when any
picture is added, removed or changed.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import sys
import zipfile

import numpy as np

from data.dataset import DataError, Dataset
from data.decode import read_picture

SUFFIXES = (".jpg", ".jpeg", ".png")
LARGEST = 64  # Pixels a side that are held in memory.


def load(data_dir: str | None, *, skip_corrupt: bool = False) -> Dataset:
    """The splits of the folder as uint8 [N, H, W, 3] with classes sorted by name.

    A picture that can't be decoded is named; the first stops the load with DataError, or with `skip_corrupt` all are
    left out and counted. DataError too for a missing folder, classes that differ between splits, and sizes that do.
    """
    if not data_dir:
        raise DataError("--dataset=folder needs --data_dir=FOLDER, which holds SPLIT/CLASS/*.jpg or png")
    root = pathlib.Path(data_dir).absolute()
    if not root.is_dir():
        raise DataError(f"--data_dir={data_dir}: there is no such folder")
    splits = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    listed = {split: _list(root / split) for split in splits}
    listed = {split: classes for split, classes in listed.items() if any(classes.values())}
    if not listed:
        raise DataError(f"--data_dir={data_dir} holds no pictures as SPLIT/CLASS/*.jpg, jpeg or png")
    names = tuple(next(iter(listed.values())))
    for split, classes in listed.items():
        if tuple(classes) != names:
            raise DataError(
                f"the classes of {next(iter(listed))} and {split} differ: {list(names)} and {list(classes)}"
            )
    found = {split: _split(root, split, classes, skip_corrupt) for split, classes in listed.items()}
    sizes = {split: images.shape[1:3] for split, (images, _) in found.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"the pictures' sizes differ between splits: {sizes}")
    return Dataset("folder", found, names)


def _list(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) for path in classes}


def _split(root: pathlib.Path, split: str, classes: dict, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split, from the file beside the folder where that is of the same pictures."""
    files = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    digest = hashlib.sha256(repr((list(classes), skip_corrupt)).encode())
    for path, label in files:
        status = path.stat()
        digest.update(f"{path.relative_to(root)}\0{label}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    key, cache = digest.hexdigest(), root.with_name(f"{root.name}.{split}.npz")
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) == key:
                return kept["images"], kept["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # No such file, or one that was cut short: the pictures themselves are there.
    images, labels = _decode(root, split, files, skip_corrupt)
    temporary = cache.with_name(f".{cache.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, images=images, labels=labels, key=np.array(key))
        temporary.replace(cache)
    except OSError as error:
        print(f"{cache} can't be written ({error.strerror}): the pictures are decoded at each start", file=sys.stderr)
    finally:
        temporary.unlink(missing_ok=True)
    return images, labels


def _decode(root: pathlib.Path, split: str, files: list, skip_corrupt: bool) -> tuple[np.ndarray, np.ndarray]:
    from tqdm import tqdm  # Late: most runs read the array.

    def read(path):
        try:
            return read_picture(str(path), channels=3)
        except DataError as error:
            return error

    images: list[np.ndarray] = []
    labels, corrupt = [], 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [path for path, _ in files]
        bar = tqdm(pool.map(read, paths), total=len(files), desc=f"decoding {split}", disable=not sys.stderr.isatty())
        for (path, label), image in zip(files, bar, strict=True):
            if isinstance(image, DataError):
                if not skip_corrupt:
                    pool.shutdown(cancel_futures=True)
                    raise DataError(f"{image}; --skip_corrupt leaves such pictures out")
                print(f"left out: {image}", file=sys.stderr)
                corrupt += 1
                continue
            if max(image.shape[:2]) > LARGEST or (images and image.shape != images[0].shape):
                pool.shutdown(cancel_futures=True)
                size = f"{image.shape[0]}x{image.shape[1]}"
                expected = (
                    f"{images[0].shape[0]}x{images[0].shape[1]}" if images else f"{LARGEST} pixels a side or less"
                )
                raise DataError(f"{path} is {size}, expected {expected}: pictures of one small size are accepted")
            images.append(image)
            labels.append(label)
    if corrupt:
        print(f"{split}: {corrupt} of {len(files)} pictures left out", file=sys.stderr)
    if not images:
        raise DataError(f"{root / split}: no picture can be read")
    return np.stack(images), np.array(labels, np.int32)
