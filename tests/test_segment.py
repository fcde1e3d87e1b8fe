"""Tests of segment: evaluation, predicted masks, bad input, default data."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from commands import ROOT
from PIL import Image
from results import result, same

import models
from experiments.cli.app import UsageError
from experiments.cli.config import SegmentConfig
from experiments.setup import saved_run, segmentation, stored_network
from models import segnet
from train import checkpoint
from train.state import State

CAMVID = ["--dataset=camvid", "--image_size=16x20", "--crop=12x16", "--class_weights=computed", "--exact_batch_norm"]
SHORT = ["--batch_size=4", "--learning_rate=0.02", "--log_every=2", "--save_every=1"]

FOUND = sorted((ROOT / "experiments" / "recipes").glob("*.flags"))
RECIPES = [path for path in FOUND if "--dataset=camvid" in path.read_text()]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images whose upper part is sky and whose lower part is road."""
    place, random = tmp_path_factory.mktemp("data") / "camvid", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for folder in (split, f"{split}annot"):
            (place / folder).mkdir(parents=True)
        for i in range(count):
            label = np.where(np.arange(30)[:, None] < random.integers(5, 25, 44)[None], 0, 3).astype(np.uint8)
            label[:, :2] = 11
            pixels = np.where(label == 0, 200, 60)[..., None] + random.integers(-40, 40, (30, 44, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(place / split / f"{i}.png")
            Image.fromarray(label).save(place / f"{split}annot" / f"{i}.png")
        lines = [f"/S/{split}/{i}.png /S/{split}annot/{i}.png" for i in range(count)]
        (place / f"{split}.txt").write_text("\n".join(lines))
    return place


@pytest.mark.slow
def test_a_run_on_camvid(root, start, tmp_path):
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
    assert whole["mean_iou"] == pytest.approx(np.mean([value for value in whole["iou"].values() if value is not None]))
    assert whole["global_accuracy"] > 0.5 and 0 <= whole["boundary_f1"] <= 1
    for name in ("flags.txt", "run.json", "metrics.csv", "report.html", "figures/predictions.png"):
        assert (workdir / name).exists()
    assert same(whole, result(start("evaluate", f"--workdir={workdir}")))
    with pytest.raises(UsageError, match="--dataset=digit_scenes: must be the run's own, camvid"):
        segmentation.for_evaluation(saved_run.read(str(workdir)), dataset="digit_scenes", data_dir=None)

    # A run killed before its last step resumes bit-identically, including precise batch statistics.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "12")
    (again / "summary.json").unlink()
    done = start("segment", f"--workdir={again}", *run)
    assert "resuming from step 11" in done.stderr
    assert same(whole, result(done))
    lines = list(csv.reader((workdir / "confusion.csv").read_text().splitlines()))
    assert sum(int(value) for row in lines[1:] for value in row[1:]) == 3 * 16 * 19, "void pixels must not count"

    # Labels that give different class weights count as different data.
    other = tmp_path / "other"
    shutil.copytree(root, other)
    for path in (other / "trainannot").iterdir():
        Image.fromarray(np.full((30, 44), 3, np.uint8)).save(path)
    done = start("segment", f"--workdir={again}", *run, f"--data_dir={other}")
    assert done.returncode == 1 and "created with different data: class_weights" in done.stderr

    shutil.copy(root / "val" / "1.png", tmp_path / "0_2.png")
    files = [str(root / "val" / "0.png"), str(tmp_path / "0_2.png")]
    done = start("predict", f"--workdir={workdir}", *files, str(root / "train" / "0.png"), "absent.png")
    assert done.returncode == 1 and "absent.png" in done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["file"] for row in rows] == [*files, str(root / "train" / "0.png")]
    assert len({row["mask"] for row in rows}) == 3 and (workdir / "predictions" / "legend.png").exists()
    with Image.open(rows[0]["mask"]) as mask, Image.open(rows[0]["overlay"]) as overlay:
        assert (mask.mode, mask.size, overlay.mode, overlay.size) == ("P", (44, 30), "RGB", (44, 30))
        assert np.asarray(mask).max() < 11
    done = start("predict", f"--workdir={workdir}", rows[0]["mask"])
    assert done.returncode == 2 and "is in the output folder" in done.stderr


def test_precise_bn_does_not_depend_on_the_number_of_devices(root):
    config = SegmentConfig(
        dataset="camvid",
        data_dir=str(root),
        image_size="16x20",
        model="segnet_basic",
        batch_size=4,
        class_weights="none",
    )
    info = segmentation.dataset_info(config, segmentation.load_dataset(config))
    train, evaluation = segmentation.preparations(config, info)

    def statistics(devices, sync_bn):
        now = dataclasses.replace(config, sync_bn=sync_bn)
        exact = segmentation.precise_bn(now, info, devices=devices, dtype=None, train=train, evaluation=evaluation)
        variables = jax.jit(segmentation.network(now, info).init)(jax.random.key(0), np.zeros((1, 16, 20, 3)))
        return exact(State(variables["params"], variables["batch_stats"], (), 0, None), lambda: False).batch_stats

    whole = statistics(1, True)
    jax.tree.map(np.testing.assert_array_equal, whole, statistics(2, True))
    apart = statistics(2, False)["encoder1_bn"]["var"]  # From each device's two images only.
    assert np.abs(apart - whole["encoder1_bn"]["var"]).max() > 1e-6


@pytest.mark.parametrize("encoder", ["vgg16", "vgg16_bn"])
def test_an_encoder_starts_from_vgg(encoder, monkeypatch, tmp_path):
    widths = (2, 2, 3, 3, 4)
    monkeypatch.setattr(segnet, "WIDTHS", widths)

    def state(module, size, value):
        shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
        variables = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)
        return State(variables["params"], variables.get("batch_stats", {}), (), np.int32(0), None)

    theirs = state(models.create(encoder, 5, units=3, widths=widths), 32, 1.0)
    checkpoints = checkpoint.Checkpoints(tmp_path, report=print)
    checkpoints.save(0, theirs, record={})
    checkpoints.wait()
    run = {
        "task": "classification",
        "steps": 0,
        "flags": {"model": encoder},
        "class_names": "abcde",
        "image_shape": [32, 32, 3],
        "mean": [0],
        "std": [1],
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    ours = state(models.create("segnet", 3), 8, 0.0)
    found = stored_network.init_from(SegmentConfig(model="segnet", init_from=str(tmp_path)), ours)
    for part in ("params", "batch_stats"):
        for layer, leaves in getattr(found, part).items():
            source = theirs if layer.startswith("conv") or (encoder == "vgg16_bn" and layer.startswith("bn")) else ours
            jax.tree.map(np.testing.assert_array_equal, leaves, getattr(source, part)[layer])
    with pytest.raises(UsageError, match=f"has --model={encoder}, this run --model=segnet_basic"):
        stored_network.init_from(SegmentConfig(model="segnet_basic", init_from=str(tmp_path)), ours)


TRACE = """
import sys, jax, numpy
from absl import flags
from experiments.cli import options
from experiments.cli.config import SegmentConfig
from experiments.setup import segmentation
from train.state import parameter_count
options.define(SegmentConfig)
small = ["--dry_run", "--dry_run_data", "--image_size=36x47", "--workdir=W"]
flags.FLAGS(["segment", f"--flagfile={sys.argv[1]}", *small])
config = options.from_flags(SegmentConfig)
dataset = segmentation.load_dataset(config)
info = segmentation.dataset_info(config, dataset)
setup = segmentation.create_experiment(config, info, devices=1, steps=config.steps)
state = jax.eval_shape(setup.task.init, jax.random.key(0))
images, labels = (part[: config.batch_size] for part in dataset.splits["train"])
sums = jax.eval_shape(setup.task.train_step, state, {"image": images, "label": labels})[1]
exact, split = setup.task.prepare_eval is not None, config.eval_split
assert sums["loss"].shape == () and (exact, split) == ((False, None) if "small" in config.model else (True, "val"))
print(config.model, parameter_count(state.params), float(setup.learning_rate(0)), float(setup.learning_rate(9999)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path, start):
    """In a separate process, because segment and classify define flags of the same names."""
    done = start(TRACE, path)
    assert done.returncode == 0, done.stderr
    model, parameters, *rates = done.stdout.split()
    known = {"segnet_basic": (1_416_587, 0.1, 0.1), "segnet": (29_449_355, 0.001, 0.001)}
    known["segnet_small"] = (326_219, 0.02 / 500, 0.0)  # For color images.
    assert (int(parameters), *map(float, rates)) == pytest.approx(known[model], rel=1e-4)


def test_bad_input_is_a_one_line_error(root, start, tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    for flags, status, message in (
        (["--dataset=camvid"], 1, "--dataset=camvid requires --data_dir"),
        (["--image_size=16x20"], 2, "--image_size=16x20 is not supported by --dataset=digit_scenes"),
        (["--noflip"], 2, "--noflip is not supported by --dataset=digit_scenes"),
        (
            ["--eval_split=train"],
            2,
            "--eval_split=train: digit_scenes generates new training scenes in each step; must be test, or val",
        ),
        (
            ["--dataset=camvid", f"--data_dir={root}", "--eval_split=dev"],
            2,
            "--eval_split=dev: camvid has no such split, only train, val",
        ),
        (
            ["--dataset=camvid", f"--data_dir={root}", "--image_size=16"],
            2,
            "must be HEIGHTxWIDTH, such as 180x240, up to 99999",
        ),
        (["--dataset=camvid", f"--data_dir={root}", "--crop=31x10"], 2, "must be at most 30x44"),
    ):
        done = start("segment", workdir, "--batch_size=2", *flags)
        assert done.returncode == status and message in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()
    done = start("classify", workdir, "--model=segnet")
    assert done.returncode == 2 and "--model=segnet is a model for segmentation, not classification" in done.stderr


@pytest.mark.slow
def test_the_default_data_and_network():
    config = SegmentConfig(optimizer="sgd", schedule="constant", learning_rate=0.1, batch_size=8)
    dataset = segmentation.load_dataset(config)
    info = segmentation.dataset_info(config, dataset)
    assert info.image_shape == (64, 64, 1) and info.class_weights == (0.3, *[1.0] * 10)
    computed = segmentation.dataset_info(dataclasses.replace(config, class_weights="computed"), dataset).class_weights
    assert computed[0] < 0.2 < min(computed[1:])
    setup = segmentation.create_experiment(config, info, devices=1, steps=3)
    state, step = jax.jit(setup.task.init)(jax.random.key(0)), jax.jit(setup.task.train_step)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 325_419
    images, labels = dataset.splits["train"]
    # Scenes do not depend on the digits of the batch: the step's random key draws them.
    one, two = ({"image": images[i : i + 8], "label": labels[i : i + 8]} for i in (0, 8))
    after, sums = step(state, one)
    assert sums["pixels"] == 8 * 64 * 64 and sums == step(state, two)[1]
    assert float(step(after, one)[1]["loss"]) != float(sums["loss"])
