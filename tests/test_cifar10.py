"""Tests of CIFAR-10's binary archive: its structure, its conversion to array_record, and Parquet files."""

import io
import tarfile

import numpy as np
import pytest

import data
from data import cifar10, store
from data.dataset import DataError
from data.prepare import cifar10 as prepare_cifar10

RECORDS = 20


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive in the official format with 20 records per file."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    random = np.random.default_rng(0)
    path = tmp_path / "cifar-10-binary.tar.gz"

    def make(change=None, names=None):
        with tarfile.open(path, "w:gz") as file:
            for name in names or sum(prepare_cifar10.FILES.values(), []):
                records = random.integers(0, 256, (RECORDS, prepare_cifar10.RECORD), dtype=np.uint8)
                records[:, 0] %= 10
                content = records.tobytes()
                content = change(content) if change else content
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
        return path

    return make


def test_color_channels_are_stored_as_planes():
    record = bytes([3]) + bytes([1] * 1024) + bytes([2] * 1024) + bytes(range(256)) * 4
    images, labels = prepare_cifar10.parse(record * cifar10.RECORDS, "x")
    assert labels[0] == 3 and images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(images[0, 1, 5], [1, 2, 37])


def test_the_archive_becomes_a_store_that_training_reads(archive, tmp_path, capfd):
    splits = prepare_cifar10.read_archive(str(archive()))
    assert {name: len(y) for name, (_, y) in splits.items()} == {"train": 100, "test": 20}
    with pytest.raises(DataError, match=r"prepare --dataset=cifar10 --data_dir=.*absent`"):
        data.load("cifar10", str(tmp_path / "absent"))
    place = store.write(tmp_path / "data", "cifar10", splits, cifar10.CLASSES)
    assert list(place.glob("*.array_record*")) and capfd.readouterr() == ("", "")  # Progress is for terminals only.
    found = data.load("cifar10", str(tmp_path / "data"))
    for split, arrays in splits.items():
        for ours, theirs in zip(found.splits[split], arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    file = next(place.glob("*train*array_record*"))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(DataError, match="is damaged"):
        data.load("cifar10", str(tmp_path / "data"))


def test_training_on_some_of_the_files(archive, tmp_path):
    splits = prepare_cifar10.read_archive(str(archive()))
    dataset = cifar10.Dataset("cifar10", splits, cifar10.CLASSES)
    images, labels = splits["train"]
    some = cifar10.train_on(dataset, "2-4").splits
    np.testing.assert_array_equal(some["train"][0], images[RECORDS : 4 * RECORDS])
    np.testing.assert_array_equal(some["val"][1], np.concatenate([labels[:RECORDS], labels[4 * RECORDS :]]))
    assert some["test"] is splits["test"] and len(cifar10.train_on(dataset, "5").splits["train"][1]) == RECORDS
    assert "val" not in cifar10.train_on(dataset, "1-5").splits
    for wrong in ("0", "4-1", "1-6", "1-", "all"):
        with pytest.raises(ValueError, match=rf"--train_batches={wrong}: must be a number from 1 to 5"):
            cifar10.train_on(dataset, wrong)
    with pytest.raises(ValueError, match="supported by --dataset=cifar10, not by folder"):
        cifar10.train_on(dataset._replace(name="folder"), "1-4")


def test_an_archive_of_another_structure_is_refused(archive, tmp_path):
    with pytest.raises(DataError, match="expected 20 records of 3,073"):
        prepare_cifar10.read_archive(str(archive(lambda content: content[:-1])))
    with pytest.raises(DataError, match="contains the label 77"):
        prepare_cifar10.read_archive(str(archive(lambda content: b"\x4d" + content[1:])))
    with pytest.raises(DataError, match=r"lacks data_batch_2\.bin"):
        prepare_cifar10.read_archive(str(archive(names=["data_batch_1.bin"])))
    with pytest.raises(DataError, match=r"is the Python version; use the binary version, cifar-10-binary\.tar\.gz"):
        prepare_cifar10.read_archive(str(archive(names=["data_batch_1"])))
    damaged = archive()
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    damaged.write_bytes(content)
    with pytest.raises(DataError, match="can't be read as a tar archive"):
        prepare_cifar10.read_archive(str(damaged))
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(DataError, match="can't be read as a tar archive"):
        prepare_cifar10.read_archive(str(tmp_path / "text"))
