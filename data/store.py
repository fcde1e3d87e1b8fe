"""Prepared data sets in TFDS's array_record format, written and read without TensorFlow."""

import contextlib
import io
import pathlib
import shutil
import sys

import numpy as np

from data.dataset import DataError

PREFIX = "nutshell_"  # Distinguishes stores from TFDS builders of the same name.


def _builder(folder: pathlib.Path, name: str, splits: dict | None, classes: tuple[str, ...]):
    import tensorflow_datasets as tfds  # Imported late: only prepared stores need it.

    shape = next(iter(splits.values()))[0].shape[1:] if splits else (None, None, 3)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=list(classes)),
                "index": tfds.features.Scalar(dtype=np.int32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(*arrays) for split, arrays in (splits or {}).items()}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield i, {"image": image, "label": int(label), "index": i}

    Builder.name = PREFIX + name
    return Builder(data_dir=str(folder), file_format="array_record")


def write_image_files(folder: pathlib.Path, name: str, splits: dict, classes: tuple[str, ...]) -> pathlib.Path:
    """Writes the image files [(path, label)] of each split, unchanged, to a store for --dataset=tfds:NAME, atomically.
    An existing store is kept."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=list(classes)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(files) for split, files in splits.items()}

        def _generate_examples(self, files):
            for i, (path, label) in enumerate(files):
                yield i, {"image": pathlib.Path(path).read_bytes(), "label": label}

    Builder.name = name
    return _prepared(Builder(data_dir=str(folder), file_format="array_record"))


def exists(folder: pathlib.Path, name: str, *, prefix: str = PREFIX) -> bool:
    return any((folder / (prefix + name)).glob("*/dataset_info.json"))


def write(folder: pathlib.Path, name: str, splits: dict, classes: tuple[str, ...]) -> pathlib.Path:
    """Writes images uint8 [N, H, W, C] and labels [N] of each split, atomically. An existing store is kept."""
    return _prepared(_builder(folder, name, splits, classes))


def _prepared(builder) -> pathlib.Path:
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Otherwise it announces a download of unknown size.
            builder.download_and_prepare()
    except RuntimeError as error:  # From array_record, also if the disk is full.
        raise DataError(f"{builder.data_dir} can't be written: {' '.join(str(error).split())}") from None
    place = pathlib.Path(builder.data_dir)
    for left in place.parent.glob("incomplete.*"):  # Left over from killed processes.
        shutil.rmtree(left, ignore_errors=True)
    return place


def read(folder: pathlib.Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads all splits into memory in the order written. Raises DataError if the store is damaged."""
    import tensorflow_datasets as tfds

    place = max((folder / (PREFIX + name)).glob("*/dataset_info.json")).parent
    found = {}
    with damage(place):
        builder = tfds.builder_from_directory(place)
        for split in builder.info.splits:
            source = builder.as_data_source(split=split)
            rows = sorted((source[i] for i in range(len(source))), key=lambda row: int(row["index"]))
            labels = np.array([row["label"] for row in rows], np.int32)
            found[split] = np.stack([row["image"] for row in rows]), labels
    return found


@contextlib.contextmanager
def damage(place: pathlib.Path):
    """Converts the various exceptions of array_record and tfds for damaged files to DataError."""
    try:
        yield
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"the store {place} is damaged ({line}); remove it and prepare it again") from None
