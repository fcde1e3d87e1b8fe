"""Tests of images decoded on demand: views, order, evaluation, corrupt files, a killed run."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from commands import SignalAt
from PIL import Image

import data
from data import batches, folder, image_files, stream
from data.dataset import DataError, binary_task, digests
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.setup import classification, evaluation_data, preprocessing
from experiments.setup.experiment import ClassificationInfo, eval_split
from experiments.setup.saved_run import SavedRun

SIZES = [(90, 70), (70, 90), (65, 200), (200, 65), (128, 128), (71, 66)]


def color(i):
    return (50 + 8 * i, 205 - 8 * i, 60 + 7 * i)


def image_of(i):
    """A gradient around color(i): crops differ, but the mean of the center crop does not."""
    width, height = SIZES[i % len(SIZES)]
    ramp = np.linspace(-40, 40, width)[None, :, None] + np.array(color(i))
    return Image.fromarray(np.repeat(ramp.round().astype(np.uint8), height, 0))


def shows(image, i):
    return np.abs(image.mean((0, 1)) - color(i)).max() < 3


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory):
    """20 images (14 train, 6 test) of six sizes and several modes, each around a different color."""
    root, number = tmp_path_factory.mktemp("data") / "images", 0
    for split, count in (("test", 3), ("train", 7)):
        for name in ("bird", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = image_of(number)
                path = root / split / name / f"{i}.png"
                if i == 1:
                    image = image.quantize(64)
                elif i == 2:
                    image = image.convert("CMYK")
                    path = path.with_suffix(".jpg")
                image.save(path)
                number += 1
    return root


def load(root, **values):
    return folder.load(str(root), view=stream.view(32, values.pop("augment", "none")), always=True, **values)


def take(found, *, seed=0, start=0, count=6, batch_size=5, split="train"):
    made = batches.train_batches(*found.splits[split], batch_size=batch_size, seed=seed, start=start)
    return [next(made) for _ in range(count)]


def equal(one, other):
    return all(np.array_equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in ("image", "label"))


def test_large_images_become_a_lazy_array(image_dir, monkeypatch):
    monkeypatch.setattr(folder, "hashlib", None)  # There is no digest of all files, which may be millions.
    found = data.load("folder", str(image_dir))
    images, labels = found.splits["test"]
    assert images.shape == (6, 224, 224, 3) and len(images) == 6 and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    found = load(image_dir)
    images = found.splits["test"][0]
    assert images.shape == (6, 32, 32, 3) and images[:4].shape == (4, 32, 32, 3) and images[:0].shape[0] == 0
    for i in range(6):  # Including palette and CMYK images.
        assert images[i].dtype == np.uint8 and shows(images[i], i)
    np.testing.assert_array_equal(images[np.array([4, 1])], np.stack([images[4], images[1]]))


def test_exif_rotation_and_gray_images(tmp_path):
    gray = np.zeros((100, 80), np.uint8)
    gray[:50] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees clockwise, which moves the upper half to the right.
    (tmp_path / "d" / "train" / "a").mkdir(parents=True)
    Image.fromarray(gray).save(tmp_path / "d" / "train" / "a" / "a.png", exif=exif)
    found = load(tmp_path / "d").splits["train"][0][0]
    assert found.shape == (32, 32, 3) and found[:, 18:].min() > 190 and found[:, :14].max() < 10


def test_random_crops_lie_inside_and_follow_their_area_and_aspect_ranges():
    random = np.random.default_rng(0)
    shares, aspects = [], []
    for _ in range(400):
        left, top, right, bottom = stream.random_box(300, 400, random=random)
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        shares.append((right - left) * (bottom - top) / 120_000)
        aspects.append((right - left) / (bottom - top))
    assert 0.075 < min(shares) < 0.12 and 0.9 < max(shares) <= 1 and 0.38 < np.mean(shares) < 0.49  # Few large ones fit
    assert 0.74 < min(aspects) < 0.78 and 1.28 < max(aspects) < 1.35 and abs(np.log(aspects).mean()) < 0.04
    for height, width in ((1, 1000), (1000, 1), (1, 1), (2, 9)):
        left, top, right, bottom = stream.random_box(height, width, random=random)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert stream.random_box(10, 1000, random=random)[2] - stream.random_box(10, 1000, random=random)[0] == 13


@pytest.mark.parametrize("augment", ["none", "crop", "resized_crop"])
def test_a_batch_depends_only_on_seed_and_step(image_dir, augment):
    found = load(image_dir, augment=augment)
    whole = take(found)
    assert whole[0]["image"].shape == (5, *found.splits["train"][0].shape[1:]) and whole[0]["image"].dtype == np.uint8
    assert equal(whole, take(found)) and equal(whole[4:], take(found, start=4, count=2))
    assert not equal(whole, take(found, seed=1))
    labels = found.splits["train"][1]
    for step, batch in enumerate(whole):  # The same order as in memory; the second epoch begins within step 2.
        np.testing.assert_array_equal(batch["label"], labels[batches.rows(0, step, batch_size=5, examples=14)])


def test_crops_differ_between_the_epochs(tmp_path):
    (tmp_path / "d" / "train" / "a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "d" / "train" / "a" / "a.png")
    crops = [batch["image"] for batch in take(load(tmp_path / "d", augment="resized_crop"), batch_size=1)]
    assert len({crop.tobytes() for crop in crops}) == 6
    assert len({batch["image"].tobytes() for batch in take(load(tmp_path / "d"), batch_size=1)}) == 1


@pytest.mark.parametrize("batch_size", [1, 4, 6, 8])
def test_evaluation_reads_every_image_once(image_dir, batch_size):
    images, labels = load(image_dir, augment="resized_crop").splits["test"]
    parts = list(batches.eval_batches(images, labels, batch_size=batch_size))
    assert all(part["image"].shape == (batch_size, 32, 32, 3) for part in parts)
    seen = np.concatenate([part["image"][part["mask"] == 1] for part in parts])
    assert len(seen) == 6 and all(shows(image, i) for i, image in enumerate(seen))
    np.testing.assert_array_equal(np.concatenate([part["label"][part["mask"] == 1] for part in parts]), labels)


def test_corrupt_images_raise_or_are_skipped(image_dir, tmp_path, capsys):
    root = tmp_path / "d"
    shutil.copytree(image_dir, root)
    for split in ("train", "test"):
        bad = root / split / "bird" / "0.png"
        bad.write_bytes(bad.read_bytes()[:60])
    found = load(root)
    with pytest.raises(DataError, match=r"train/bird/0\.png: .*; --skip_corrupt skips"):
        take(found, count=20)
    with pytest.raises(DataError, match=r"test/bird/0\.png: "):
        list(batches.eval_batches(*found.splits["test"], batch_size=4))
    found = load(root, skip_corrupt=True)
    error = capsys.readouterr().err
    assert "train: 1 of 14 images skipped" in error and "test/bird/0.png" in error
    images, labels = found.splits["test"]
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1])
    parts = list(batches.eval_batches(images, labels, batch_size=4))
    assert sum(part["mask"].sum() for part in parts) == 5
    assert shows(parts[0]["image"][0], 1)
    assert equal(take(found, start=2, count=4), take(found)[2:])
    load(root, skip_corrupt=True)  # Cached next to the folder, so no image is checked again.
    error = capsys.readouterr().err
    assert "test: 1 of 6 images skipped" in error and "0.png" not in error
    shutil.copy(image_dir / "test" / "bird" / "0.png", root / "test" / "bird" / "0.png")
    assert len(load(root, skip_corrupt=True).splits["test"][1]) == 6
    for path in (root / "test").rglob("*.*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no image of the split test can be read"):
        load(root, skip_corrupt=True)


def test_small_images_of_several_sizes_need_image_size(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "d" / "train" / name).mkdir(parents=True)
    for i, size in enumerate(((20, 20), (30, 20))):
        Image.new("RGB", size).save(tmp_path / "d" / "train" / "a" / f"{i}.png")
    with pytest.raises(DataError, match=r"1\.png is 20x30, expected 20x20 like the others; --image_size=N"):
        data.load("folder", str(tmp_path / "d"))
    assert data.load("folder", str(tmp_path / "d"), image_size=16).splits["train"][0].shape == (2, 16, 16, 3)
    Image.new("RGB", (20, 65)).save(tmp_path / "d" / "train" / "a" / "2.png")  # One large image: all are streamed.
    assert data.load("folder", str(tmp_path / "d")).splits["train"][0].shape == (3, 224, 224, 3)


def test_pixel_statistics_of_a_sample_of_center_crops(image_dir, monkeypatch):
    images = load(image_dir).splits["train"][0]
    whole = images[:].reshape(-1, 3).astype(np.float64)
    mean, std = images.pixel_statistics()
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, np.maximum(whole.std(0), 1e-3), rtol=1e-9)
    monkeypatch.setattr(stream, "SAMPLE", 4)
    assert images.pixel_statistics() == images.pixel_statistics() != (mean, std)
    assert preprocessing.sample_for_report(images, np.arange(14))[0].shape == (4, 32, 32, 3)


def test_a_binary_task_decodes_nothing(image_dir, monkeypatch):
    monkeypatch.setattr(folder, "read_image", None)
    found = binary_task(load(image_dir), "cat")
    images, labels = found.splits["test"]
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    kept = images.keep(labels == 1)
    monkeypatch.undo()
    assert len(kept) == 3 and shows(kept[0], 3)


def test_crops_and_flips_on_the_device(image_dir):
    config = ClassifyConfig(dataset="folder", data_dir=str(image_dir), image_size=32)
    for kind, side in (("crop", 37), ("resized_crop", 32)):
        augmented = dataclasses.replace(config, augment=kind)
        info = classification.dataset_info(config, classification.load_dataset(augmented))
        assert info.image_shape == (side, side, 3)
        train, evaluation, shape = preprocessing.make_prepare(augmented, info)
        ramp = np.broadcast_to(np.arange(side, dtype=np.uint8)[:, None], (16, side, side, 3))
        images = np.asarray(train(ramp, jax.random.split(jax.random.key(0), 16)))
        assert shape == (32, 32, 3) and images.shape == (16, *shape) and evaluation(ramp).shape == images.shape
        assert 0 < (np.diff(images[:, 0, :, 0])[:, 0] > 0).sum() < 16  # Some are flipped.
    ten_view = dataclasses.replace(config, augment="crop", tta="ten_view")
    ten = preprocessing.make_prepare(ten_view, dataclasses.replace(info, image_shape=(37, 37, 3)))[1]
    assert ten(np.zeros((2, 37, 37, 3), np.uint8)).shape == (10, 2, 32, 32, 3)


def run_of(image_shape, **flags):
    """A stored run of classify with only what reading image files needs."""
    info = ClassificationInfo(image_shape, (0.0,), (1.0,), ("a", "b"))
    return SavedRun(pathlib.Path(), "classification", ClassifyConfig(**flags), info, 1, "test", {})


def test_predict_preprocesses_files_as_in_evaluation(image_dir):
    file = str(image_dir / "test" / "bird" / "0.png")
    for kind in ("none", "crop"):
        seen = data.load("folder", str(image_dir), image_size=32, augment=kind).splits["test"][0][0]
        run = run_of(seen.shape, image_size=32, augment=kind)
        np.testing.assert_array_equal(evaluation_data.read_image(file, run), seen)
    whole = evaluation_data.read_image(file, run_of((20, 30, 3)))
    assert whole.shape == (20, 30, 3) and whole[:, 0].mean() < whole[:, -1].mean() - 60


def test_the_digest_depends_on_content_and_not_on_location(image_dir, tmp_path):
    def found(place):
        return digests(data.load("folder", str(place), image_size=32))

    shutil.copytree(image_dir, tmp_path / "copy")
    assert found(image_dir) == found(tmp_path / "copy")
    bird = tmp_path / "copy" / "train" / "bird"
    (bird / "0.png").rename(bird / "another.png")
    changed = found(tmp_path / "copy")
    assert changed["test"] == found(image_dir)["test"] and changed["train"] != found(image_dir)["train"]


def test_flags_that_do_not_match_the_data_are_refused(image_dir):
    for values, message in (
        ({"image_size": 32}, "--image_size=32 is supported by --dataset=folder and tfds:NAME, not by mnist5k"),
        (
            {"augment": "crop"},
            "--augment=crop is supported by --dataset=folder and tfds:NAME with images",
        ),
        ({"dataset": "tfds:../x"}, "--dataset=tfds:../x: must be tfds:NAME"),
    ):
        with pytest.raises((UsageError, data.ArgumentError), match=message):
            classification.load_dataset(ClassifyConfig(**values))
    found = load(image_dir)
    assert eval_split(found._replace(splits={"train": 0, "validation": 0})) == "validation"
    with pytest.raises(UsageError, match="has no split test, val or validation, only train"):
        eval_split(found._replace(splits={"train": 0}))


def test_reader_threads_match_the_cores_of_the_process(monkeypatch):
    import grain

    threads, plain = [], grain.ReadOptions

    def noted(**options):
        threads.append(options["num_threads"])
        return plain(**options)

    monkeypatch.setattr(grain, "ReadOptions", noted)
    monkeypatch.setattr(stream.os, "sched_getaffinity", lambda process: {2, 5, 7})
    assert list(image_files.each(lambda n: n, 3, title="t")) == [0, 1, 2]
    images = stream.Stream(
        lambda example, crop: np.zeros((2, 2, 3), np.uint8), np.arange(4), channels=3, view=stream.View(2)
    )
    assert len(next(images._run(lambda position: np.zeros(1), 0, 4, 2))) == 2 and threads == [3, 3]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_identically_and_is_evaluated_again(image_dir, tmp_path, start):
    options = ["--model=mlp", "--dataset=folder", f"--data_dir={image_dir}", "--image_size=32", "--batch_size=4"]
    options += ["--augment=resized_crop", "--learning_rate=0.01", "--steps=8"]
    options += ["--save_every=1", "--eval_every=4", "--log_every=1"]

    def run(*arguments):
        done = start(*arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    whole, _ = run("classify", f"--workdir={tmp_path / 'whole'}", *options)
    assert whole["examples"] == 6 and whole["step"] == 8
    workdir = tmp_path / "killed"
    third_row = SignalAt(signal.SIGKILL, "train.workdir:MetricsFile.append", 3)
    assert start("classify", f"--workdir={workdir}", *options, signal_at=third_row).returncode == -signal.SIGKILL
    again, error = run("classify", f"--workdir={workdir}", *options)
    assert "resuming from step" in error
    assert {k: whole[k] for k in ("fingerprint", "loss", "accuracy")} == {
        k: again[k] for k in ("fingerprint", "loss", "accuracy")
    }
    scored, _ = run("evaluate", f"--workdir={workdir}", "--batch_size=4")
    assert scored["accuracy"] == whole["accuracy"] and scored["loss"] == pytest.approx(whole["loss"], rel=1e-5)
