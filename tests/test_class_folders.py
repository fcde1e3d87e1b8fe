"""Tests of folders with class folders only: how they are recognized, split, evaluated and predicted."""

import csv
import dataclasses
import os
import pathlib
import shutil
import types

import numpy as np
import pytest
from PIL import Image
from results import result

import data
from data import folder, generated
from data.dataset import ALL, ArgumentError, DataError, Dataset, digests, file_names, hold_out
from experiments import evaluate, predict, prepare
from experiments.cli import validation
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig, GenerateConfig, ReconstructConfig
from experiments.reporting import run_record
from experiments.setup import classification, evaluation_data, generation, reconstruction, saved_run, source_run
from experiments.setup.experiment import eval_split, generated_split, scoring_split, train_split
from train.state import State


def write(root, *paths, size=(6, 8)):
    """Writes an image for each path, whose pixels are its number."""
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, i, i)).save(root / path)
    return str(root)


def listed(root):
    """{split: [(path, class)]} of a folder, relative to it."""
    place, files, names = folder.listing(str(root))
    return {s: [(str(pathlib.Path(p).relative_to(place)), names[i]) for p, i in part] for s, part in files.items()}


def test_folders_that_contain_images_are_classes(tmp_path, capsys):
    write(tmp_path, "dog/b.png", "cat/2.png", "cat/1.png", "cat/old/3.png", ".hidden/x.png")
    (tmp_path / "dog" / "notes.txt").write_text("")
    expected = [("cat/1.png", "cat"), ("cat/2.png", "cat"), ("cat/old/3.png", "cat"), ("dog/b.png", "dog")]
    assert listed(tmp_path) == {ALL: expected}
    assert f"{tmp_path}: skipped files that are not images: 1 .txt" in capsys.readouterr().err
    write(tmp_path, "owl/2026/a.png")  # A class may have its images in subfolders only.
    (tmp_path / "pig").mkdir()
    assert listed(tmp_path) == {ALL: [*expected, ("owl/2026/a.png", "owl")]}
    assert f"{tmp_path} has no images of the classes pig (0 other files)" in capsys.readouterr().err
    images, labels = folder.load(str(tmp_path)).splits[ALL]
    np.testing.assert_array_equal(images[:, 0, 0, 0], [2, 1, 3, 0, 0])
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 2])


def test_folders_of_class_folders_are_splits(tmp_path):
    write(tmp_path / "a", "train/cat/1.png", "extra/stray.png")
    assert list(listed(tmp_path / "a")) == ["train"]  # A known split decides.
    write(tmp_path / "b", "mine/cat/1.png", "mine/dog/1.png")
    assert list(listed(tmp_path / "b")) == ["mine"]
    write(tmp_path / "c", "mine/cat/1.png", "mine/dog/1.png", "flat/1.png")
    (tmp_path / "c" / "flat.txt").write_text("1.png dog\n")
    assert listed(tmp_path / "c")["flat"] == [("flat/1.png", "dog")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["train/1.png", "bus/1.png"],
            "train is the name of a split, but contains images directly: put them in train/CLASS/, or rename the "
            "folder if train is a class",
        ),
        (
            ["cat/old/1.png", "dog/new/1.png"],
            r"the classes of cat and dog differ: \['old'\] and \['new'\]; no folder has the name of a split, train, "
            "test, val, validation",
        ),
        (["1.png"], r"contains no images as SPLIT/CLASS/\*.jpg or CLASS/\*.jpg"),
    ],
)
def test_ambiguous_folders_are_refused_in_one_line(tmp_path, paths, message):
    with pytest.raises(DataError, match=message) as caught:
        folder.listing(write(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def numbered(counts, split="train"):
    """Images whose only pixel is their index, with `counts` images per class in random order."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts).astype(np.int32))
    return Dataset("numbered", {split: (np.arange(len(labels)).reshape(-1, 1, 1, 1), labels)}, ("a", "b", "c"))


@pytest.mark.parametrize(
    "flags", [{}, {"image_size": 4}, {"positive": "dog", "negative": "cat"}, {"skip_corrupt": True}]
)
def test_images_keep_the_names_of_their_files(tmp_path, flags):
    """The pixels of an image are its number, which is also its name."""
    root = write(tmp_path, *(f"{'cat dog owl'.split()[i % 3]}/{i}.png" for i in range(24)))
    if "skip_corrupt" in flags:
        (tmp_path / "dog" / "1.png").write_bytes(b"no image")
    held = {"val_fraction": 0.25, "test_fraction": 0.25, "dataset": "folder", "data_dir": root}
    for _ in range(2):  # The second time, from the cache.
        dataset = classification.load_dataset(ClassifyConfig(workdir="W", **held, **flags))
        for split, (images, _) in dataset.splits.items():
            assert [f"{image[0, 0, 0]}.png" for image in images[:]] == file_names(dataset, split)
    assert file_names(numbered((2, 2, 2)), "train") is None


@pytest.mark.parametrize("split", ["train", ALL])
def test_fractions_of_each_class_become_val_and_test(split):
    dataset = numbered((40, 10, 1), split)
    both = hold_out(dataset, 0.25, 0.3).splits
    assert set(both) == {"train", "val", "test"}
    counts = {name: np.bincount(labels, minlength=3).tolist() for name, (_, labels) in both.items()}
    assert counts == {"train": [18, 5, 1], "val": [10, 2, 0], "test": [12, 3, 0]}
    rows = {name: images.ravel() for name, (images, _) in both.items()}
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(51))
    for name, fractions in (("val", (0.25, 0)), ("test", (0, 0.3))):  # Each choice is independent of the other.
        alone = hold_out(dataset, *fractions).splits
        assert set(alone) == {"train", name}
        np.testing.assert_array_equal(alone[name][0].ravel(), rows[name])
        np.testing.assert_array_equal(alone[name][1], dataset.splits[split][1][rows[name]])
    # Each class keeps at least one training image.
    assert np.bincount(hold_out(dataset, 0.5, 0.49).splits["train"][1]).tolist() == [1, 1, 1]


def test_invalid_fractions_are_refused():
    with pytest.raises(ArgumentError, match="--test_fraction=0.01 selects no images of numbered; use a larger"):
        hold_out(numbered((4, 4, 4)), 0.25, 0.01)
    for counts, fractions in (((1, 1, 1), (0.5, 0.0)), ((2, 1, 2), (0.45, 0.45))):
        with pytest.raises(ArgumentError, match="each class needs an image for each split, and one for training"):
            hold_out(numbered(counts), *fractions)
    dataset = numbered((4, 4, 4))
    with pytest.raises(ArgumentError, match="--test_fraction=0.5: numbered already has a split test"):
        hold_out(dataset._replace(splits=dataset.splits | {"test": dataset.splits["train"]}), 0.25, 0.5)
    with pytest.raises(ArgumentError, match="--test_fraction=0.5: numbered has no split train, only test"):
        hold_out(numbered((4, 4, 4), "test"), 0.0, 0.5)


def test_missing_splits_name_the_flags_that_create_them(tmp_path):
    root = write(tmp_path, "cat/1.png", "dog/1.png")
    dataset = data.load("folder", root)
    assert scoring_split(dataset) == ALL
    with pytest.raises(UsageError, match="folder has class folders, but no splits .* add --val_fraction=0.1, --test_f"):
        train_split(dataset)
    dataset = dataset._replace(splits={"train": dataset.splits[ALL]})
    with pytest.raises(UsageError, match="only train; add --val_fraction=0.1, --test_fraction=0.2 or both"):
        eval_split(dataset)
    with pytest.raises(UsageError, match="no split test, val or validation, only train; choose one with --split"):
        evaluate._default_split(types.SimpleNamespace(task="classification"), dataset)
    dataset = dataset._replace(splits={"photos": dataset.splits["train"]})
    with pytest.raises(
        UsageError, match="no split train, only photos; the folder of the training images must be named"
    ):
        train_split(dataset)


def test_the_splits_of_generated_data_besides_those_held_out(monkeypatch):
    monkeypatch.setattr(generated, "SMALL", (40, 10))
    for fractions, other in (((0, 0), "val"), ((0.25, 0), "test"), ((0, 0.25), "val"), ((0.25, 0.25), None)):
        config = ClassifyConfig(workdir="W", val_fraction=fractions[0], test_fraction=fractions[1])
        assert generated_split(config) == other
        splits = classification.load_dataset(dataclasses.replace(config, dry_run=True, dry_run_data=True)).splits
        assert set(splits) >= {"train", eval_split(Dataset("d", splits, ()))}
        assert set(splits) == {"train", "val"} | ({"test"} if any(fractions) else set())


def test_a_store_of_class_folders_has_the_split_train(tmp_path):
    root = write(tmp_path / "d", *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    assert prepare.main(prepare.PrepareConfig(dataset="folder", data_dir=root, shards=str(tmp_path / "s"))) == 0
    found = data.load("tfds:pictures", str(tmp_path / "s"))
    assert {name: len(labels) for name, (_, labels) in found.splits.items()} == {"train": 8}
    assert {name: len(labels) for name, (_, labels) in hold_out(found, 0.25, 0.25).splits.items()} == {
        "train": 4,
        "val": 2,
        "test": 2,
    }


def test_labels_of_some_of_the_classes_are_those_of_the_run():
    labels = np.array([0, 1, 1, 0], np.int32)
    dataset = Dataset("d", {ALL: (np.zeros((4, 1, 1, 1), np.uint8), labels)}, ("dog", "owl"))
    found = evaluation_data.with_classes(dataset, ("cat", "dog", "owl"))
    assert found.class_names == ("cat", "dog", "owl")
    np.testing.assert_array_equal(found.splits[ALL][1], [1, 2, 2, 1])
    both = r"\['cat', 'dog'\] in the run, \['dog', 'owl'\] in the data set; not in the run: owl$"
    with pytest.raises(UsageError, match=f"classes differ: {both}"):
        evaluation_data.with_classes(dataset, ("cat", "dog"))


def test_a_change_of_the_folder_changes_the_held_out_images(tmp_path):
    """With more images of a class, other ones are chosen for test."""
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    config = ClassifyConfig(workdir="W", dataset="folder", data_dir=write(tmp_path, *names), test_fraction=0.5)
    trained = classification.load_dataset(config)
    info = classification.dataset_info(config, trained)
    run = saved_run.SavedRun(tmp_path, "classification", config, info, 1, "test", digests(trained))
    assert not evaluation_data.is_held_out_anew(run, trained, "test")
    write(tmp_path, *(f"dog/{i}.png" for i in range(4, 8)))
    changed = classification.load_dataset(config)
    assert evaluation_data.is_held_out_anew(run, changed, "test")
    assert not evaluation_data.is_held_out_anew(run, changed, "train")  # Was never held out.
    assert not evaluation_data.is_held_out_anew(run._replace(data_digests={}), changed, "test")
    larger = changed._replace(splits={"test": (np.zeros((4, 9, 9, 3), np.uint8), changed.splits["test"][1])})
    assert not evaluation_data.is_held_out_anew(run, larger, "test")


def test_a_workdir_inside_the_folder_of_images_is_refused(tmp_path):
    """The next run would read its figures as images of a class."""
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for workdir, refused in (("photos/run", True), ("link/cat/run", True), ("photos", True), ("photos2", False)):
        given = {"workdir": str(tmp_path / workdir), "data_dir": str(tmp_path / "photos")}
        validation.check_training(ClassifyConfig(**given, dataset="cifar10"))
        config = ClassifyConfig(**given, dataset="folder")
        if refused:
            with pytest.raises(
                UsageError, match=f"--workdir={given['workdir']} is inside --data_dir={tmp_path}/photos, "
            ):
                validation.check_training(config)
        else:
            validation.check_training(config)
    validation.check_training(dataclasses.replace(config, workdir=str(tmp_path / "photos" / ".runs" / "w")))


def test_the_classes_of_a_folder_are_announced():
    state = State({"w": np.zeros((2, 3))}, {}, (), np.int32(0), np.int32(0))
    names = ("cat", "dog", *map(str, range(9)))
    dataset = Dataset("folder", {"train": (np.zeros((4, 1, 1, 1)), np.zeros(4))}, names)
    ten = "cat, dog, 0, 1, 2, 3, 4, 5, 6, 7"
    line = f"6 parameters; 4 train images of 11 classes: {ten} and 1 more"
    assert run_record.describe(dataset, state) == line
    assert run_record.describe(dataset._replace(class_names=names[:2]), state).endswith("images of 2 classes: cat, dog")
    assert run_record.describe(dataset._replace(name="mnist5k"), state) == "6 parameters; 4 train images"


def test_the_table_by_class_is_aligned_for_long_names():
    rows = [["class", "examples"], ["a", "5"], ["five pointed star", "12345678901"]]
    assert evaluate.aligned(rows).split("\n") == [
        "            class     examples",
        "                a            5",
        "five pointed star  12345678901",
    ]
    assert evaluate.aligned([["class", "n"], ["a", "5"]]) == "     class           n\n         a           5"


def test_a_folder_is_replaced_by_all_images_below_it(tmp_path):
    write(tmp_path, "b/2.png", "a.png", "b/c/1.JPG", "b/.x/0.png", "z.png")
    (tmp_path / "b" / "notes.txt").write_text("")
    names = predict.image_files([str(tmp_path / "z.png"), str(tmp_path), "absent.png"])
    assert [name.removeprefix(f"{tmp_path}/") for name in names] == [
        *("z.png", "a.png", "b/2.png", "b/c/1.JPG", "z.png", "absent.png")
    ]
    os.mkfifo(tmp_path / "b" / "pipe.png")  # Reading it would wait forever.
    os.symlink("pipe.png", tmp_path / "b" / "link.png")
    os.symlink("nowhere", tmp_path / "b" / "lost.png")  # Is reported when it is read.
    found = [os.path.basename(name) for name in predict.image_files([str(tmp_path / "b")])]
    assert found == ["2.png", "1.JPG", "lost.png"]
    assert [os.path.basename(name) for name in folder.images_in(tmp_path / "b")] == ["2.png", "lost.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no images \(\.jpg"):
        predict.image_files([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    "setup, config_class, flags",
    [
        (classification, ClassifyConfig, {}),
        (classification, ClassifyConfig, {"positive": "dog"}),
        (classification, ClassifyConfig, {"positive": "dog", "negative": "owl"}),
        (classification, ClassifyConfig, {"image_size": 4}),
        (reconstruction, ReconstructConfig, {}),
        (generation, GenerateConfig, {}),
    ],
)
def test_the_splits_of_a_copy_are_those_that_the_run_held_out(
    tmp_path, monkeypatch, capsys, setup, config_class, flags
):
    monkeypatch.setattr(generation, "ITEMS", 4)  # Of each split except train.
    root = write(tmp_path / "d", *(f"{name}/{i}.png" for name in ("cat", "dog", "owl") for i in range(16)))
    held = {"val_fraction": 0.25, "test_fraction": 0.25, "dataset": "folder", "data_dir": root}
    config = config_class(workdir="W", **held, **flags)
    recorded = digests(setup.load_dataset(config))
    run = saved_run.SavedRun(tmp_path, "task", config, None, 1, "val", recorded)
    shutil.copytree(root, tmp_path / "copy")
    moved = evaluation_data.on_data(config, dataset=None, data_dir=str(tmp_path / "copy"))
    found = evaluation_data.load(run, moved, setup.load_dataset)
    assert digests(found) == recorded and set(found.splits) == {"train", "val", "test"}
    told = "these are the run's own images, with the splits that it held out\n"
    assert told in capsys.readouterr().err
    # Images of their own name are other images for a stream, whose pixels are not read.
    (tmp_path / "copy/dog/15.png").unlink()
    write(tmp_path / "copy", *["dog/new.png"] * 2)
    if setup is not generation:  # It needs a split train.
        assert set(evaluation_data.load(run, moved, setup.load_dataset).splits) == {ALL}
    assert evaluation_data.load(run, config, setup.load_dataset).splits.keys() == {"train", "val", "test"}
    assert told not in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_class_folders(start, tmp_path):
    names = ("cat", "dog", "owl")
    root = write(tmp_path / "d", *(f"{name}/{i}.png" for name in names for i in range(8)))
    options = ["--model=perceptron", "--dataset=folder", "--batch_size=4", "--steps=4", f"--data_dir={root}"]
    done = start("classify", f"--workdir={tmp_path / 'w'}", *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "add --val_fraction=0.1" in done.stderr
    held = ["--val_fraction=0.25", "--test_fraction=0.25"]
    workdir = f"--workdir={tmp_path / 'w'}"
    summary = result(start("classify", workdir, *options, *held))
    assert (summary["split"], summary["examples"], summary["test_examples"]) == ("val", 6, 6)
    assert result(start("evaluate", workdir))["accuracy"] == summary["test_accuracy"]
    (tmp_path / "d").rename(tmp_path / "moved")
    assert result(start("evaluate", workdir, f"--data_dir={tmp_path / 'moved'}"))["split"] == "test"

    write(tmp_path / "e", *(f"{name}/{i}.png" for name in ("dog", "owl") for i in range(30)), size=(5, 9))
    done = start("evaluate", workdir, f"--data_dir={tmp_path / 'e'}")
    assert f"--data_dir={tmp_path / 'e'} has no images of 1 of the run's classes: cat\n" in done.stderr
    scores = result(done)
    assert (scores["split"], scores["examples"]) == ("all", 60)
    done = start("predict", workdir, tmp_path / "e", "--top=1")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert done.returncode == 0 and len(rows) == 60 and rows == sorted(rows, key=lambda row: row["file"])
    right = sum(pathlib.Path(row["file"]).parent.name == row["label"] for row in rows)
    assert scores["accuracy"] == pytest.approx(right / 60)
    few = [row["file"] for row in rows[:3]]  # Read one after another instead of in threads.
    assert list(csv.DictReader(start("predict", workdir, *few).stdout.splitlines())) == rows[:3]

    (tmp_path / "e" / "owl").rename(tmp_path / "e" / "emu")
    done = start("evaluate", workdir, f"--data_dir={tmp_path / 'e'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "classes differ: ['cat', 'dog', 'owl'] in the run, ['dog', 'emu'] in the data set" in done.stderr
    (tmp_path / "moved").rename(tmp_path / "d")
    assert "warning" not in start("evaluate", workdir).stderr
    write(tmp_path / "d", "cat/8.png")
    line = (
        f"warning: --data_dir={root} has changed since training: test is held out anew and may contain training images"
    )
    assert line in start("evaluate", workdir).stderr


def test_one_class_is_enough_for_an_evaluation(tmp_path):
    root = write(tmp_path, "cat/1.png", "cat/2.png")
    config = ClassifyConfig(workdir="W", dataset="folder", data_dir=root)
    with pytest.raises(DataError, match="folder has only one class, cat"):
        classification.load_dataset(config)
    assert classification.load_dataset(config, least_classes=1).class_names == ("cat",)
    streamed = classification.load_dataset(dataclasses.replace(config, image_size=4), least_classes=1)
    assert streamed.splits[ALL][0].shape == (2, 4, 4, 3)


def test_test_images_that_a_source_run_was_trained_on_are_found():
    whole, held = (ClassifyConfig(workdir="W", dataset="folder", data_dir="/d", test_fraction=f) for f in (0.0, 0.2))
    for split in ("val", "test"):
        assert source_run.overlaps(held, whole, split) and not source_run.overlaps(held, held, split)
        assert not source_run.overlaps(held, dataclasses.replace(whole, data_dir="/e"), split)
