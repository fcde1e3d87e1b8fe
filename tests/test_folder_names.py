"""Tests of image folders with links, other files, and names in other Unicode forms and encodings."""

import codecs
import shutil
import tarfile
import unicodedata

import numpy as np
import pytest
from PIL import Image

from data import DataError, camvid, folder
from data.prepare import unpack

DECOMPOSED = unicodedata.normalize("NFD", "café")  # As macOS stores it.


@pytest.fixture
def root(tmp_path):
    """Two images of the classes café and dog in train and in test."""
    for split in ("train", "test"):
        for name in ("café", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "data" / split / name / f"{name}{i}.png")
    return tmp_path / "data"


def listed(root):
    """Class names, and the labels of each split."""
    _, files, names = folder.listing(str(root))
    return names, {split: [label for _, label in found] for split, found in files.items()}


def test_links_to_folders_are_followed_except_cycles(root, tmp_path):
    shutil.copytree(root / "test" / "dog", tmp_path / "elsewhere" / "deeper")
    dog = root / "train" / "dog"
    (dog / "more").symlink_to(tmp_path / "elsewhere")
    for name, target in {"self": "self", "here": ".", "split": "..", "root": "../.."}.items():
        (dog / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(dog)
    (root / "train" / "dog" / "note.txt").symlink_to("nowhere")
    assert listed(root)[1]["train"] == [0, 0, 1, 1, 1, 1]


def test_system_folders_are_skipped(root, capsys):
    for place in ("train/dog/@eaDir/dog0.png", "train/@eaDir/x", "lost+found/x", "__MACOSX/train/dog"):
        (root / place).mkdir(parents=True)
        shutil.copy(root / "train" / "dog" / "dog0.png", root / place / "SYNOPHOTO_THUMB_M.png")
    assert listed(root) == (("café", "dog"), {"train": [0, 0, 1, 1], "test": [0, 0, 1, 1]})
    with tarfile.open(root.parent / "a.tar", "w") as archive:
        archive.add(root / "train", "train")
    assert unpack.unpack(root.parent / "a.tar", root.parent / "out", split="train") == 4
    assert listed(root.parent / "out")[1] == {"train": [0, 0, 1, 1]}
    assert capsys.readouterr().err.count("skipped: ") == 2


def test_other_files_are_counted(root, capsys):
    for name in ("a.avif", "b.avif", "README"):
        (root / "train" / "dog" / name).touch()
    (root / "train" / "café" / "c.heic").touch()
    listed(root)
    message = "skipped files that are not images: 2 .avif, 1 .heic, 1 without suffix\n"
    assert capsys.readouterr().err == f"{root / 'train'}: {message}"


def test_class_names_in_either_unicode_normalization_form(root):
    (root / "test" / "café").rename(root / "test" / DECOMPOSED)
    assert listed(root) == (("café", "dog"), {"train": [0, 0, 1, 1], "test": [0, 0, 1, 1]})
    (root / "test" / "café").mkdir()
    with pytest.raises(DataError, match="test has two folders of the class 'café', in different forms of Unicode"):
        listed(root)


@pytest.mark.parametrize(
    "text",
    [
        codecs.BOM_UTF8 + "café0.png café\ncafé1.png café\ndog0.png dog\ndog1.png dog\n".encode(),
        unicodedata.normalize("NFD", "café0.png café\r\ncafé1.png café\r\ndog0.png dog\r\ndog1.png dog").encode(),
        "café0.png\tcafé\ncafé1.png\tcafé\n\ndog0.png\tdog\ndog1.png\tdog\n".encode(),
        "café0.png 0\ncafé1.png\t0\ndog0.png 1\ndog1.png  1\n".encode(),
    ],
)
def test_label_files_with_other_encodings_and_separators(root, text):
    (root / "val").mkdir()
    for path in sorted((root / "test").glob("*/*")):
        shutil.copy(path, root / "val")
    (root / "val" / "café1.png").rename(root / "val" / unicodedata.normalize("NFD", "café1.png"))
    (root / "val.txt").write_bytes(text)
    _, files, _ = folder.listing(str(root))
    assert {path.rpartition("/")[2][0]: label for path, label in files["val"]} == {"c": 0, "d": 1}
    assert len(files["val"]) == 4


def test_a_camvid_list_may_begin_with_a_byte_order_mark(tmp_path):
    for place in ("train", "trainannot"):
        (tmp_path / place).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / place / "a.png")
    (tmp_path / "train.txt").write_bytes(codecs.BOM_UTF8 + b"train/a.png trainannot/a.png\n")
    assert len(camvid.listing(str(tmp_path))["train"]) == 1
