"""Tests of reconstruct: invalid flags and images, devices, partial batches, a killed run, its report, its recipes."""

import csv
import functools
import json
import re
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from commands import ROOT
from PIL import Image
from results import result, same

import data
from data.dataset import Dataset
from experiments import load_run
from experiments.cli import options, validation
from experiments.cli.config import ReconstructConfig
from experiments.lecture import __main__ as lecture
from experiments.lecture.zoo import autoencoders, variational
from experiments.reporting import figures_rows
from experiments.setup import reconstruction, training
from train import loop
from train.parallel import data_parallel
from train.state import State
from train.tasks import reconstruction as task

MODELS = ("autoencoder", "denoising", "sparse", "variational")
SHORT = ["--batch_size=8", "--steps=4", "--save_every=1", "--eval_every=2", "--log_every=1", "--code=3"]


def write_images(root, **splits):
    """Writes color images of two classes, given (images per class, size) for each split, and returns their folder."""
    random = np.random.default_rng(0)
    for split, (count, size) in splits.items():
        for name in "ab":
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root


@functools.cache
def small():
    """12 training and 5 test color images of 5x6 pixels."""
    images, labels = np.random.default_rng(1).integers(0, 256, (17, 5, 6, 3), dtype=np.uint8), np.zeros(17, np.int32)
    return Dataset("small", {"train": (images[:12], labels[:12]), "test": (images[12:], labels[12:])}, ("a", "b"))


def small_run(model, devices):
    hidden = {"hidden": (4,)} if model in ("autoencoder", "variational") else {}
    config = ReconstructConfig(workdir="W", model=model, batch_size=4, steps=2, code=3, **hidden)
    info = reconstruction.dataset_info(small())
    return config, reconstruction.create_experiment(config, info, devices=devices, steps=2)


@functools.cache
def trained(model, devices):
    """(the experiment, its parameters after two steps, their test scores)."""
    config, experiment = small_run(model, devices)
    own, steps = experiment.task._replace(min_eval_batch_size=1), data_parallel.DeviceSteps(experiment.task, devices)
    batches = training.batches_of(config, small(), "test", own, device_count=devices)
    assert [int(batch["mask"].sum()) for batch in batches.eval.batches()] == [4, 1]

    state, rows = training.initialize(experiment, config, small(), device_count=devices), batches.train_batches(0)
    for step in range(2):
        state, _ = steps.train(step)(state, next(rows))
    scores = own.compute_metrics(loop.evaluate(state, steps.evaluate, data=batches.eval))
    return experiment, jax.device_get(state.params), scores


FAST = [pytest.param(model, marks=[] if model == "denoising" else pytest.mark.slow) for model in MODELS]


@pytest.mark.parametrize("model", FAST)
def test_two_devices_equal_one(model):
    """The noise of an example depends on its row in the global batch."""
    (_, one, scores), (_, two, others) = trained(model, 1), trained(model, 2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), one, two)
    assert scores == pytest.approx(others, rel=1e-5)


@pytest.mark.parametrize("model", FAST)
def test_a_partial_batch_is_evaluated_exactly(model):
    experiment, params, scores = trained(model, 1)
    images, _ = small().splits["test"]
    batch = {"image": images, "row": np.arange(5), "mask": np.ones(5, np.float32)}
    whole = jax.jit(experiment.task.eval_step)(State(params, {}, {}, 0, None), batch)
    assert scores == pytest.approx(experiment.task.compute_metrics(whole), rel=1e-5)
    assert set(scores) == set(experiment.task.metrics) and experiment.task.best == ("loss", "min")


def test_an_image_without_error_does_not_dominate_the_mean():
    """Before its first step, a sparse autoencoder reconstructs black images, such as a batch's padding, exactly."""
    _, experiment = small_run("sparse", 1)
    batch = {"image": np.zeros((2, 5, 6, 3), np.uint8), "row": np.arange(2), "mask": np.array([1, 0], np.float32)}
    sums = jax.jit(lambda key: experiment.task.eval_step(experiment.task.init(key), batch))(jax.random.key(0))
    assert experiment.task.compute_metrics(sums) == {"loss": 0, "squared_error": 0, "psnr": task.MOST_PSNR, "active": 0}
    assert task.psnr(np.array([0.0, 1e-4])).tolist() == pytest.approx([task.MOST_PSNR, 40.0])
    assert np.isnan(task.psnr(np.array([np.nan])))


def test_a_masked_pixel_has_no_channel_left():
    keys = jax.random.split(jax.random.key(0), 2)
    found = np.asarray(task.masked(np.full((2, 20, 30, 3), 9, np.uint8), keys, rate=0.25))
    dark = (found == 0).all(-1)
    assert (dark == (found == 0).any(-1)).all() and abs(dark.mean() - 0.25) < 0.04


def parsed(*arguments):
    flag_values = flags.FlagValues()
    options.define(ReconstructConfig, flag_values)
    flag_values(["reconstruct", *arguments])
    return options.from_flags(ReconstructConfig, flag_values)


@pytest.mark.parametrize(
    "flag, accepted",
    {
        "--code=0": "--code=0: must be between 1 and 1000000",
        "--hidden=0": "--hidden=0: must be between 1 and 1000000",
        "--noise=1": "--noise=1.0: must be greater than 0 and less than 1",
        "--penalty=-1": "--penalty=-1.0: must be 0 or more",
        "--model=mlp": "value should be one of <autoencoder|denoising|sparse|variational>",
    }.items(),
)
def test_a_value_out_of_bounds_is_refused(flag, accepted):
    with pytest.raises(flags.IllegalFlagValueError) as caught:
        parsed("--workdir=W", flag)
    assert accepted in str(caught.value)


def test_unsupported_images_are_a_one_line_error(tmp_path, start):
    for name, splits, message in (
        ("sizes", {"train": (2, (5, 7)), "test": (1, (6, 7))}, "the image sizes differ between splits"),
        ("large", {"train": (1, (65, 7)), "test": (1, (65, 7))}, "--dataset=folder has larger images"),
    ):
        config = ReconstructConfig(dataset="folder", data_dir=str(write_images(tmp_path / name, **splits)))
        with pytest.raises(data.DataError, match=re.escape(message)) as caught:
            reconstruction.load_dataset(config)
        assert "images of one size, of up to 64 pixels a side" in str(caught.value) and "--image" not in str(
            caught.value
        )


def test_the_cards_of_the_zoo_name_the_command():
    cards = (*autoencoders.CARDS, *variational.CARDS)
    for card in cards:
        *start, command, model, workdir = shlex.split(card.command)
        config = parsed(model, workdir)
        validation.check_reconstruct(config)
        assert (start, command, config.model) == (["python", "-m"], "experiments.reconstruct", card.name)
    assert {card.name for card in cards} == set(MODELS)


@pytest.mark.parametrize("name", ["autoencoder", "variational"])
def test_recipe(name):
    config = parsed(f"--flagfile={ROOT / 'experiments' / 'recipes' / name}.flags", "--workdir=W")
    validation.check_reconstruct(config)
    info = reconstruction.dataset_info(small())
    experiment = reconstruction.create_experiment(config, info, devices=1, steps=config.steps)
    assert experiment.task.metrics[0] == "loss" and config.dataset == "mnist5k" and config.model == name


def test_rows_of_colour_images_keep_their_shape():
    images = np.zeros((3, 5, 10, 3), np.uint8)
    figure = figures_rows.image_rows("T", [figures_rows.Row("a", images), figures_rows.Row("b", images[:1])], columns=2)
    (axes,) = figure.axes
    boxes = [image.get_extent() for image in axes.images]
    assert len(boxes) == 4 and {text.get_text() for text in axes.texts} == {"T", "a", "b"}
    for left, right, lower, upper in boxes:
        assert (right - left) == pytest.approx(2 * (lower - upper))
    assert boxes[1][0] > boxes[0][1] and boxes[2][3] > boxes[0][2]


# --- Started as a user does


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_run(model, start, tmp_path):
    root = write_images(tmp_path / "images", train=(12, (5, 7)), test=(3, (5, 7)))
    run = [f"--model={model}", *SHORT, "--dataset=folder", f"--data_dir={root}", "--val_fraction=0.25"]
    run = [flag.replace("code=3", "code=2") if model == "variational" else flag for flag in run]
    workdir = tmp_path / "whole"
    done = start("reconstruct", f"--workdir={workdir}", *run)
    whole = result(done)
    score = "ELBO" if model == "variational" else "PSNR"
    assert (whole["split"], whole["examples"], whole["test_examples"]) == ("val", 6, 6)
    assert f"done: test {score} " in done.stderr and "of 6 images, val" in done.stderr
    page = (workdir / "report.html").read_text()
    drawn = {path.stem for path in (workdir / "figures").iterdir()}
    own = {"samples", "manifold", "kl"} if model == "variational" else set()
    assert {"reconstructions", "layer1", "loss", "learning_rate"} | own <= drawn
    assert page.count("data:image/png") == len(drawn) and "<dt>test loss</dt>" in page
    assert json.loads((workdir / "run.json").read_text())["task"] == "reconstruction"
    found = result(start("evaluate", f"--workdir={workdir}", "--split=val"))
    assert same({name: value for name, value in whole.items() if not name.startswith("test_")}, found)
    assert result(start("evaluate", f"--workdir={workdir}"))["loss"] == whole["test_loss"]

    # A run killed before its last step resumes bit-identically.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "summary.json").unlink()
    done = start("reconstruct", f"--workdir={again}", *run)
    assert "resuming from step 3" in done.stderr and same(whole, result(done))
    if model != "denoising":
        return
    repeated = start("reproduce", f"--run={workdir}", f"--workdir={tmp_path / 'new'}")
    assert result(repeated)["identical"]
    section = lecture.run_section(workdir)
    assert section.title == "An autoencoder: denoising on folder" and "experiments.reconstruct " in section.command
    assert len(section.figures) == 1
    files = [str(root / "test" / name / "0.png") for name in "ab"]
    rows = list(csv.DictReader(start("predict", f"--workdir={workdir}", *files).stdout.splitlines()))
    assert [row["file"] for row in rows] == files and len({row["reconstruction"] for row in rows}) == 2
    made = load_run(str(workdir)).predict(np.stack([np.asarray(Image.open(file)) for file in files]))
    assert made.shape == (2, 5, 7, 3)
    for row, image in zip(rows, made, strict=True):
        np.testing.assert_allclose(np.asarray(Image.open(row["reconstruction"])) / 255, image, atol=0.51 / 255)
    done = start("predict", f"--workdir={workdir}", rows[0]["reconstruction"])
    assert done.returncode == 2 and "is in the output folder" in done.stderr
    done = start("predict", f"--workdir={workdir}", "--top=3", files[0])
    assert done.returncode == 2 and done.stderr == "error: --top is supported only for runs of classify\n"


def test_a_state_that_does_not_fit_in_memory_is_an_error_at_once(monkeypatch):
    """Otherwise reading the state's step would wait for the arrays, and no signal could interrupt the wait."""
    config, experiment = small_run("autoencoder", 1)
    monkeypatch.setattr(training, "check_steps", lambda *arguments, **options: None)

    def init(key):  # 2^48 bytes, more than the address space.
        return {"step": jnp.zeros((), jnp.int32), "weights": jax.random.normal(key, (2**23, 2**23))}

    experiment = experiment._replace(task=experiment.task._replace(init=init))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        training.initialize(experiment, config, small(), device_count=1)


@pytest.mark.slow
def test_other_images_are_scored(start, tmp_path):
    """Images of another size and with other classes; an autoencoder does not use classes."""
    root = write_images(tmp_path / "own", train=(6, (5, 7)), test=(3, (5, 7)))
    run = [*SHORT, "--dataset=folder", f"--data_dir={root}"]
    whole = result(start("reconstruct", f"--workdir={tmp_path / 'w'}", *run))
    other = write_images(tmp_path / "other", test=(2, (9, 12)))
    (other / "test" / "b").rename(other / "test" / "c")
    found = result(start("evaluate", f"--workdir={tmp_path / 'w'}", f"--data_dir={other}"))
    assert (found["examples"], found["fingerprint"]) == (4, whole["fingerprint"]) and found["loss"] != whole["loss"]


@pytest.mark.slow
def test_images_of_one_class_are_enough(start, tmp_path):
    """The images have one pixel, and there is a single test image."""
    for split, count in (("train", 3), ("test", 1)):
        (tmp_path / "own" / split / "mine").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((1, 1), 80 * i, np.uint8)).save(tmp_path / "own" / split / "mine" / f"{i}.png")
    own, workdir = f"--data_dir={tmp_path / 'own'}", f"--workdir={tmp_path / 'w'}"
    trained = result(start("reconstruct", workdir, "--dataset=folder", own, "--batch_size=2", "--steps=2", "--code=1"))
    assert trained["examples"] == 1 and (tmp_path / "w/report.html").exists()
    assert result(start("evaluate", workdir))["loss"] == pytest.approx(trained["loss"])
    refused = start("classify", f"--workdir={tmp_path / 'c'}", "--dataset=folder", own, "--batch_size=2", "--steps=2")
    assert refused.returncode == 1 and "only one class, mine; at least two are required" in refused.stderr
