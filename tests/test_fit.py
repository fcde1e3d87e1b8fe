"""Tests of --fit, which converts images that are not square, and of its combinations with other flags."""

import pathlib

import made_idx
import numpy as np
import pytest
from PIL import Image

import data
from data import decode, stream
from experiments.cli import validation
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.setup import classification, evaluation_data
from experiments.setup.experiment import ClassificationInfo
from experiments.setup.saved_run import SavedRun

INFO = ClassificationInfo((14, 14, 3), (0.0,), (1.0,), ("a", "b"))


@pytest.fixture
def wide(tmp_path):
    """An image of 20 rows and 80 columns: red, green, green and blue quarters."""
    pixels = np.zeros((20, 80, 3), np.uint8)
    for start, channel in ((0, 0), (20, 1), (40, 1), (60, 2)):
        pixels[:, start : start + 20, channel] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return str(tmp_path / "wide.png")


def seen(file, fit, *, side=8, channels=3):
    return decode.read_image(file, channels=channels, crop=stream.middle(stream.View(side, 1.0, fit=fit)))


def test_pad_shows_the_whole_image_on_its_mean_color(wide, tmp_path):
    found = seen(wide, "pad")
    assert found.shape == (8, 8, 3)
    for rows in (slice(0, 3), slice(5, 8)):
        assert (abs(found[rows].astype(int) - (50, 100, 50)) <= 2).all()
    assert found[3:5, 0, 0].min() > 150 and found[3:5, 3:5, 1].min() > 150 and found[3:5, -1, 2].min() > 150
    Image.open(wide).transpose(Image.Transpose.TRANSPOSE).save(tmp_path / "tall.png")
    np.testing.assert_array_equal(seen(str(tmp_path / "tall.png"), "pad"), found.transpose(1, 0, 2))
    gray = seen(wide, "pad", channels=1)
    expected = np.asarray(Image.open(wide).convert("L")).mean()
    assert gray.shape == (8, 8, 1) and abs(gray[0].astype(int) - expected).max() <= 2


def test_squash_stretches_the_whole_image_and_crop_cuts_it(wide):
    np.testing.assert_array_equal(
        seen(wide, "squash"), np.asarray(Image.open(wide).resize((8, 8), Image.Resampling.BILINEAR))
    )
    assert (seen(wide, "crop") == (0, 200, 0)).all()


def test_square_images_do_not_depend_on_the_fit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop, pad, squash = (seen(str(tmp_path / "a.png"), fit) for fit in ("crop", "pad", "squash"))
    np.testing.assert_array_equal(crop, pad)
    np.testing.assert_array_equal(crop, squash)


@pytest.mark.parametrize("size", [(700, 31), (31, 700)])
def test_pad_of_a_jpeg_decoded_at_a_fraction_of_its_resolution(tmp_path, size):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    assert abs(seen(str(tmp_path / "a.jpg"), "pad", side=50).astype(int) - (200, 100, 50)).max() <= 3


def test_random_crops_of_a_squashed_image_cover_it(wide):
    view, hits = stream.View(8, random=True, fit="squash"), np.zeros(3)
    for i in range(40):
        (left, top, right, bottom), size = stream.random_crop(view, (0, i, 1))(20, 80)
        assert 0 <= left < right <= 80 and 0 <= top < bottom <= 20 and size == (8, 8)
        share = (right - left) * (bottom - top) / 1600
        aspect = (right - left) / 80 / ((bottom - top) / 20)
        assert 0.06 < share <= 1 and 0.6 < aspect < 1.7  # Of the squashed image, up to rounding to pixels.
        hits += decode.read_image(wide, channels=3, crop=stream.random_crop(view, (0, i, 1))).max((0, 1)) > 150
    assert (hits > 10).all()
    one, other = (stream.random_crop(stream.View(8, random=True), (0, i, 1))(200, 300) for i in (1, 1))
    assert one == other


def test_training_evaluation_and_prediction_use_the_same_fit(wide, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            Image.open(wide).save(tmp_path / "d" / split / name / "0.png")
    for fit, augment in (("pad", "none"), ("pad", "crop"), ("squash", "none"), ("squash", "resized_crop")):
        flags = {"image_size": 14, "fit": fit, "augment": augment}
        config = ClassifyConfig(workdir="W", dataset="folder", data_dir=str(tmp_path / "d"), **flags)
        validation.check_classify(config)
        images, _ = classification.load_dataset(config).splits["test"]
        info = ClassificationInfo(images.shape[1:], (0.0,), (1.0,), ("a", "b"))
        run = SavedRun(pathlib.Path(), "classification", config, info, 1, "test", {})
        np.testing.assert_array_equal(evaluation_data.read_image(wide, run), images[0])
        np.testing.assert_array_equal(images[0], seen(wide, fit, side=16 if augment == "crop" else 14))
        moved, _ = evaluation_data.for_evaluation(run, dataset=None, data_dir=str(tmp_path), tta=None)
        assert (moved.config.fit, moved.config.image_size) == (fit, 14)


@pytest.mark.parametrize("flags", [{}, {"fit": "pad"}, {"augment": "crop"}])
def test_a_run_on_streamed_images_is_evaluated_on_images_in_memory(tmp_path, flags):
    splits = made_idx.write(tmp_path / "idx")
    config = ClassifyConfig(workdir="W", dataset="folder", data_dir="D", image_size=14, **flags)
    run = SavedRun(pathlib.Path(), "classification", config, INFO, 1, "test", {})
    moved, shape = evaluation_data.for_evaluation(run, dataset="mnist", data_dir=str(tmp_path / "idx"), tta=None)
    images, labels = classification.load_dataset(moved.config, shape=moved.info.image_shape).splits["test"]
    assert images.shape == (20, *moved.info.image_shape) and shape == INFO.image_shape
    np.testing.assert_array_equal(labels, splits["test"][1])


def test_combinations_without_effect_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--fit=pad is not supported by --augment=resized_crop"):
        validation.check_classify(ClassifyConfig(workdir="W", augment="resized_crop", fit="pad"))
    with pytest.raises(UsageError, match="--fit=squash is supported by --dataset=folder and tfds:NAME with images of"):
        classification.load_dataset(ClassifyConfig(workdir="W", fit="squash"))
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (6, 8)).save(tmp_path / "train" / name / "0.png")
    config = ClassifyConfig(workdir="W", dataset="folder", data_dir=str(tmp_path), fit="pad")
    with pytest.raises(UsageError, match=r"--fit=pad is supported by .* more than 64 pixels a side, or with --image_s"):
        classification.load_dataset(config)
    assert data.load("folder", str(tmp_path), image_size=4, fit="pad").splits["train"][0].view.fit == "pad"
