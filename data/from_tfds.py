"""Image classification data sets prepared by TensorFlow Datasets in array_record: --dataset=tfds:NAME.

Preparing most of them requires TensorFlow; reading them does not. Like image files, stored bytes are decoded by
data.decode, so that an image gives the same array wherever it is stored.
"""

import functools
import os
import pathlib
import re
import sys

import numpy as np

from data import cache, image_files, store
from data.dataset import ArgumentError, DataError, Dataset
from data.decode import image_size, read_image
from data.stream import View

# NAME[/CONFIG][:VERSION]; a config can't start with a dot, so paths stay inside the folder.
NAME = re.compile(r"tfds:([A-Za-z]\w*)(?:/(\w[\w.+-]*))?(?::(\d+\.\d+\.\d+))?", re.ASCII)


def parse(name: str) -> tuple[str, str | None, str | None]:
    """Parses "tfds:NAME[/CONFIG][:VERSION]" to (name, config, version). Raises ArgumentError if it is malformed."""
    match = NAME.fullmatch(name)
    if match is None:
        raise ArgumentError(f"--dataset={name}: must be tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:1.2.3")
    return match[1], match[2], match[3]


def load(
    name: str,
    data_dir: str | None,
    *,
    skip_corrupt: bool = False,
    view: View | None = None,
    always: bool = False,
    shape: tuple[int, int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Loads all labeled splits of a prepared data set. Splits are arrays, or streams of `view` if an image is large or
    `always` is true; with `shape` (h, w, channels), arrays of whole images resized to it. Images have the stored number
    of channels unless `shape` or `channels` is given.

    Raises DataError if the data set is not prepared in array_record, with the command that prepares it, or if it is
    damaged or not for image classification.
    """
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    root = pathlib.Path(os.path.expanduser(given or "~/tensorflow_datasets")).absolute()
    if not given and root.parent.name == "~":
        raise DataError(f"{name}: cannot determine the home folder; specify --data_dir=FOLDER")
    place = find(name, root)
    import tensorflow_datasets as tfds  # Imported late: only prepared stores need it.

    with store.damage(place):
        builder = tfds.builder_from_directory(place)
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        counts = {split: info.num_examples for split, info in builder.info.splits.items() if info.num_examples}
    if "array_record" not in formats:
        stored = ", ".join(sorted(formats)) or "an unknown format"
        raise DataError(f"{place} is stored as {stored}, expected array_record: remove it and {how(name, root)}")
    check_features(builder, name)
    channels, size = (shape[2], shape[:2]) if shape else (channels, None)
    found = {s: read_split(builder, s, count, place=place, channels=channels) for s, count in counts.items()}
    labelled = {split: one for split, one in found.items() if one.labels().min() >= 0}  # Unknown labels are -1.
    for split in found.keys() - labelled.keys():
        print(f"{name}: the split {split} has no labels and is skipped", file=sys.stderr)
    if not labelled:
        raise DataError(f"{place} has no split with labels")
    names = tuple(builder.info.features["label"].names)
    splits, files = image_files.load(labelled, skip_corrupt=skip_corrupt, view=view or View(), always=always, size=size)
    return Dataset(name, splits, names, files=files)


def how(name: str, root: pathlib.Path) -> str:
    """The command that prepares the data set. It avoids `tfds build`, which also requires Apache Beam."""
    if name == "tfds:pictures":
        return f"run `python -m experiments.prepare --dataset=folder --data_dir=FOLDER --shards={root}`"
    arguments = f"{name.removeprefix('tfds:')!r}, data_dir={str(root)!r}, file_format='array_record'"
    code = f"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
    return f"run `python -c \"{code}\"` (requires TensorFlow once: pip install -e '.[prepare]')"


def find(name: str, root: pathlib.Path) -> pathlib.Path:
    """ROOT/NAME/[CONFIG/]VERSION, by default the newest version. Raises DataError if there is none."""
    title, config, version = parse(name)
    folder = root / title / config if config else root / title
    configs = sorted({path.parent.parent.name for path in folder.glob("*/*/dataset_info.json")})
    if config is None and not any(folder.glob("*/dataset_info.json")) and configs:
        if len(configs) > 1:
            choice = " or ".join(f"tfds:{title}/{one}" for one in configs)
            raise DataError(f"{name} is prepared in {root} with several configs: choose {choice}")
        folder = folder / configs[0]
    pattern = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
    versions = [path.parent for path in folder.glob("*/dataset_info.json") if pattern.fullmatch(path.parent.name)]
    kept = [path for path in versions if version in (None, path.name)]
    if not kept:
        there = f", only {', '.join(sorted(path.name for path in versions))}" if versions else ""
        raise DataError(f"{name} is not prepared in {root}{there}: {how(name, root)}")
    return max(kept, key=lambda path: tuple(map(int, path.name.split("."))))


def check_features(builder, name: str) -> None:
    """Raises DataError unless the data set has an 8-bit `image` and a class `label`."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    has = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = has.get("image"), has.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        kinds = (
            ", ".join(f"{key} ({type(value).__name__})" for key, value in sorted(has.items()))
            or type(features).__name__
        )
        raise DataError(
            f"{name} is not an image classification data set: it has {kinds}, not image (Image), label (ClassLabel)"
        )
    if image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise DataError(f"the images of {name} are {image.np_dtype} {list(image.shape)}, expected uint8 [H, W, C]")


def read_split(
    builder, split: str, count: int, *, place: pathlib.Path, channels: int | None = None
) -> image_files.ImageSplit:
    """A split of `builder`, read on demand, by default with the stored number of channels. Reading a damaged record
    raises DataError."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    raw = {key: tfds.decode.SkipDecoding() for key, one in features.items() if isinstance(one, tfds.features.Image)}
    with store.damage(place):
        source = builder.as_data_source(split=split, decoders=raw)
    channels = channels or (1 if features["image"].shape[-1] == 1 else 3)

    def record(example):
        with store.damage(place):
            return source[int(example)]

    def where(example):
        return f"{place}: image {int(example)} of {split}"

    def key(skip_corrupt):
        lengths, status = builder.info.splits[split].shard_lengths, (place / "dataset_info.json").stat()
        return repr((lengths, builder.info.splits[split].num_bytes, status.st_mtime_ns, channels, skip_corrupt))

    @functools.cache
    def labels():
        """Labels are stored in the records together with the images, so this reads all records once and caches them."""
        path = beside.with_name(f"{beside.name}.labels.npz")
        kept = cache.read(path, key(False), "labels")
        if kept is not None:
            return kept["labels"]
        passed = image_files.each(lambda i: int(record(i)["label"]), count, title=f"labels of {split}")
        found = np.fromiter(passed, np.int32, count)
        cache.write(path, key(False), what="reading the labels", labels=found)
        return found

    beside = place.with_name(f"{place.name}.{split}")  # tfds only considers folders whose names are versions.
    return image_files.ImageSplit(
        name=split,
        length=count,
        channels=channels,
        where=where,
        read=lambda example, crop: read_image(
            where(example), channels=channels, content=record(example)["image"], crop=crop
        ),
        size=lambda example: image_size(where(example), content=record(example)["image"]),
        labels=labels,
        key=key,
        cache=beside,
    )
