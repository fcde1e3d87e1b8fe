"""Tests of the warning for images unlike the training images, of predict --invert, and of the parts in which images
are predicted."""

import csv
import types

import numpy as np
import pytest
from PIL import Image

from data.dataset import pixel_statistics
from experiments import predict
from experiments.cli.config import SegmentConfig
from experiments.setup import image_statistics, prediction, stored_network
from experiments.setup.experiment import ClassificationInfo, DatasetInfo, SegmentationInfo
from experiments.setup.saved_run import SavedRun


@pytest.fixture(scope="module")
def digits(mnist5k):
    mean, std = pixel_statistics(mnist5k.splits["train"][0])
    return DatasetInfo((28, 28, 1), mean, std, mnist5k.class_names)


def test_no_test_digit_and_every_inverted_digit_is_reported(mnist5k, digits):
    images, _ = mnist5k.splits["test"]
    assert not any(image_statistics.warning(image, digits) for image in images)
    assert not any(image_statistics.warning(image, digits, inverted=True) for image in images)
    lines = [image_statistics.warning(255 - image, digits) for image in images]
    assert all(
        line is not None and "the prediction may be wrong (with --invert, the brightness would be" in line
        for line in lines
    )


def test_the_warning_states_the_brightness_and_what_would_help():
    info = DatasetInfo((8, 8, 3), (20.0, 30.0, 40.0), (40.0, 50.0, 60.0), ("a", "b"))
    assert image_statistics.deviation(105.0, info) == pytest.approx(1.5)
    assert image_statistics.warning(np.full((8, 8, 3), 105, np.uint8), info) is None
    facts = "the training images have 30 (standard deviation 50); the prediction may be wrong"
    for value, inverted, end in ((220, False, " (with --invert, the brightness would be 35)"), (106, False, "")):
        found = image_statistics.warning(np.full((8, 8, 3), value, np.uint8), info, inverted=inverted)
        assert found == f"mean brightness {value}, {facts}{end}"
    found = image_statistics.warning(np.full((8, 8, 3), 220, np.uint8), info, inverted=True)
    assert found == f"mean brightness 220, {facts} (without --invert, the brightness would be 35)"
    black = DatasetInfo((8, 8, 1), (0.0,), (0.0,), ("a", "b"))
    assert image_statistics.warning(np.ones((8, 8, 1), np.uint8), black) is not None


def parts_of(files, info, **flags):
    from experiments.cli.config import ClassifyConfig

    run = SavedRun(None, "classification", ClassifyConfig(workdir="W"), info, 1, "test", {})
    failed = []
    found = list(predict.read_parts(predict.PredictConfig(workdir="W", **flags), run, list(map(str, files)), failed))
    return found, failed


def test_predict_reads_parts_of_readable_images_and_reports_the_rest(tmp_path, mnist5k, digits, monkeypatch, capsys):
    monkeypatch.setattr(predict, "PART", 16)
    info = ClassificationInfo(*(getattr(digits, name) for name in ("image_shape", "mean", "std", "class_names")))
    images, files = mnist5k.splits["test"][0][:40], []
    for i, image in enumerate(images):
        files.append(tmp_path / f"{i:02}.png")
        Image.fromarray(255 - image[..., 0]).save(files[-1])
    files[7].write_bytes(b"broken")
    for count in (40, 20):  # In threads, and one after another.
        found, failed = parts_of(files[:count], info, invert=True)
        assert failed == [str(files[7])] and capsys.readouterr().err == f"error: {files[7]}: not a readable image\n"
        assert [len(part) for _, part in found] == ([16, 16, 7] if count == 40 else [16, 3])
        names = [name for names, _ in found for name in names]
        assert names == [str(file) for file in files[:count] if file != files[7]]
        np.testing.assert_array_equal(np.concatenate([part for _, part in found]), np.delete(images[:count], 7, 0))
    parts_of(files, info)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 22 and sum("with --invert, the" in line for line in lines) == 20
    assert lines[-1] == "warning: 19 more of the 40 images differ in brightness from the training images"


@pytest.mark.parametrize("limits", [{"PART": 2}, {"BYTES": 2 * 4 * 6 * 3}])
def test_masks_are_written_part_by_part(tmp_path, monkeypatch, capsys, limits):
    """A folder of photos does not fit in memory. Names are unique over all parts."""
    for name, value in limits.items():
        monkeypatch.setattr(predict, name, value)
    places, counts, files = ("a/0.png", "b/0.png", "c/0_2.png", "c/0.png", "c/1.png"), [], []
    for i, place in enumerate(places):
        files.append(str(tmp_path / place))
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (i, i, i)).save(files[-1])

    def masks(task, state, images):
        counts.append(len(images))
        return images[..., 0]  # The class of each pixel is the number of its image.

    monkeypatch.setattr(prediction, "masks", masks)
    monkeypatch.setattr(stored_network, "experiment_from_run", lambda run: types.SimpleNamespace(task=None))
    monkeypatch.setattr(stored_network, "restore", lambda *arguments: None)
    info = SegmentationInfo((4, 6, 3), (2.0,) * 3, (9.0,) * 3, tuple("abcde"), (1.0,) * 5)
    run = SavedRun(tmp_path / "w", "segmentation", SegmentConfig(workdir="W"), info, 1, "test", {})
    config = predict.PredictConfig(workdir="W")
    predict.write_masks(config, run, predict.read_parts(config, run, files, []))
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert counts == [2, 2, 1] and [row["file"] for row in rows] == files
    assert len({row["mask"] for row in rows} | {row["overlay"] for row in rows}) == 10
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(np.asarray(Image.open(row["mask"])), np.full((4, 6), i))
    assert (tmp_path / "w" / "predictions" / "legend.png").exists()
