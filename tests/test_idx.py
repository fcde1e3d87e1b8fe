"""Tests of MNIST and Fashion-MNIST: the format idx, where the files are found, and their preparation."""

import csv
import gzip
import hashlib
import io
import json
import os
import pathlib

import made_idx
import numpy as np
import pytest
from local_server import Quiet, serving
from PIL import Image

import data
from data import idx
from data.dataset import DataError
from data.prepare import idx as prepare_idx
from experiments import prepare
from experiments.cli.config import ClassifyConfig, GenerateConfig, ReconstructConfig
from experiments.setup import classification, generation, reconstruction


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home folder; the system has no data sets."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(idx, "SYSTEM", {"fashion_mnist": tmp_path / "system"})
    return tmp_path / "home"


def equal(dataset, splits):
    assert dataset.splits.keys() == splits.keys()
    for split, (images, labels) in splits.items():
        np.testing.assert_array_equal(dataset.splits[split][0], images[..., None])
        np.testing.assert_array_equal(dataset.splits[split][1], labels)
        assert [array.dtype for array in dataset.splits[split]] == [np.uint8, np.int32]


def run(dataset, source=None, data_dir=None):
    return prepare.main(prepare.PrepareConfig(dataset, source, data_dir))


def test_the_format():
    values = (np.arange(2 * 28 * 28) % 251).astype(np.uint8)
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
    images = idx.parse(header + values.tobytes(), pathlib.Path("x"), dimensions=3)
    assert images.shape == (2, 28, 28) and images[1, 2, 3] == (28 * 28 + 2 * 28 + 3) % 251
    images[0, 0, 0] = 7  # The array can be written.
    labels = idx.parse(bytes([0, 0, 8, 1, 0, 0, 0, 3, 4, 0, 9]), pathlib.Path("x"), dimensions=1)
    assert labels.tolist() == [4, 0, 9]


@pytest.mark.parametrize(
    "name",
    [
        lambda file: f"{file}.gz",
        lambda file: file,
        lambda file: file.replace("-idx", ".idx"),
        lambda file: file.replace("-idx", ".idx") + ".gz",
    ],
)
def test_all_forms_of_the_file_names(tmp_path, name):
    splits = made_idx.write(tmp_path, name=name)
    fashion, digits = (data.load(one, str(tmp_path)) for one in ("fashion_mnist", "mnist"))
    equal(fashion, splits)
    equal(digits, splits)
    assert (fashion.name, digits.name) == ("fashion_mnist", "mnist")
    assert digits.class_names == tuple("0123456789") and fashion.class_names[::9] == ("T-shirt/top", "Ankle boot")


def test_a_file_that_was_decompressed_without_renaming(tmp_path):
    splits = made_idx.write(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    equal(data.load("mnist", str(tmp_path)), splits)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WHOLE = made_idx.encoded(np.zeros((40, 28, 28)))
DAMAGED = {
    "is empty, expected 00 00 08 03 for an idx file of images": (IMAGES, b""),
    r"starts with the bytes 3c 21 44 4f, expected 00 00 08 03": (IMAGES, b"<!DOCTYPE html>"),
    "starts with the bytes 00 00 08 01, expected 00 00 08 03": (IMAGES, made_idx.encoded(np.zeros(40))),
    "starts with the bytes 00 00 08 03, expected 00 00 08 01 for an idx file of labels": (LABELS, WHOLE),
    "is truncated: 10 bytes, expected a header of 16": (IMAGES, WHOLE[:10]),
    "is truncated: 31,259 bytes after the header, expected 31,360 for 40 images": (IMAGES, WHOLE[:-101]),
    "is too long: 31,361 bytes after the header, expected 31,360 for 40 images": (IMAGES, WHOLE + b"x"),
    "has images of 20x28 pixels, expected 28x28": (IMAGES, made_idx.encoded(np.zeros((40, 20, 28)))),
    "has no images": (IMAGES, made_idx.encoded(np.zeros((0, 28, 28)))),
    "contains the label 26, expected 0 to 9": (LABELS, made_idx.encoded(np.full(40, 26))),
    r"ubyte has 40 images, but \S*-labels-idx1-ubyte has 39 labels": (LABELS, made_idx.encoded(np.zeros(39))),
    "can't be decompressed: Compressed file ended": (IMAGES, gzip.compress(WHOLE)[:-20]),
    "can't be decompressed: .*invalid": (IMAGES, gzip.compress(WHOLE)[:12] + b"\xff" * 50),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_and_foreign_files_are_named(tmp_path, message):
    file, content = DAMAGED[message]
    made_idx.write(tmp_path, name=str)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/train-.*{message}") as caught:
        data.load("fashion_mnist", str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_missing_files(tmp_path, home):
    made_idx.write(tmp_path / "some")
    (tmp_path / "some" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"{tmp_path}/some lacks t10k-labels-idx1-ubyte "):
        data.load("mnist", str(tmp_path / "some"))
    command = "run `python -m experiments.prepare --dataset"
    place = tmp_path / "none"
    with pytest.raises(DataError, match=f"{place} is not a folder: {command}=mnist --data_dir={place}`"):
        data.load("mnist", str(place))
    place.mkdir()
    with pytest.raises(DataError, match=f"{place} has none of .*: {command}=mnist --data_dir={place}`"):
        data.load("mnist", str(place))
    with pytest.raises(DataError, match=f"^mnist is not in {home}/nutshell_data/mnist: {command}=mnist` .add --source"):
        data.load("mnist")
    with pytest.raises(
        DataError, match=f"{tmp_path}/system: {command}=fashion_mnist` .* or install the package dataset"
    ):
        data.load("fashion_mnist")


def test_the_files_of_the_other_data_set_are_refused(tmp_path, monkeypatch):
    _, labels = made_idx.write(tmp_path)["train"]
    digest = hashlib.md5(made_idx.encoded(labels)).hexdigest()
    monkeypatch.setitem(idx.MD5, "mnist", ("", digest, "", ""))
    assert data.load("mnist", str(tmp_path)).name == "mnist"
    with pytest.raises(DataError, match="train-labels-idx1-ubyte.gz is a file of mnist, not of fashion_mnist: use --d"):
        data.load("fashion_mnist", str(tmp_path))
    with pytest.raises(DataError, match="is a file of mnist, not of fashion_mnist"):
        run("fashion_mnist", data_dir=str(tmp_path))


def test_the_prepared_files_come_before_the_systems(tmp_path, home, monkeypatch):
    system = made_idx.write(tmp_path / "system", seed=1)
    equal(data.load("fashion_mnist"), system)
    with pytest.raises(DataError, match="mnist is not in"):
        data.load("mnist")
    own = made_idx.write(home / "nutshell_data" / "fashion_mnist", seed=2)
    equal(data.load("fashion_mnist"), own)
    (home / "nutshell_data" / "fashion_mnist" / f"{LABELS}.gz").unlink()  # As after an interrupted download.
    equal(data.load("fashion_mnist"), system)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # As for a user without an entry in passwd.
    equal(data.load("fashion_mnist"), system)
    with pytest.raises(DataError, match="mnist: cannot determine the home folder; specify --data_dir=FOLDER"):
        data.load("mnist")


def test_copies_of_the_files_are_prepared(tmp_path, home, capsys):
    splits = made_idx.write(tmp_path / "source", name=lambda file: file.replace("-idx", ".idx"))
    assert run("mnist", str(tmp_path / "source")) == 0
    equal(data.load("mnist"), splits)
    *warnings, last = capsys.readouterr().err.splitlines()
    assert [line.endswith("differs from the official file's (MD5)") for line in warnings] == [True] * 4
    assert last == f"mnist: 40 train, 20 test in {home}/nutshell_data/mnist"
    assert run("mnist") == 0 and "mnist is already prepared: 40 train" in capsys.readouterr().err
    assert run("mnist", str(tmp_path)) == 0
    assert f"mnist is already prepared (--source={tmp_path} was not read): 40 train" in capsys.readouterr().err
    files = ",".join(str(path) for path in sorted((tmp_path / "source").iterdir()))
    assert run("fashion_mnist", files, str(tmp_path / "new")) == 0
    equal(data.load("fashion_mnist", str(tmp_path / "new")), splits)
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".")]
    with pytest.raises(DataError, match=f"--source={tmp_path} has none of the files train-images-idx3-ubyte"):
        run("fashion_mnist", str(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/source lacks t10k-images"):
        run("fashion_mnist", ",".join(files.split(",")[2:]))
    assert not (home / "nutshell_data" / "fashion_mnist").exists()


def test_the_official_files_give_no_warning(tmp_path, home, monkeypatch, capsys):
    made_idx.write(tmp_path / "source")
    paths = [tmp_path / "source" / f"{name}.gz" for name in idx.NAMES]
    digests = tuple(hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() for path in paths)
    monkeypatch.setitem(idx.MD5, "mnist", digests)
    assert run("mnist", str(tmp_path / "source")) == 0 and "warning" not in capsys.readouterr().err


def test_the_download_is_resumed_at_the_file_that_was_interrupted(tmp_path, home, monkeypatch):
    splits = made_idx.write(tmp_path / "server")
    files = {path.name: path.read_bytes() for path in (tmp_path / "server").iterdir()}
    digests = tuple(hashlib.md5(files[f"{name}.gz"]).hexdigest() for name in idx.NAMES)
    monkeypatch.setitem(prepare_idx.MD5, "fashion_mnist", digests)
    asked = []

    class Handler(Quiet):
        def do_GET(self):
            name = pathlib.PurePosixPath(self.path).name
            first = (name, 0) not in asked
            asked.append((name, self.start))
            self.begin(len(files[name]))
            cut = 1000 if first and name.startswith("t10k-images") else None
            self.wfile.write(files[name][self.start : cut])

    folder = home / "nutshell_data" / "fashion_mnist"
    with serving(Handler) as address:
        monkeypatch.setitem(prepare_idx.URLS, "fashion_mnist", f"{address}/")
        with pytest.raises(DataError, match=f"{address}/t10k-images-idx3-ubyte.gz was interrupted at 1,000 of"):
            run("fashion_mnist")
        assert run("fashion_mnist") == 0
        assert [(name[:8], start) for name, start in asked] == [
            *(("train-im", 0), ("train-la", 0), ("t10k-ima", 0)),
            *(("t10k-ima", 1000), ("t10k-lab", 0)),
        ]
        equal(data.load("fashion_mnist"), splits)
        assert sorted(path.name for path in folder.iterdir()) == sorted(files)
        (folder / "t10k-labels-idx1-ubyte.gz").unlink()
        (folder / f"{IMAGES}.gz").write_bytes(b"other")
        with pytest.raises(DataError, match=f"{IMAGES}.gz is not fashion_mnist's official file .* another --data_dir"):
            run("fashion_mnist")


def test_the_published_names_and_checksums():
    assert idx.CLASSES["fashion_mnist"] == (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    sums = [one for table in (idx.MD5, prepare_idx.MD5) for values in table.values() for one in values]
    assert len(set(sums)) == 16 and all(len(one) == 32 and int(one, 16) for one in sums)
    assert prepare_idx.URLS.keys() == prepare_idx.MD5.keys() == idx.MD5.keys() == prepare_idx.OTHERWISE.keys()


@pytest.mark.parametrize(
    "setup, config",
    [(classification, ClassifyConfig), (generation, GenerateConfig), (reconstruction, ReconstructConfig)],
)
def test_the_commands_load_the_data_set(tmp_path, setup, config):
    splits = made_idx.write(tmp_path)
    dataset = setup.load_dataset(config(workdir="W", dataset="fashion_mnist", data_dir=str(tmp_path), val_fraction=0.5))
    assert {split: len(labels) for split, (_, labels) in dataset.splits.items()} == {"train": 20, "val": 20, "test": 20}
    assert dataset.class_names == idx.CLASSES["fashion_mnist"]
    np.testing.assert_array_equal(np.sort(dataset.splits["test"][1]), np.sort(splits["test"][1]))


@pytest.mark.slow
def test_class_names_with_a_slash_and_spaces(start, tmp_path):
    splits = made_idx.write(tmp_path / "data", train=200, test=100)
    common = [f"--data_dir={tmp_path / 'data'}", "--dataset=fashion_mnist", "--batch_size=20"]

    def done(*arguments):
        result = start(*arguments)
        assert result.returncode == 0, result.stderr
        return result

    done("classify", f"--workdir={tmp_path / 'W'}", *common, "--model=mlp", "--steps=30", "--learning_rate=0.05")
    page = (tmp_path / "W" / "report.html").read_text()
    assert "T-shirt/top" in page and "Ankle boot" in page
    found = json.loads(done("evaluate", f"--workdir={tmp_path / 'W'}").stdout.splitlines()[-1])
    assert found["examples"] == 100 and found["accuracy"] > 0.5
    header, *rows = csv.reader((tmp_path / "W" / "confusion.csv").read_text().splitlines())
    assert tuple(header[1:]) == idx.CLASSES["fashion_mnist"] == tuple(row[0] for row in rows)
    assert sum(int(count) for row in rows for count in row[1:]) == 100
    images, _ = splits["test"]
    Image.fromarray(images[9]).save(tmp_path / "boot.png")
    labelled = done("predict", f"--workdir={tmp_path / 'W'}", tmp_path / "boot.png", "--top=10").stdout
    assert {row["label"] for row in csv.DictReader(io.StringIO(labelled))} == set(idx.CLASSES["fashion_mnist"])
    pair = ["--model=logistic", "--positive=T-shirt/top", "--negative=Ankle boot", "--steps=30"]
    summary = json.loads(done("classify", f"--workdir={tmp_path / 'B'}", *common, *pair).stdout.splitlines()[-1])
    assert summary["examples"] == 20 and summary["accuracy"] > 0.9
    stored = json.loads((tmp_path / "B" / "run.json").read_text())
    assert stored["class_names"] == ["Ankle boot", "T-shirt/top"]
