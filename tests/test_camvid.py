"""Tests of CamVid in the authors' layout: lists with paths of other machines, annotations, labels, class weights."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from data import annotations, camvid
from data.dataset import DataError
from data.prepare.camvid import collect


@pytest.fixture
def root(tmp_path):
    place, random = tmp_path / "camvid", np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        (place / split).mkdir(parents=True)
        (place / f"{split}annot").mkdir()
        lines = []
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(place / split / f"a {i}.png")
            label = random.integers(0, 12, (6, 8), dtype=np.uint8)
            Image.fromarray(label).save(place / f"{split}annot" / f"a {i}.png")
            lines.append(f"/SegNet/My CamVid/{split}/a {i}.png /SegNet/My CamVid/{split}annot/a {i}.png\n")
        (place / f"{split}.txt").write_text("".join(lines) + "\n")
    (place / "notes.txt").write_text("not a list")
    return place


def test_loading_the_authors_layout(root):
    found = camvid.load(str(root))
    assert sorted(found.splits) == ["test", "train"] and found.class_names[0] == "Sky" and len(found.class_names) == 11
    images, labels = found.splits["train"]
    assert images.shape == (3, 6, 8, 3) and labels.shape == (3, 6, 8) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[1], np.asarray(Image.open(root / "trainannot" / "a 1.png")))
    images, small = camvid.load(str(root), size=(3, 4)).splits["train"]
    assert images.shape == (3, 3, 4, 3)
    assert all(np.isin(small[0, y, x], labels[0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]) for y, x in np.ndindex(3, 4))


def test_palette_indices_are_class_numbers(root):
    label = Image.fromarray(np.full((6, 8), 5, np.uint8))
    label.putpalette([i for value in range(256) for i in (255 - value, value, 0)])
    label.save(root / "trainannot" / "a 0.png")
    assert (camvid.load(str(root)).splits["train"][1][0] == 5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "trainannot" / "a 1.png").unlink(), r"trainannot/a 1\.png does not exist"),
        (lambda root: (root / "test" / "a 0.png").unlink(), r"test/a 0\.png does not exist"),
        (lambda root: shutil.rmtree(root / "test"), r"test/a 0\.png does not exist"),
        (
            lambda root: Image.fromarray(np.full((6, 8), 12, np.uint8)).save(root / "testannot" / "a 1.png"),
            r"testannot/a 1\.png contains the label 12, expected 0 to 11",
        ),
        (lambda root: Image.new("RGB", (8, 6)).save(root / "testannot" / "a 1.png"), r"a 1\.png: an annotation is an"),
        (lambda root: Image.new("L", (8, 7)).save(root / "testannot" / "a 1.png"), "differ in size: 6x8 and 7x8"),
        (lambda root: (root / "train" / "a 0.png").write_text("text"), r"train/a 0\.png: not a readable image"),
        (lambda root: (root / "train.txt").write_text("a line\n"), "line 1: 'a line' is not an image and its"),
        (lambda root: (root / "train.txt").write_text("../../x.png ../y.png\n"), "is outside"),
        (  # The line break between two pairs is missing.
            lambda root: (root / "train.txt").write_text((root / "train.txt").read_text().replace("\n", "", 1)),
            "line 1: .* is not an image and its annotation",
        ),
        (lambda root: [path.unlink() for path in root.glob("t*.txt")], "contains no list"),
    ],
)
def test_errors_name_the_file_and_the_problem(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message):
        camvid.load(str(root))


def test_files_outside_the_folder_are_not_read(root, tmp_path):
    outside = tmp_path / "secret.png"
    Image.new("RGB", (8, 6)).save(outside)
    (root / "train" / "a 0.png").unlink()
    (root / "train" / "a 0.png").symlink_to(outside)
    with pytest.raises(DataError, match="is outside"):
        camvid.load(str(root))
    assert list(camvid.load(str(root), split="test").splits) == ["test"]  # The other splits need not be valid.
    (root / "train.txt").write_text("/S/train/a\0.png /S/trainannot/a 0.png\n")
    with pytest.raises(DataError, match=r"a\x00\.png"):
        camvid.load(str(root))
    (tmp_path / "secret.txt").write_text("secret")
    (root / "train.txt").unlink()
    (root / "train.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DataError, match=r"train\.txt is outside"):
        camvid.load(str(root))


def test_images_of_several_sizes_need_image_size(root):
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Image.new(mode, (4, 4)).save(root / folder / "a 2.png")
    with pytest.raises(DataError, match=r"a 2\.png is 4x4, but the first image is 6x8; use --image_size"):
        camvid.load(str(root))
    assert camvid.load(str(root), size=(6, 8)).splits["train"][0].shape == (3, 6, 8, 3)
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        for path in (root / folder).iterdir():  # One size within each split, but two in total.
            Image.new(mode, (4, 4)).save(path)
    with pytest.raises(DataError, match=r"is 4x4, but the first image is 6x8; use --image_size"):
        camvid.load(str(root))


def test_images_that_do_not_fit_in_memory_are_refused(root, monkeypatch):
    monkeypatch.setattr(annotations.os, "sysconf", lambda name: 100_000)  # Simulates 10 GB of memory.
    with pytest.raises(DataError, match="--image_size=99999x99999: the images would take 200 GB"):
        camvid.load(str(root), size=(99999, 99999))


def test_median_frequency_weights_against_a_hand_calculation():
    with pytest.raises(DataError, match="contain only void"):
        annotations.computed_weights(np.full((2, 2, 4), camvid.VOID, np.uint8), camvid.VOID)
    labels = np.full((2, 2, 4), camvid.VOID, np.uint8)
    labels[0, 0, :2], labels[0, 1], labels[1, 0, 0] = 0, 1, 0
    # Class 0: 3 of 16 pixels; class 1: 4 of the 8 pixels of the one image that contains it.
    frequency = np.array([3 / 16, 4 / 8])
    expected = [*(np.median(frequency) / frequency), *[0.0] * 9]
    np.testing.assert_allclose(annotations.computed_weights(labels, camvid.VOID), expected)


def test_prepare_collects_and_validates_the_data(root, tmp_path, start):
    archive = tmp_path / "camvid.tar"
    with tarfile.open(archive, "w") as file:
        file.add(root, "camvid")
        for name in ("../../evil.png", "/tmp/evil/x.png", "camvid/.hidden/a.png"):
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"text"))
        link = tarfile.TarInfo("camvid/train/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = camvid.load(str(root))
    for i, source in enumerate((root, archive)):
        target = tmp_path / "to" / str(i)
        assert collect(source, target) >= 13 and camvid.problems(str(target)) == []
        for split, arrays in camvid.load(str(target)).splits.items():
            for ours, theirs in zip(arrays, before.splits[split], strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert not any(path.is_symlink() for path in target.rglob("*"))
    (root / "train" / "loop.png").symlink_to("loop.png")  # Skipped.
    for _ in range(2):  # A target inside the source is not collected again.
        assert collect(root, root / "out") == 13 and camvid.problems(str(root / "out")) == []
    shutil.rmtree(root / "out")
    (root / "train" / "loop.png").unlink()
    assert not list(tmp_path.glob("evil*")) and sorted(p.name for p in (tmp_path / "to").iterdir()) == ["0", "1"]

    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 6)).save(secret)
    (root / "train" / "a 0.png").unlink()
    (root / "train" / "a 0.png").symlink_to(secret)
    shutil.copytree(root, tmp_path / "above" / "SegNet" / "camvid", symlinks=True)
    collect(tmp_path / "above", tmp_path / "to" / "link")
    assert camvid.problems(str(tmp_path / "to" / "link")) == [
        f"{tmp_path / 'to' / 'link' / 'train' / 'a 0.png'} does not exist but is listed in SPLIT.txt"
    ]
    shutil.copytree(root, tmp_path / "two" / "a")
    shutil.copytree(root, tmp_path / "two" / "b")
    with pytest.raises(DataError, match="has two files for .*notes.txt: a/notes.txt and b/notes.txt"):
        collect(tmp_path / "two", tmp_path / "to" / "two")

    target = tmp_path / "to" / "2"
    (root / "trainannot" / "a 1.png").unlink()
    Image.fromarray(np.full((6, 8), 99, np.uint8)).save(root / "testannot" / "a 0.png")
    done = start("prepare", "--dataset=camvid", f"--source={root}", f"--data_dir={target}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "trainannot/a 1.png does not exist" in done.stderr
    assert "testannot/a 0.png contains the label 99" in done.stderr
    done = start("prepare", "--dataset=camvid", f"--source={archive}", f"--data_dir={tmp_path / 'to' / '3'}")
    assert done.returncode == 0 and "2 test, 3 train in" in done.stderr
