"""Tests of generate: resuming, evaluation, samples as files, bad input, and its FID classifier."""

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from results import result, same

from data import ArgumentError, DataError
from experiments.cli.app import UsageError
from experiments.cli.config import GenerateConfig
from experiments.reporting import generation_report
from experiments.setup import fid_classifier, generation
from experiments.setup.experiment import GenerationInfo
from train.signals import Interrupted

SHORT = ["--dataset=folder", "--batch_size=8", "--steps=4", "--save_every=1", "--eval_every=2", "--log_every=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Dark images of 30 pixels with a bright half, left or right."""
    place, random = tmp_path_factory.mktemp("data") / "sides", np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for side, name in enumerate(("left", "right")):
            (place / split / name).mkdir(parents=True)
            for i in range(count):
                image = random.integers(0, 60, (30, 30, 3), dtype=np.uint8)
                image[:, 15 * side : 15 * side + 15] += 150
                Image.fromarray(image).save(place / split / name / f"{i}.png")
    return place


@pytest.mark.slow
def test_a_run_of_generate(root, start, tmp_path):
    run = [*SHORT, f"--data_dir={root}", "--conditional"]
    workdir = tmp_path / "whole"
    done = start("generate", f"--workdir={workdir}", *run)
    assert "training the classifier" in done.stderr
    whole = result(done)
    assert (whole["split"], whole["examples"], whole["samples"]) == ("test", 10, 50)
    assert whole["loss"] == pytest.approx(whole["loss_discriminator"] + whole["loss_generator"])
    assert 0 <= whole["coverage_min"] <= 0.5 <= whole["coverage_max"] <= 1 and whole["floor"] < whole["ceiling"]
    for name in ("flags.txt", "run.json", "metrics.csv", "report.html", "figures/samples_over_time.png"):
        assert (workdir / name).exists()
    shown = sorted((workdir / "samples").iterdir())
    assert [path.name for path in shown] == ["step_0000002.png", "step_0000004.png"]
    with Image.open(shown[0]) as grid:  # Two classes in two columns, cropped like the images.
        assert grid.size == (2 * 30, 8 * 30)
    assert json.loads((workdir / "run.json").read_text())["classifier"]
    assert same(whole, result(start("evaluate", f"--workdir={workdir}")))

    # A run killed before its last step resumes bit-identically, with both optimizers, statistics and weight average.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "summary.json").unlink()
    (again / "samples" / "step_0000002.png").write_text("damaged")  # Only removes one row of the figure over time.
    (again / "samples" / "step_note.png").write_text("another's")
    done = start("generate", f"--workdir={again}", *run)
    assert "resuming from step 3" in done.stderr and "training the classifier" not in done.stderr
    assert same(whole, result(done))
    (again / "run.json").unlink()  # The checkpoints' run is now unknown.
    done = start("generate", f"--workdir={again}", *run, "--seed=1")
    assert (done.returncode, done.stdout) == (1, "") and "contains checkpoints without a run.json" in done.stderr

    made = [tmp_path / name for name in ("one", "two")]
    for out, seed in zip(made, (3, 4), strict=True):
        done = start("predict", f"--workdir={workdir}", "--samples=5", f"--seed={seed}", f"--out={out}")
        rows = list(csv.DictReader(done.stdout.splitlines()))
        assert [row["class"] for row in rows] == ["left", "right", "left", "right", "left"]
        assert [row["file"] for row in rows] == [str(out / f"sample_{i:05d}.png") for i in range(5)]
    images = [[np.asarray(Image.open(out / f"sample_{i:05d}.png")) for i in range(5)] for out in made]
    assert images[0][0].shape == (30, 30, 3) and (np.array(images[0]) != images[1]).any((1, 2, 3)).all()
    start("predict", f"--workdir={workdir}", "--samples=2", "--seed=3", f"--out={made[1]}")
    for i in range(2):  # The same seed gives the same images, regardless of their number.
        np.testing.assert_array_equal(images[0][i], np.asarray(Image.open(made[1] / f"sample_{i:05d}.png")))
    with Image.open(made[0] / "grid.png") as grid:
        assert grid.size == (60, 90)
    names = ["grid.png", "sample_00000.png", "sample_00001.png"]
    assert sorted(path.name for path in made[1].iterdir()) == names  # None of the previous call.

    for command, flags, message in (
        ("predict", ["--samples=0"], "--samples=0: must be between 1 and 100000"),
        ("predict", [], "--samples=N must be given"),
        ("predict", ["--samples=1", "--top=2"], "--top is supported only for runs of classify"),
        ("evaluate", ["--split=nosuch"], "--split=nosuch: folder has no such split, only test, train"),
        ("predict", ["--samples=1", "x.png"], "takes no image files; given: 'x.png'"),
        ("evaluate", ["--split=train"], "--split=train: samples are compared with images not used for training"),
    ):
        done = start(command, f"--workdir={workdir}", *flags)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_bad_input_is_a_one_line_error(root, start, tmp_path):
    for flags, status, message in (
        (["--image_size=28"], 2, "--image_size=28: must be 32 or 64"),
        (
            [*SHORT, f"--data_dir={root}", "--eval_split=val"],
            2,
            "--eval_split=val: folder has no such split, only test, train",
        ),
    ):
        done = start("generate", f"--workdir={tmp_path / 'w'}", *flags)
        assert done.returncode == status and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()
    for changed, message in (
        ({"dataset": "mnist5"}, "did you mean mnist5k?"),
        ({"eval_split": "train"}, "--eval_split=train: samples are compared with images not used for training"),
    ):
        with pytest.raises((UsageError, ArgumentError), match=re.escape(message)):
            generation.load_dataset(GenerateConfig(**changed))


def write_images(place, **counts):
    """Writes splits with the given numbers of images per class, for two classes."""
    for split, count in counts.items():
        for name in "ab":
            (place / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 20), (10 * i, 0, 0)).save(place / split / name / f"{i}.png")
    return place


def loaded(place, **changed):
    generation._load.cache_clear()
    return generation.load_dataset(GenerateConfig(dataset="folder", data_dir=str(place), **changed))


def test_images_of_several_sizes(tmp_path):
    place = write_images(tmp_path / "some", train=2, test=2)
    assert loaded(place).splits["train"][0].shape == (4, 32, 32, 3)
    Image.new("RGB", (40, 20), (0, 200, 0)).save(place / "train" / "a" / "wide.png")
    with pytest.raises(DataError, match="wide.png is 20x40, expected 20x20 like the others; --image_size=N crops"):
        loaded(place)
    images, labels = loaded(place, image_size=32).splits["train"]
    assert images.shape == (5, 32, 32, 3) and list(labels) == [0, 0, 0, 1, 1]
    assert (images[2] == (0, 200, 0)).all() and (images[1] == (10, 0, 0)).all()


def test_corrupt_images_can_be_skipped(tmp_path):
    place = write_images(tmp_path / "some", train=3, test=2)
    (place / "train" / "b" / "0.png").write_text("no image")
    with pytest.raises(DataError, match="--skip_corrupt skips such images"):
        loaded(place)
    assert len(loaded(place, skip_corrupt=True).splits["train"][1]) == 5


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match="folder has no split train, only test"):
        loaded(write_images(tmp_path / "untrained", test=2))
    place = write_images(tmp_path / "few", train=2, test=1)
    (place / "test" / "b" / "0.png").unlink()
    with pytest.raises(DataError, match="1 image in the split test; scores need 2 or more"):
        loaded(place)


def test_epochs_replace_the_default_steps(root, start, tmp_path):
    few = ["--dataset=folder", f"--data_dir={root}", "--batch_size=8", "--epochs=1e9"]
    done = start("generate", f"--workdir={tmp_path / 'w'}", *few)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and " steps: must be less than" in done.stderr


def test_images_are_resized_or_padded_to_the_networks_size():
    """Slightly smaller images are kept, and padded by the task; others are resized to the network's size."""
    random = np.random.default_rng(0)
    for shape, asked, expected in (
        ((28, 28, 1), None, (28, 28, 1)),
        ((28, 28, 1), 64, (64, 64, 1)),
        ((20, 30, 3), None, (32, 32, 3)),
        ((40, 33, 3), None, (64, 64, 3)),
        ((60, 64, 3), None, (60, 60, 3)),
        ((64, 64, 3), 32, (32, 32, 3)),
    ):
        images = random.integers(0, 256, (3, *shape), dtype=np.uint8)
        dataset = generation.Dataset("x", {"train": (images, np.zeros(3, np.int32))}, ("a", "b"))
        kept = generation._kept(dataset, asked).splits["train"][0]
        assert kept.shape == (3, *expected) and kept.dtype == np.uint8
        np.testing.assert_allclose(kept.mean(), images.mean(), atol=8)
    info = GenerationInfo((28, 28, 1), (0.0,), (1.0,), ("a", "b"), ("",))
    form = generation.form(GenerateConfig(authors=True), info, 32)
    images = random.integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    inside = np.asarray(form.to_network(images))
    assert inside.shape == (2, 32, 32, 1) and (inside[:, :2] == -1).all() and inside.max() <= 1
    np.testing.assert_array_equal(form.to_image(inside), images)
    z = np.asarray(form.latents(jax.random.split(jax.random.key(0), 50)))
    assert z.shape == (50, 100) and -1 <= z.min() < -0.9 and 0.9 < z.max() <= 1


def test_tiled_images():
    images = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 0, 0], [10, 11, 0, 0]]
    np.testing.assert_array_equal(generation_report.tiled(images, 2)[..., 0], expected)


@pytest.mark.slow
def test_the_fid_classifier_is_cached(tmp_path, monkeypatch, mnist5k):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fid_classifier, "EPOCHS", 1)
    images, labels = (part[::31] for part in mnist5k.splits["train"])
    trained = []
    monkeypatch.setattr(fid_classifier, "say", trained.append)
    first = fid_classifier.load(images, labels, 10)
    again = fid_classifier.load(images, labels, 10)
    assert len(trained) == 1 and first.fingerprint == again.fingerprint
    features, logits = jax.jit(again.features)(images[:4])
    assert features.shape == (4, 64) and logits.shape == (4, 10) and float(features.min()) >= 0
    other = fid_classifier.load(images, labels[::-1].copy(), 10)
    assert len(trained) == 2 and other.fingerprint != first.fingerprint
    for path in (tmp_path / "nutshell" / "classifiers").iterdir():  # A damaged file is recreated.
        path.write_bytes(path.read_bytes()[:-1000])
    assert fid_classifier.load(images, labels, 10).fingerprint == first.fingerprint and len(trained) == 3
    for path in (tmp_path / "nutshell" / "classifiers").iterdir():  # One flipped bit marks an entry as encrypted.
        content = bytearray(path.read_bytes())
        content[content.rfind(b"PK\x01\x02") + 8] ^= 1
        path.write_bytes(content)
    assert fid_classifier.load(images, labels, 10).fingerprint == first.fingerprint and len(trained) in (4, 5)

    class Stopped:
        number = 15

    with pytest.raises(Interrupted):
        fid_classifier.load(images[:100], labels[:100], 10, stop=Stopped())
