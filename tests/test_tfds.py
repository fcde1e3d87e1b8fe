"""Tests of data sets prepared by TFDS in array_record: locations, errors, and equality with image files."""

import io
import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import data
from data import from_tfds, stream
from data.dataset import DataError

CLASSES = ["cat", "dog", "eel"]


def prepare(folder, *, size, splits, name="tiny", config=None, version="1.0.0", image=None, label=None, unknown=()):
    """A data set with images of `size(i)` (width, height), random colors from seed i and label i % 3, or -1 in the
    splits `unknown`. Returns its folder."""
    image = image or tfds.features.Image()

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            features = {"image": image, "label": label or tfds.features.ClassLabel(names=CLASSES)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split, count) for split, count in splits.items()}

        def _generate_examples(self, split, count):
            for i in range(count):
                number = -1 if split in unknown else i % 3
                yield i, {"image": io.BytesIO(encoded(i, size(i))), "label": number}

    Made.name = name
    builder = Made(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder / name / (config or "") / version


def encoded(i, size):
    file = io.BytesIO()
    values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, size=lambda i: (8, 6), splits={"train": 9, "validation": 4, "test": 3}, unknown=("test",))
    return folder


def test_small_images_are_read_into_memory_and_cached(small, monkeypatch):
    before = "tensorflow" in sys.modules  # Another test of this worker may have imported it.
    found = data.load("tfds:tiny", str(small))
    assert found.name == "tfds:tiny" and found.class_names == tuple(CLASSES)
    assert {split: images.shape for split, (images, _) in found.splits.items()} == {
        "train": (9, 6, 8, 3),
        "validation": (4, 6, 8, 3),
    }  # The split test has no labels.
    made = {Image.open(io.BytesIO(encoded(i, (8, 6)))).tobytes(): i % 3 for i in range(9)}
    images, labels = found.splits["train"]
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == made
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    monkeypatch.setattr(from_tfds, "read_image", None)  # The second load decodes nothing.
    np.testing.assert_array_equal(data.load("tfds:tiny", str(small)).splits["train"][0], images)
    monkeypatch.setenv("TFDS_DATA_DIR", str(small))
    assert len(data.load("tfds:tiny:1.0.0").splits["train"][1]) == 9
    assert ("tensorflow" in sys.modules) == before


def test_large_images_are_streamed_like_those_of_a_folder(tmp_path):
    sizes = [(90, 70), (70, 90), (128, 65)]
    prepare(tmp_path, size=lambda i: sizes[i % 3], splits={"train": 6}, config="big-v1.0")
    for name in ("tfds:tiny/big-v1.0", "tfds:tiny"):  # A single config need not be named.
        images, labels = data.load(name, str(tmp_path), image_size=32, augment="resized_crop").splits["train"]
        assert isinstance(images, stream.Stream) and images.shape == (6, 32, 32, 3)
    for i in range(6):
        path = tmp_path / "files" / "train" / CLASSES[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, sizes[i % 3]))
    files, theirs = data.load("folder", str(tmp_path / "files"), image_size=32).splits["train"]
    expected = {image.tobytes(): label for image, label in zip(files[:], theirs, strict=True)}
    assert {image.tobytes(): label for image, label in zip(images[:], labels, strict=True)} == expected
    assert data.load("tfds:tiny", str(tmp_path)).splits["train"][0].shape == (6, 224, 224, 3)


def test_choosing_a_version_and_a_config(tmp_path):
    for version, count in (("1.9.0", 1), ("1.10.0", 2)):
        prepare(tmp_path, size=lambda i: (8, 8), splits={"train": count}, version=version)
    assert len(data.load("tfds:tiny", str(tmp_path)).splits["train"][1]) == 2
    assert len(data.load("tfds:tiny:1.9.0", str(tmp_path)).splits["train"][1]) == 1
    with pytest.raises(DataError, match=r"tfds:tiny:2\.0\.0 is not prepared in .*, only 1\.10\.0, 1\.9\.0: run"):
        data.load("tfds:tiny:2.0.0", str(tmp_path))
    for config in ("a", "b"):
        prepare(tmp_path, size=lambda i: (8, 8), splits={"train": 1}, name="two", config=config)
    assert len(data.load("tfds:two/b", str(tmp_path)).splits["train"][1]) == 1
    with pytest.raises(DataError, match="choose tfds:two/a or tfds:two/b"):
        data.load("tfds:two", str(tmp_path))


def test_unprepared_or_damaged_sets_name_the_folder_and_the_command(small, tmp_path):
    with pytest.raises(DataError) as error:
        data.load("tfds:imagenette/320px", str(tmp_path))
    arguments = f"'imagenette/320px', data_dir='{tmp_path}', file_format='array_record'"
    assert f"not prepared in {tmp_path}: run `python -c " in str(error.value)
    assert f"tfds.builder({arguments}).download_and_prepare()" in str(error.value)
    place = tmp_path / "tiny" / "1.0.0"
    place.mkdir(parents=True)
    for path in (small / "tiny" / "1.0.0").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=rf"{place} is stored as tfrecord, expected array_record: remove it and run `"):
        data.load("tfds:tiny", str(tmp_path))
    (place / "dataset_info.json").write_text(json.dumps(info))
    shard = next(place.glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"the store {place} is damaged"):
        data.load("tfds:tiny", str(tmp_path))
    (place / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=rf"the store {place} is damaged"):
        data.load("tfds:tiny", str(tmp_path))


@pytest.mark.parametrize("name", ["", "../x", "x/..", "/etc", "x/../../etc", "x:1", "x/.hidden", "x/a/b", "x\n", "x y"])
def test_names_that_are_not_data_sets_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(f"--dataset=tfds:{name}: must be tfds:NAME")):
        data.load(f"tfds:{name}")


def test_sets_not_for_classification_are_refused(tmp_path):
    scalar = tfds.features.Scalar(dtype=np.int32)
    prepare(tmp_path, size=lambda i: (8, 8), splits={"train": 1}, name="numbers", label=scalar)
    with pytest.raises(DataError, match=r"tfds:numbers is not .* it has image \(Image\), label \(Scalar\), not"):
        data.load("tfds:numbers", str(tmp_path))
    prepare(tmp_path, size=lambda i: (8, 8), splits={"test": 1}, name="unlabelled", unknown=("test",))
    with pytest.raises(DataError, match="has no split with labels"):
        data.load("tfds:unlabelled", str(tmp_path))
    deep = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
    prepare(tmp_path, size=lambda i: (8, 8), splits={"train": 1}, name="deep", image=deep)
    with pytest.raises(DataError, match=r"the images of tfds:deep are uint16"):
        data.load("tfds:deep", str(tmp_path))


def test_mnist_as_tfds_mocks_it(tmp_path):
    """Uses the features of the registered data set. mock_data creates its random examples with tf.io, which needs
    TensorFlow, so the hook `as_data_source_fn` provides encoded examples instead."""
    digits = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)

    def source(builder, split, decoders):
        assert split == "train" and list(decoders) == ["image"]
        files = [io.BytesIO() for _ in digits]
        for file, digit in zip(files, digits, strict=True):
            Image.fromarray(digit[..., 0]).save(file, "PNG")
        return [{"image": file.getvalue(), "label": 2 * i} for i, file in enumerate(files)]

    policy = tfds.testing.MockPolicy.USE_CODE
    with tfds.testing.mock_data(num_examples=5, policy=policy, as_data_source_fn=source):
        builder = tfds.builder("mnist", data_dir=str(tmp_path))
        from_tfds.check_features(builder, "tfds:mnist")
        found = from_tfds.read_split(builder, "train", 5, place=tmp_path)
    assert found.channels == 1 and found.size(0) == (28, 28)
    np.testing.assert_array_equal(np.stack([found.read(i, None) for i in range(5)]), digits)
    assert builder.info.features["label"].names == list("0123456789")
