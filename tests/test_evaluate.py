"""Tests of evaluating a run on other images, and of restarting a run on other data."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image


def make(folder, *, size, splits=("train", "test"), seed=0):
    random = np.random.default_rng(seed)
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 128, (*size, 3)) + np.array([0, 100 * label, 0])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")


@pytest.mark.slow
def test_evaluation_on_images_of_another_size_agrees_with_predict(start, tmp_path):
    make(tmp_path / "d", size=(10, 8))
    options = ["--model=mlp", "--hidden=8", "--dataset=folder", "--steps=4", "--batch_size=4", "--augment=flip_shift"]
    options += ["--shift=1", "--alternate_flip"]
    workdir = f"--workdir={tmp_path / 'w'}"
    done = start("classify", workdir, f"--data_dir={tmp_path / 'd'}", *options)
    assert done.returncode == 0, done.stderr

    make(tmp_path / "e", size=(70, 90), splits=("val",), seed=1)
    (tmp_path / "e" / "val" / "dog" / "a\nbad.png").write_bytes(b"no image")
    os.symlink("nothing", tmp_path / "e" / "val" / "dog" / "lost.png")
    there = f"--data_dir={tmp_path / 'e'}"
    done = start("evaluate", workdir, there)
    assert done.returncode == 1 and r"a\nbad.png" in done.stderr and "--skip_corrupt" in done.stderr
    done = start("evaluate", workdir, there, "--skip_corrupt")
    assert done.returncode == 0 and "2 of 14 images skipped" in done.stderr, done.stderr
    scores = json.loads(done.stdout.splitlines()[-1])
    assert (scores["examples"], scores["split"]) == (12, "val")

    files = [str(tmp_path / "e" / "val" / name / f"{i}.png") for name in ("cat", "dog") for i in range(6)]
    rows = list(csv.DictReader(start("predict", workdir, *files).stdout.splitlines()))
    counts = [
        [sum(f"/{a}/" in row["file"] and row["label"] == b for row in rows) for b in ("cat", "dog")]
        for a in ("cat", "dog")
    ]
    assert (tmp_path / "w" / "confusion.csv").read_text() == "true \\ predicted,cat,dog\n" + "".join(
        f"{name},{a},{b}\n" for name, (a, b) in zip(("cat", "dog"), counts, strict=True)
    )
    assert scores["accuracy"] == (counts[0][0] + counts[1][1]) / 12

    first = tmp_path / "d" / "train" / "cat" / "0.png"
    kept = first.read_bytes()
    Image.new("RGB", (8, 10)).save(first)  # The same number and size of images, but different pixels.
    done = start("classify", workdir, f"--data_dir={tmp_path / 'd'}", *options)
    assert done.returncode == 1 and "was created with different data: mean [" in done.stderr
    first.write_bytes(kept)
    (tmp_path / "d" / "train" / "dog").rename(tmp_path / "d" / "train" / "wolf")
    (tmp_path / "d" / "test" / "dog").rename(tmp_path / "d" / "test" / "wolf")
    done = start("evaluate", workdir)
    assert done.returncode == 2 and "['cat', 'dog'] in the run, ['cat', 'wolf'] in the data set" in done.stderr
    done = start("classify", workdir, f"--data_dir={tmp_path / 'd'}", *options)
    assert done.returncode == 1 and "class_names ['cat', 'dog'] (stored), ['cat', 'wolf'] (given)" in done.stderr
    shutil.rmtree(tmp_path / "d" / "train" / "wolf")
    shutil.rmtree(tmp_path / "d" / "test" / "wolf")
    done = start("classify", f"--workdir={tmp_path / 'v'}", f"--data_dir={tmp_path / 'd'}", *options)
    assert done.returncode == 1 and done.stderr == "error: folder has only one class, cat; at least two are required\n"
    assert not (tmp_path / "v").exists()
