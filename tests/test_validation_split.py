"""Tests of held-out validation images, and that no checkpoint is selected by its score on test."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from results import result

import data
from data import digit_scenes
from data.dataset import ArgumentError, Dataset, hold_out
from experiments import load_run
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig, GenerateConfig, SegmentConfig
from experiments.setup import classification, generation, segmentation
from experiments.setup.experiment import eval_split, scoring_split

MLP = ["--model=mlp", "--hidden=8", "--batch_size=32", "--steps=6", "--eval_every=2", "--learning_rate=0.5"]


def numbered(counts: tuple[int, ...]) -> Dataset:
    """Images whose only pixel is their index, with `counts` images per class in random order."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts).astype(np.int32))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset("numbered", {"train": (images, labels), "test": (images[:2], labels[:2])}, ("a", "b", "c"))


def test_a_fraction_of_each_class_is_held_out():
    dataset = numbered((40, 10, 1))
    images, labels = dataset.splits["train"]
    found = hold_out(dataset, 0.25)
    assert list(found.splits) == ["train", "test", "val"] and found.splits["test"] is dataset.splits["test"]
    assert np.bincount(found.splits["val"][1], minlength=3).tolist() == [10, 2, 0]
    assert np.bincount(found.splits["train"][1]).tolist() == [30, 8, 1]
    rows = [found.splits[split][0].ravel() for split in ("train", "val")]
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), images.ravel())
    for split, numbers in zip(("train", "val"), rows, strict=True):
        assert (np.diff(numbers.astype(int)) > 0).all()  # Ordered as in the training split.
        np.testing.assert_array_equal(found.splits[split][1], labels[numbers])
    assert hold_out(dataset, 0.25).splits["val"][0].tobytes() == found.splits["val"][0].tobytes()
    # Each class keeps at least one training image, regardless of the fraction.
    assert np.bincount(hold_out(dataset, 0.999).splits["train"][1]).tolist() == [1, 1, 1]


def test_invalid_fractions_are_refused():
    dataset = numbered((4, 4, 4))
    with pytest.raises(ArgumentError, match="--val_fraction=0.01 selects no images of numbered; use a larger fraction"):
        hold_out(dataset, 0.01)
    for name in ("val", "validation"):
        both = dataset._replace(splits=dataset.splits | {name: dataset.splits["test"]})
        with pytest.raises(ArgumentError, match=f"--val_fraction=0.5: numbered already has a split {name}"):
            hold_out(both, 0.5)
    with pytest.raises(ArgumentError, match="has no split train, only test"):
        hold_out(dataset._replace(splits={"test": dataset.splits["test"]}), 0.5)


def write_images(root, *, side: int, train: int, test: int):
    """Writes a folder of two classes with `train` and `test` images per class, each of a different shade."""
    for split, count in (("train", train), ("test", test)):
        for shade, name in ((60, "dark"), (200, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (side, side), shade + i).save(root / split / name / f"{i}.png")
    return root


def test_images_decoded_on_access_are_held_out(tmp_path):
    write_images(tmp_path, side=80, train=8, test=2)
    whole = data.load("folder", str(tmp_path), image_size=64)
    found = hold_out(whole, 0.25)
    shades = {split: found.splits[split][0][np.arange(n)][:, 0, 0, 0] for split, n in (("train", 12), ("val", 4))}
    assert [len(found.splits[split][1]) for split in ("train", "val", "test")] == [12, 4, 4]
    assert sorted(np.concatenate(list(shades.values()))) == sorted([*range(60, 68), *range(200, 208)])
    np.testing.assert_array_equal(shades["val"] > 128, found.splits["val"][1] == 1)


@pytest.mark.slow
def test_scenes_of_held_out_digits():
    splits = digit_scenes.load(0.1).splits
    assert len(splits["train"][1]) == 3600 and splits["val"][0].shape == splits["test"][0].shape == (500, 64, 64, 1)
    np.testing.assert_array_equal(splits["test"][0], digit_scenes.load().splits["test"][0])
    assert (splits["val"][0] != splits["test"][0]).any()


def test_images_with_pixel_labels_are_held_out(tmp_path):
    for split, count in (("train", 8), ("test", 3)):
        lines = []
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for i in range(count):
            Image.new("RGB", (9, 6), (20 * i,) * 3).save(tmp_path / split / f"{i}.png")
            Image.new("L", (9, 6), i).save(tmp_path / f"{split}annot" / f"{i}.png")
            lines.append(f"/x/{split}/{i}.png /x/{split}annot/{i}.png\n")
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    config = SegmentConfig(workdir="W", dataset="camvid", data_dir=str(tmp_path), val_fraction=0.25)
    # As loaded by a run, and by evaluate for one split.
    for split in (None, "test", "val"):
        found = segmentation.load_dataset(config, split=split).splits
        assert {name: len(labels) for name, (_, labels) in found.items()} == {"train": 6, "val": 2, "test": 3}
        rows = [labels[:, 0, 0] for _, labels in (found["train"], found["val"])]
        assert sorted(np.concatenate(rows)) == list(range(8))
        np.testing.assert_array_equal(found["val"][0][:, 0, 0, 0], 20 * rows[1])


def test_images_of_dry_run_data_are_held_out():
    classify = ClassifyConfig(workdir="W", dataset="folder", dry_run=True, dry_run_data=True, val_fraction=0.5)
    generate = GenerateConfig(workdir="W", dataset="folder", dry_run=True, dry_run_data=True, val_fraction=0.5)
    for dataset in (classification.load_dataset(classify), generation.load_dataset(generate)):
        assert dataset.splits.keys() == {"train", "val", "test"}
    labels = classification.load_dataset(classify).splits
    assert len(labels["train"][1]) == len(labels["val"][1]) == 25_000


def test_the_splits_for_evaluation_and_for_the_final_score():
    for names, during, after in (
        (("train", "test"), "test", "test"),
        (("train", "val", "test"), "val", "test"),
        (("train", "validation", "test"), "validation", "test"),
        (("train", "val"), "val", "val"),
    ):
        dataset = Dataset("d", dict.fromkeys(names, (np.zeros(1), np.zeros(1))), ("a", "b"))
        assert (eval_split(dataset), scoring_split(dataset)) == (during, after)
        assert eval_split(dataset, "train") == "train"
    with pytest.raises(UsageError, match="--eval_split=dev: d has no such split, only train, val"):
        eval_split(dataset, "dev")


@pytest.fixture(scope="module")
def chosen(start, tmp_path_factory):
    """A run with a split val, whose learning rate is so large that its last evaluation is not its best."""
    workdir = tmp_path_factory.mktemp("runs") / "chosen"
    options = ["--val_fraction=0.1", "--keep=1", "--learning_rate=3", "--steps=10"]
    return workdir, result(start("classify", f"--workdir={workdir}", *MLP, *options))


def test_a_run_is_chosen_on_val_and_scored_on_test(chosen, start):
    workdir, summary = chosen
    assert (summary["split"], summary["examples"], summary["test_examples"]) == ("val", 400, 1000)
    run = json.loads((workdir / "run.json").read_text())
    assert run["splits"] == {"train": 3600, "test": 1000, "val": 400} and run["eval_split"] == "val"
    assert run["flags"]["val_fraction"] == 0.1
    on_test = result(start("evaluate", f"--workdir={workdir}"))
    assert (on_test["split"], on_test["accuracy"]) == ("test", summary["test_accuracy"])
    assert on_test["loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    assert result(start("evaluate", f"--workdir={workdir}", "--split=val"))["accuracy"] == summary["accuracy"]
    rows = [line.split(",") for line in (workdir / "metrics.csv").read_text().splitlines()]
    at = rows[0].index("eval_accuracy")
    scores = {int(row[0]): float(row[at]) for row in rows[1:] if row[at]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert best != max(scores), scores  # Otherwise this test would be meaningless.
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [best, 10]
    found = result(start("evaluate", f"--workdir={workdir}", "--split=val", "--checkpoint=best"))
    assert (found["step"], found["accuracy"]) == (best, pytest.approx(scores[best], rel=1e-6))
    page = (workdir / "report.html").read_text()
    assert "<dt>test accuracy</dt>" in page and "<dt>val accuracy</dt>" in page and "best val" not in page
    done = start("classify", f"--workdir={workdir}", f"--flagfile={workdir / 'flags.txt'}")
    assert f"test accuracy {100 * summary['test_accuracy']:.2f} % of 1,000 images" in done.stderr


def test_nothing_is_chosen_on_test(start, tmp_path):
    options = [*MLP, "--keep=1", "--log_every=2"]
    first = start("classify", f"--workdir={tmp_path}", *options)
    summary = result(first)
    assert summary["split"] == "test" and not any(name.startswith("test_") for name in summary)
    assert "test accuracy" in first.stderr and "eval" not in first.stderr
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]
    for command in (["evaluate"], ["filters"], ["predict", "x.png"]):
        done = start(command[0], f"--workdir={tmp_path}", "--checkpoint=best", *command[1:])
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1
        assert "x.png" in done.stderr or "was evaluated on test, so no best checkpoint was selected" in done.stderr
    with pytest.raises(UsageError, match="--checkpoint=best: the run in .* was evaluated on test"):
        load_run(str(tmp_path), "best")


def test_a_run_resumes_with_its_original_evaluation_split(chosen, start, tmp_path):
    shutil.copytree(chosen[0], tmp_path / "w")
    run = json.loads((tmp_path / "w/run.json").read_text())
    del run["eval_split"]  # As written by versions that always evaluated on test.
    (tmp_path / "w/run.json").write_text(json.dumps(run))
    command = ["classify", f"--flagfile={tmp_path / 'w/flags.txt'}", f"--workdir={tmp_path / 'w'}"]
    done = start(*command)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "was evaluated on test (stored), val was given; give --eval_split=test" in done.stderr
    assert start(*command, "--eval_split=test").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["segment", "generate"])
def test_the_other_tasks_are_also_scored_on_test(command, start, tmp_path):
    more = ["--batch_size=4"]
    if command == "generate":  # Few images, on which the FID classifier trains quickly.
        images = write_images(tmp_path / "images", side=32, train=20, test=4)
        more += ["--dataset=folder", f"--data_dir={images}"]
    workdir = tmp_path / "w"
    summary = result(start(command, f"--workdir={workdir}", "--val_fraction=0.1", "--steps=2", *more))
    name = {"segment": "mean_iou", "generate": "classifier_fid"}[command]
    assert summary["split"] == "val" and np.isfinite(summary[f"test_{name}"])
    found = result(start("evaluate", f"--workdir={workdir}", "--split=test"))
    assert found[name] == pytest.approx(summary[f"test_{name}"], rel=1e-5)
    assert f"<dt>test {name.replace('_', ' ')}</dt>" in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_moved_images_are_held_out_identically(start, tmp_path):
    write_images(tmp_path / "images", side=6, train=8, test=2)
    options = ["--model=perceptron", "--dataset=folder", "--batch_size=4", "--steps=2", "--val_fraction=0.25"]
    summary = result(start("classify", f"--workdir={tmp_path / 'w'}", f"--data_dir={tmp_path / 'images'}", *options))
    (tmp_path / "images").rename(tmp_path / "moved")
    evaluate = ["evaluate", f"--workdir={tmp_path / 'w'}", f"--data_dir={tmp_path / 'moved'}"]
    found = result(start(*evaluate, "--split=val"))
    assert (found["examples"], found["accuracy"]) == (4, summary["accuracy"])
    assert result(start(*evaluate, "--split=train"))["examples"] == 12
    Image.new("L", (6, 6), 7).save(tmp_path / "moved/train/dark/0.png")  # The data now differ.
    done = start(*evaluate, "--split=val")
    assert done.returncode == 2 and "--split=val: folder has no such split, only test, train" in done.stderr
