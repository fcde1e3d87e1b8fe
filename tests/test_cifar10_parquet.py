"""Tests of CIFAR-10 from the Hugging Face Hub's Parquet files."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

import data
from data import cifar10
from data.dataset import DataError
from data.prepare import cifar10_parquet
from experiments import prepare

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


def png(pixels):
    text = io.BytesIO()
    Image.fromarray(pixels).save(text, "PNG")
    return text.getvalue()


def write(path, images, labels, **columns):
    """Writes a file as the Hub's; `columns` replaces columns, None removes one."""
    cells = [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)]
    table = {"img": cells, "label": [int(label) for label in labels]} | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({name: cells for name, cells in table.items() if cells is not None}), path)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(folder like the Hub's repository, splits): ten images for training, two for testing of each class."""
    monkeypatch.setattr(cifar10, "RECORDS", 20)
    random, splits = np.random.default_rng(0), {}
    for split, file, count in (("train", TRAIN, 100), ("test", TEST, 20)):
        images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        splits[split] = images, (np.arange(count) % 10).astype(np.int32)
        write(tmp_path / "repository" / "plain_text" / file, *splits[split])
    return tmp_path / "repository", splits


def equal(found, expected):
    assert found.keys() == expected.keys()
    for split, arrays in expected.items():
        for ours, theirs in zip(found[split], arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_a_folder_or_the_files_become_a_store(made, tmp_path, capsys):
    folder, splits = made
    files = f"{folder}/plain_text/{TRAIN},{folder}/plain_text/{TEST}"
    for number, source in enumerate((str(folder), str(folder / "plain_text"), files)):
        store = str(tmp_path / str(number))
        assert prepare.main(prepare.PrepareConfig("cifar10", source, store)) == 0
        equal(data.load("cifar10", store).splits, splits)
    assert "cifar10: 100 train, 20 test in " in capsys.readouterr().err
    assert prepare.main(prepare.PrepareConfig("cifar10", source, store)) == 0
    assert capsys.readouterr().err == f"cifar10 is already prepared in {store} (--source={files} was not read)\n"


def test_several_files_of_a_split(made, tmp_path):
    folder, splits = made
    (folder / "plain_text" / TRAIN).unlink()
    images, labels = splits["train"]
    write(folder / "plain_text" / "train" / "0000.parquet", images[:30], labels[:30])
    write(folder / "plain_text" / "train" / "0001.parquet", images[30:], labels[30:])
    equal(cifar10_parquet.read([folder]), splits)


def test_other_files_are_refused(made, tmp_path):
    folder, splits = made
    images, labels = splits["train"]
    path = folder / "plain_text" / TRAIN

    def refused(match, *, images=images, labels=labels, **columns):
        write(path, images, labels, **columns)
        with pytest.raises(DataError, match=match) as caught:
            cifar10_parquet.read([folder])
        assert len(str(caught.value).splitlines()) == 1

    refused(f"{TRAIN} has the columns label, expected img and label", img=None)
    refused(f"{TRAIN} has the columns img, fine_label, expected", label=None, fine_label=list(map(int, labels)))
    refused("the column img is of the type binary, expected a struct", img=[b"x"] * 100)
    refused("the column label is of the type string, expected integers", label=list(map(str, labels)))
    refused("contains the label 42, expected 0 to 9", labels=np.where(labels == 3, 42, labels))
    refused("contains the label -1, expected 0 to 9", label=[None, *map(int, labels[1:])])
    large = pyarrow.array([2**63, *map(int, labels[1:])], "uint64")
    refused(f"contains the label {2**63}, expected 0 to 9", label=large)
    refused("11 train images of the class airplane, expected 10", labels=np.r_[labels[:-1], 0])
    refused("9 train images of the class airplane, expected 10", images=images[1:], labels=labels[1:])
    refused(f"{TRAIN}, row 0: an image of 28x28 pixels, expected 32x32", images=images[:, :28, :28])
    refused(f"{TRAIN}, row 0: no image", img=[{"bytes": None, "path": "0.png"}] * 99 + [{"bytes": b"", "path": ""}])
    unreadable = [{"bytes": png(image)} for image in images[:2]] + [{"bytes": b"x"}] * 98
    refused(f"{TRAIN}, row 2: not a readable image", img=unreadable)
    none = {"img": pyarrow.array([], pyarrow.struct({"bytes": pyarrow.binary()})), "label": pyarrow.array([], "int64")}
    refused(f"{TRAIN} has no rows", **none)
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match=f"{TRAIN} can't be read as a Parquet file: "):
        cifar10_parquet.read([folder])
    path.unlink()
    with pytest.raises(DataError, match=f"--source={folder} has no {TRAIN}"):
        cifar10_parquet.read([folder])
    config = prepare.PrepareConfig("cifar10", f"{folder}/a.tar.gz,{folder}/b", str(tmp_path / "store"))
    with pytest.raises(DataError, match=f"--source={folder}/a.tar.gz: no such file"):
        prepare.main(config)
    for name in ("a.tar.gz", "b"):
        (folder / name).write_text("x")
    with pytest.raises(DataError, match="must be one archive, or Parquet files"):
        prepare.main(config)


def test_without_pyarrow(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="with the package pyarrow, which is not installed: run `pip install pyarrow`"):
        cifar10_parquet.read([made[0]])
