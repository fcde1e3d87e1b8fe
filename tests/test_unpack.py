"""Tests of unpacking image archives: nested as in ImageNet, malicious names, interrupted and resumed."""

import io
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

import data
from data import folder, store
from data.dataset import DataError
from data.prepare import unpack


def jpeg(value):
    text = io.BytesIO()
    Image.new("RGB", (12, 10), (value, 50, 50)).save(text, "JPEG")
    return text.getvalue()


def add(archive, name, content, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    archive.addfile(info, io.BytesIO(content))


def nested(path, members=()):
    """Writes an archive of two classes with three images each, and `members` in the second."""
    with tarfile.open(path, "w") as outer:
        for i, name in enumerate(("n01", "n02")):
            text = io.BytesIO()
            with tarfile.open(fileobj=text, mode="w") as inner:
                for j in range(3):
                    add(inner, f"{name}_{j}.JPEG", jpeg(40 * i + j))
                for member in members if i else ():
                    add(inner, *member)
            add(outer, f"{name}.tar", text.getvalue())
    return path


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


NESTED = [f"n0{i}/n0{i}_{j}.JPEG" for i in (1, 2) for j in range(3)]


def test_an_archive_of_archives(tmp_path):
    source, target = nested(tmp_path / "train.tar"), tmp_path / "d" / "train"
    assert unpack.unpack(source, tmp_path / "d", split="train") == 6 and files(target) == NESTED
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.JPEG")}
    assert unpack.unpack(source, tmp_path / "d", split="train") == 6
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*.JPEG")} == before
    found = folder.load(str(tmp_path / "d"))
    assert found.class_names == ("n01", "n02") and len(found.splits["train"][1]) == 6


def test_nothing_is_written_outside_the_folder(tmp_path, capsys):
    outside = tmp_path / "outside.JPEG"
    bad = [
        ("../../outside.JPEG", jpeg(1)),
        (str(outside), jpeg(1)),
        ("link.JPEG", b"", tarfile.SYMTYPE, str(outside)),
        ("hard.JPEG", b"", tarfile.LNKTYPE, "/etc/passwd"),
        ("device.JPEG", b"", tarfile.CHRTYPE),
        (".hidden.JPEG", jpeg(1)),
        ("..", jpeg(1)),
        ("notes.txt", b"text"),
    ]
    target = tmp_path / "d" / "train"
    unpack.unpack(nested(tmp_path / "train.tar", bad), tmp_path / "d", split="train")
    assert files(target) == NESTED and not outside.exists()
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        for name in ("../cat/1.jpg", "a/../../dog/2.jpg", "a/../3.jpg", "/etc/4.jpg", "5.jpg"):
            add(archive, name, jpeg(1))
    unpack.unpack(tmp_path / "flat.tar", tmp_path, split="f")
    assert files(tmp_path / "f") == ["5.jpg"]
    output = capsys.readouterr().err
    assert "skipped: '../cat/1.jpg'" in output and "skipped: 'link.JPEG'" in output


def test_hidden_folders_are_skipped(tmp_path, capsys):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name in ("cat/a.jpg", "cat/.ipynb_checkpoints/x.jpg", "dog/b.jpg", "dog/.ipynb_checkpoints/y.jpg"):
            add(archive, f"./photos/{name}", jpeg(1))
    assert unpack.unpack(tmp_path / "all.tar", tmp_path / "d", split="train", fixed=False) == 2
    assert files(tmp_path / "d") == ["train/cat/a.jpg", "train/dog/b.jpg"]
    assert "skipped: './photos/cat/.ipynb_checkpoints/x.jpg'" in capsys.readouterr().err


def test_splits_and_classes_are_never_mixed(tmp_path):
    source = tmp_path / "all.tar"
    with tarfile.open(source, "w") as archive:
        for split in ("train", "test"):
            for i, name in enumerate(("bird's (1)", "cat, & dog")):
                add(archive, f"cifar10/{split}/{name}/0 (2).jpg", jpeg(10 * i + len(split)))
    assert unpack.unpack(source, tmp_path / "d", split="train", fixed=False) == 4
    assert files(tmp_path / "d") == [
        f"{split}/{name}/0 (2).jpg" for split in ("test", "train") for name in ("bird's (1)", "cat, & dog")
    ]
    with pytest.raises(DataError, match="cifar10/train/.* and .*cifar10/test/.* would both be unpacked to"):
        unpack.unpack(source, tmp_path / "e", split="train")


def test_a_flat_split_is_not_a_class(tmp_path):
    source = tmp_path / "all.tar"
    with tarfile.open(source, "w") as archive:
        for name in ("train/cat/0.JPEG", "train/val/1.JPEG", "val/2.JPEG", "val/3.JPEG"):  # A class may be called val.
            add(archive, f"./{name}", jpeg(10))
        add(archive, "./val.txt", b"2.JPEG cat\n3.JPEG val\n")
        add(archive, "./other.txt", b"x")
    assert unpack.unpack(source, tmp_path / "d", split="train", fixed=False) == 4
    assert files(tmp_path / "d") == ["train/cat/0.JPEG", "train/val/1.JPEG", "val.txt", "val/2.JPEG", "val/3.JPEG"]
    found = folder.load(str(tmp_path / "d"))
    assert found.class_names == ("cat", "val") and found.splits["val"][1].tolist() == [0, 1]


def test_an_interrupted_unpack_resumes(tmp_path, monkeypatch):
    source, target = nested(tmp_path / "train.tar"), tmp_path / "train"
    original, calls = unpack.write, []

    def stops(stream, size, path):
        calls.append(path.name)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return original(stream, size, path)

    monkeypatch.setattr(unpack, "write", stops)
    with pytest.raises(OSError, match="No space left"):
        unpack.unpack(source, tmp_path, split="train")
    assert [path.name for path in target.iterdir() if not path.name.startswith(".")] == ["n01"]
    assert unpack.unpack(source, tmp_path, split="train") == 6 and files(target) == NESTED
    assert len(calls) == 8, "the complete class must not be written again"


def test_invalid_archives_are_rejected(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    whole = nested(tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        add(archive, "notes.txt", b"text")
    for name, message in (("a", "can't be read"), ("b", "can't be read"), ("c", "contains no images")):
        with pytest.raises(DataError, match=message):
            unpack.unpack(tmp_path / f"{name}.tar", tmp_path, split=name)
    assert not any(path.name.startswith("n02") for path in (tmp_path / "b").glob("*"))


@pytest.mark.parametrize("kind", ["header", "size"])
def test_impossible_headers_are_one_line_errors(tmp_path, kind):
    member = tarfile.TarInfo("notes.txt")
    if kind == "header":
        member.pax_headers = {"GNU.sparse.size": "abc"}
        content, line = member.tobuf(tarfile.PAX_FORMAT) + bytes(1024), "damaged header at .* bytes"
    else:
        member.size = 2**80
        content, line = member.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "'notes.txt' can't have 1,208,925,819,614,629,1"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "c/1.jpg", jpeg(1))
        end = archive.offset
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:end] + content)
    with pytest.raises(DataError, match=f"a.tar can't be read as a tar archive: {line}"):
        unpack.unpack(tmp_path / "a.tar", tmp_path, split="a")


def test_a_damaged_archive_is_not_read_as_a_shorter_one(tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        for i in range(4):
            add(archive, f"c/{i}.JPEG", jpeg(i))
    with tarfile.open(tmp_path / "whole.tar") as archive:
        third = archive.getmembers()[2].offset
    whole = (tmp_path / "whole.tar").read_bytes()
    damaged = bytearray(whole)
    damaged[third + 150] ^= 1  # In the checksum of the third member.
    for name, content in (("flipped", bytes(damaged)), ("inside", whole[: third + 99]), ("between", whole[:third])):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}.tar can't be read as a tar archive: .* after {third:,} bytes"):
            unpack.unpack(tmp_path / f"{name}.tar", tmp_path, split=name)
    assert unpack.unpack(tmp_path / "whole.tar", tmp_path, split="whole") == 4
    (tmp_path / "text.tar").write_bytes(b"no archive")
    with pytest.raises(DataError) as raised:
        unpack.unpack(tmp_path / "text.tar", tmp_path, split="text")
    assert len(str(raised.value).splitlines()) == 1


def test_names_that_cannot_be_files_are_refused(tmp_path):
    for i, names in enumerate((["a.jpg", "a.jpg/1.jpg"], ["a.jpg/1.jpg", "a.jpg"], ["c/" + "a" * 300 + ".jpg"])):
        with tarfile.open(tmp_path / f"{i}.tar", "w") as archive:
            for name in names:
                add(archive, name, jpeg(1))
        with pytest.raises(
            DataError, match=rf"{i}\.tar can't be unpacked: .*a\.jpg.*: (File exists|Is a dir|File name too)"
        ):
            unpack.unpack(tmp_path / f"{i}.tar", tmp_path, split=f"s{i}")


def test_nested_archives_with_an_uppercase_suffix(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        add(archive, "1.JPEG", jpeg(1))
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        add(archive, "N01.TAR", inner.getvalue())
    assert unpack.unpack(tmp_path / "train.tar", tmp_path, split="t") == 1 and files(tmp_path / "t") == ["N01/1.JPEG"]


def test_the_split_follows_from_the_archives_name():
    names = {"latest_pictures.tar": "train", "ILSVRC2012_img_val.tar": "val", "festival-TEST.tar": "test"}
    names |= {"validation.tar": "val", "valid.tar": "val", "my_testing.tgz": "test", "tested.tar": "train"}
    assert {name: unpack.split_of(name) for name in names} == names


def test_shards_are_read_like_the_folder(tmp_path, start):
    unpack.unpack(nested(tmp_path / "t.tar"), tmp_path / "d", split="train")
    _, listed, names = folder.listing(str(tmp_path / "d"))
    store.write_image_files(tmp_path / "s", "pictures", listed, names)
    ours = data.load("tfds:pictures", str(tmp_path / "s"))
    theirs = data.load("folder", str(tmp_path / "d"))
    assert ours.class_names == theirs.class_names

    def rows(dataset):
        images, labels = dataset.splits["train"]
        return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))

    arguments = ["--dataset=folder", f"--data_dir={tmp_path / 'd'}", f"--shards={tmp_path / 's'}"]
    again = start("prepare", *arguments, f"--source={tmp_path / 't.tar'}", "--split=val")
    assert again.returncode == 0 and "already exists and is left unchanged" in again.stderr
    assert files(tmp_path / "d" / "val") == NESTED
    refused = start("prepare", *arguments, "--split=a/b", f"--source={tmp_path / 't.tar'}")
    assert refused.returncode == 2 and "--split=a/b" in refused.stderr
    full = start("prepare", *arguments[:2], f"--shards={tmp_path / 'full'}", file_limit=4 << 10)
    assert full.returncode == 1 and "can't be written" in full.stderr and "Traceback" not in full.stderr, full.stderr
    assert rows(ours) == rows(theirs) and isinstance(ours.splits["train"][0], np.ndarray)
    assert pathlib.Path(tmp_path / "s" / "pictures" / "1.0.0").is_dir()
