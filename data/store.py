"""Prepared data sets as tfds array_record stores, written and read without TensorFlow."""

import contextlib
import io
import pathlib
import shutil

import numpy as np

from data.dataset import DataError

PREFIX = "nutshell_"  # Not to be taken for tfds' own builders of the same names.


def _builder(folder: pathlib.Path, name: str, splits: dict | None, classes: tuple[str, ...]):
    import tensorflow_datasets as tfds  # Late: its import is needed for prepared stores alone.

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
    """Writes picture files as they are, [(path, label)] of each split, once, for --dataset=tfds:NAME; the store appears
    whole or not at all."""
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
    """Writes images uint8 [N, H, W, C] and labels [N] of each split once; the store appears whole or not at all."""
    return _prepared(_builder(folder, name, splits, classes))


def _prepared(builder) -> pathlib.Path:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # It would announce a download, of unknown size.
            builder.download_and_prepare()
    except RuntimeError as error:  # array_record's, of a full disk too.
        raise DataError(f"{builder.data_dir} can't be written: {' '.join(str(error).split())}") from None
    place = pathlib.Path(builder.data_dir)
    for left in place.parent.glob("incomplete.*"):  # Of earlier calls that were killed.
        shutil.rmtree(left, ignore_errors=True)
    return place


def read(folder: pathlib.Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """All splits in memory, in the order in which they were written. Raises DataError for a damaged store."""
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
    """Inside it, whatever array_record and tfds say of a cut or changed file, which is not one type, is a DataError."""
    try:
        yield
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"the store {place} is damaged ({line}); remove it and prepare it again") from None
