"""segment as a user starts it: scored again, killed and gone on with, masks written, bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

CAMVID = ["--dataset=camvid", "--image_size=16x20", "--crop=12x16", "--class_weights=computed", "--exact_batch_norm"]
SHORT = ["--batch_size=4", "--learning_rate=0.05", "--log_every=2", "--save_every=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures whose upper part is sky, whose lower part is road."""
    place, random = tmp_path_factory.mktemp("data") / "camvid", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for folder in (split, f"{split}annot"):
            (place / folder).mkdir(parents=True)
        for i in range(count):
            label = np.where(np.arange(30)[:, None] < random.integers(5, 25, 44)[None], 0, 3).astype(np.uint8)
            label[:, :2] = 11
            picture = np.where(label == 0, 200, 60)[..., None] + random.integers(-40, 40, (30, 44, 3))
            Image.fromarray(picture.astype(np.uint8)).save(place / split / f"{i}.png")
            Image.fromarray(label).save(place / f"{split}annot" / f"{i}.png")
        lines = [f"/S/{split}/{i}.png /S/{split}annot/{i}.png" for i in range(count)]
        (place / f"{split}.txt").write_text("\n".join(lines))
    return place


def result(done):
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same(one, other):
    names = one.keys() - {"seconds", "compile_seconds", "images_per_second", "workdir"}
    assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_a_run_on_camvid(root, start, environment, tmp_path):
    run = [*CAMVID, *SHORT, f"--data_dir={root}", "--steps=12"]
    workdir = tmp_path / "whole"
    whole = result(start("segment", f"--workdir={workdir}", *run))
    assert (whole["split"], whole["examples"], whole["step"]) == ("val", 3, 12)
    assert set(whole["iou"]) == {
        *(
            "Sky",
            "Building",
            "Pole",
            "Road",
            "Pavement",
            "Tree",
            "SignSymbol",
            "Fence",
            "Car",
            "Pedestrian",
            "Bicyclist",
        )
    }
    assert whole["mean_iou"] == pytest.approx(np.mean(list(whole["iou"].values())))
    assert whole["global_accuracy"] > 0.5 and 0 <= whole["boundary_f1"] <= 1
    for name in ("flags.txt", "run.json", "metrics.csv", "report.html", "figures/predictions.png"):
        assert (workdir / name).exists()
    same(whole, result(start("evaluate", f"--workdir={workdir}")))
    lines = list(csv.reader((workdir / "confusion.csv").read_text().splitlines()))
    assert sum(int(value) for row in lines[1:] for value in row[1:]) == 3 * 16 * 19, "void pixels do not count"

    parts = tmp_path / "parts"
    command = [sys.executable, "-m", "experiments.segment", f"--workdir={parts}", *run]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not list((parts / "checkpoints").glob("[3-9]")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    same(whole, result(start("segment", f"--workdir={parts}", *run)))

    files = [str(root / "val" / f"{i}.png") for i in range(2)]
    done = start("predict", f"--workdir={workdir}", *files, str(root / "train" / "0.png"), "absent.png")
    assert done.returncode == 1 and "absent.png" in done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["file"] for row in rows] == [*files, str(root / "train" / "0.png")]
    assert len({row["mask"] for row in rows}) == 3 and (workdir / "predictions" / "legend.png").exists()
    with Image.open(rows[0]["mask"]) as mask, Image.open(rows[0]["overlay"]) as overlay:
        assert (mask.mode, mask.size, overlay.mode, overlay.size) == ("P", (44, 30), "RGB", (44, 30))
        assert np.asarray(mask).max() < 11


def test_scenes_of_digits_on_two_devices(start, tmp_path):
    run = [*SHORT, "--steps=2", "--batch_size=8", "--eval_every=100"]
    found = result(start("segment", f"--workdir={tmp_path / 'w'}", "--devices=2", *run))
    assert found["examples"] == 500 and found["parameters"] == 195_435 and "background" in found["iou"]


def test_bad_input_is_one_line(root, start, tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    for flags, status, message in (
        (["--dataset=camvid"], 1, "--dataset=camvid needs --data_dir"),
        (["--image_size=16x20"], 2, "--image_size=16x20 is not for --dataset=digit_scenes"),
        (["--dataset=camvid", f"--data_dir={root}", "--image_size=16"], 2, "accepted is HEIGHTxWIDTH"),
        (["--dataset=camvid", f"--data_dir={root}", "--crop=31x10"], 2, "accepted are up to 30x44"),
        (["--class_weights=published"], 2, "is for --dataset=camvid"),
        (["--model=segnet_large"], 2, "segnet_large"),
    ):
        done = start("segment", workdir, "--batch_size=2", *flags)
        assert done.returncode == status and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()
    done = start("classify", workdir, "--model=segnet")
    assert done.returncode == 2 and "--model=segnet is for experiments.segment" in done.stderr
