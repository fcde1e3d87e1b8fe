"""Tests of the folder data set: classes, image modes, corrupt files, the cache, and augmentation."""

import errno
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFile

from data import augment, folder
from data import image_files as encoded
from data.dataset import DataError, pixel_covariance


@pytest.fixture
def image_dir(tmp_path):
    root, random = tmp_path / "images", np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "bird"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (8, 6, 3), dtype=np.uint8))
                image.save(root / split / name / f"{i}.png")
    return root


def test_classes_are_sorted_and_modes_become_rgb(image_dir):
    Image.new("L", (6, 8), 7).save(image_dir / "train" / "cat" / "x.JPG")
    Image.new("CMYK", (6, 8), (255, 0, 0, 0)).save(image_dir / "train" / "cat" / "y.jpeg")
    (image_dir / "train" / "cat" / "notes.txt").write_text("not an image")
    found = folder.load(str(image_dir))
    assert found.class_names == ("bird", "cat")
    images, labels = found.splits["train"]
    assert images.shape == (8, 8, 6, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1, 1, 1])
    assert (images[6] == 7).all() and images[7][..., 0].max() < 60 and images[7][..., 2].min() > 150
    np.testing.assert_array_equal(images[0], np.asarray(Image.open(image_dir / "train" / "bird" / "0.png")))


def test_cache_is_invalidated_by_changed_added_and_removed_files(image_dir, monkeypatch):
    first = folder.load(str(image_dir)).splits["train"][0]
    calls = []
    original = encoded.in_memory
    monkeypatch.setattr(encoded, "in_memory", lambda split, skip: calls.append(split.name) or original(split, skip))
    np.testing.assert_array_equal(folder.load(str(image_dir)).splits["train"][0], first)
    assert calls == []
    path = image_dir / "train" / "cat" / "0.png"
    Image.new("RGB", (6, 8), (1, 2, 3)).save(path)
    assert (folder.load(str(image_dir)).splits["train"][0][3] == (1, 2, 3)).all() and calls == ["train"]
    path.unlink()
    assert len(folder.load(str(image_dir)).splits["train"][1]) == 5 and calls == ["train"] * 2
    cache = image_dir.with_name("images.train.npz")
    content = cache.read_bytes()
    entry = content.find(b"PK\x01\x02")  # In the archive's central directory.
    for damaged in (content[:100], content[: entry + 10] + b"\x07" + content[entry + 11 :]):
        calls.clear()
        cache.write_bytes(damaged)  # Truncated; marked with an unknown compression method.
        assert len(folder.load(str(image_dir)).splits["train"][1]) == 5 and calls == ["train"]


def test_corrupt_images_raise_or_are_skipped(image_dir, capsys):
    (image_dir / "test" / "cat" / "bad.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"bad\.png: .*--skip_corrupt"):
        folder.load(str(image_dir))
    assert len(folder.load(str(image_dir), skip_corrupt=True).splits["test"][1]) == 4
    assert "test: 1 of 5 images skipped" in capsys.readouterr().err
    assert len(folder.load(str(image_dir), skip_corrupt=True).splits["test"][1]) == 4
    assert "test: 1 of 5 images skipped" in capsys.readouterr().err, "also from the cache"


def test_a_read_only_folder_works_without_a_cache(image_dir, monkeypatch, capsys):
    first = folder.load(str(image_dir)).splits["train"][0]
    image_dir.with_name("images.train.npz").unlink()

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(np, "savez", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    np.testing.assert_array_equal(folder.load(str(image_dir)).splits["train"][0], first)
    assert "can't be written (Read-only file system)" in capsys.readouterr().err


def test_cache_files_of_killed_processes_are_removed(image_dir, tmp_path):
    others = [".images.train.npz.0.npz", ".images.test.npz.0.npz", ".images2.train.npz.0.npz", ".images.npz"]
    for name in (*others, ".images.train.npz.1.npz"):  # The last one is still being written.
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, None if name.endswith("1.npz") else (0, 0))
    folder.load(str(image_dir))
    kept = [".images.npz", ".images.train.npz.1.npz", ".images2.train.npz.0.npz"]
    assert sorted(path.name for path in tmp_path.glob(".*")) == kept


PAIR = """
import pathlib, sys, time
from data import folder
from experiments.cli.app import run

def main(argv):
    pathlib.Path(argv[1] + ".ready").touch()
    while not pathlib.Path(sys.argv[3]).exists():
        time.sleep(0.001)
    print(*(images.sum() for images, _ in folder.load(argv[2]).splits.values()))

run(main)
"""


def test_processes_that_write_the_cache_at_the_same_time(image_dir, tmp_path, launch):
    both = [launch(PAIR, tmp_path / name, image_dir, tmp_path / "go") for name in "ab"]
    for process, name in zip(both, "ab", strict=True):
        process.wait_until((tmp_path / f"{name}.ready").exists)
    (tmp_path / "go").touch()
    first, second = (process.wait() for process in both)
    assert first.returncode == 0 and first.stderr == second.stderr == "" and first.stdout == second.stdout != ""
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["images.test.npz", "images.train.npz"]
    assert not list(tmp_path.glob(".*"))


def test_invalid_folders_are_rejected(image_dir, tmp_path):
    with pytest.raises(DataError, match="requires --data_dir"):
        folder.load(None)
    with pytest.raises(DataError, match="no such folder"):
        folder.load(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="contains no images"):
        folder.load(str(image_dir / "train" / "cat"))
    for split in ("train", "test"):
        (image_dir / split / "a\nb").mkdir()
    with pytest.raises(DataError, match=r"'a\\nb' is not printable"):
        folder.load(str(image_dir))
    for split in ("train", "test"):
        (image_dir / split / "a\nb").rmdir()
    Image.new("RGB", (7, 8)).save(image_dir / "train" / "cat" / "other.png")
    with pytest.raises(DataError, match=r"other\.png is 8x7, expected 8x6"):
        folder.load(str(image_dir))
    os.rename(image_dir / "test" / "cat", image_dir / "test" / "dog")
    with pytest.raises(DataError, match=r"differ: \['bird', 'dog'\] and \['bird', 'cat'\]"):
        folder.load(str(image_dir))


def test_hidden_files_are_skipped_and_subfolders_of_classes_are_read(image_dir):
    before = folder.load(str(image_dir))
    for place in (image_dir / "train" / "cat", image_dir / "train" / "cat" / ".cache"):
        place.mkdir(exist_ok=True)
        (place / "._0.png").write_text("written by macOS")
        (place / ".hidden.jpg").write_text("")
    after = folder.load(str(image_dir))
    np.testing.assert_array_equal(after.splits["train"][1], before.splits["train"][1])
    deeper = image_dir / "train" / "cat" / "more" / "b"
    deeper.mkdir(parents=True)
    for suffix in ("webp", "bmp", "gif", "tif", "tiff", "jfif"):
        name, kind = deeper / f"z.{suffix}", {"jfif": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        Image.new("RGB", (6, 8), (9, 99, 199)).save(name, kind)
    (image_dir / "train" / "cat" / ".cache" / "x.png").write_bytes(name.read_bytes())
    images, labels = folder.load(str(image_dir)).splits["train"]
    assert (labels == 1).sum() == (before.splits["train"][1] == 1).sum() + 6
    assert (abs(images[labels == 1].astype(int) - (9, 99, 199)).max((1, 2, 3)) < 12).sum() >= 5  # GIF has a palette.


def test_classes_without_images_are_reported(image_dir, capsys):
    for split in ("train", "test"):
        (image_dir / split / "dog").mkdir()
    (image_dir / "train" / "dog" / "readme.txt").write_text("")
    (image_dir / "train" / "dog" / "a.heic").write_text("")
    assert folder.load(str(image_dir)).class_names == ("bird", "cat", "dog")
    output = capsys.readouterr().err
    assert f"warning: {image_dir / 'train'} has no images of the classes dog (2 other files); images are .jpg" in output
    assert f"warning: {image_dir / 'test'} has no images of the classes dog (0 other files)" in output
    for split in ("train", "test"):
        Image.new("RGB", (6, 8)).save(image_dir / split / "dog" / "a.png")
    folder.load(str(image_dir))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE], ids=lambda n: errno.errorcode[n])
def test_unreadable_files_are_not_reported_as_corrupt(image_dir, monkeypatch, number):
    opened = Image.open

    def fails(file, *arguments, **options):
        if str(file).endswith("cat/1.png"):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", fails)
        with pytest.raises(DataError, match=f"cat/1.png: {os.strerror(number)}$"):
            folder.load(str(image_dir), skip_corrupt=True)
    whole = folder.load(str(image_dir), skip_corrupt=True)
    assert len(whole.splits["train"][1]) == len(folder.load(str(image_dir)).splits["train"][1])


@pytest.mark.parametrize("error", [RuntimeError("a plugin"), NotImplementedError("a pixel format"), TypeError("a tag")])
def test_any_exception_of_a_decoder_is_reported_with_the_file(image_dir, monkeypatch, error):
    original = ImageFile.ImageFile.load_prepare

    def fails(image):
        if image.filename.endswith("cat/1.png"):
            raise error
        original(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", fails)
    with pytest.raises(DataError, match=f"cat/1.png: {error}; --skip_corrupt"):
        folder.load(str(image_dir))
    assert len(folder.load(str(image_dir), skip_corrupt=True).splits["train"][1]) > 1


def test_flip_and_shift_are_drawn_for_each_image():
    image = jax.random.normal(jax.random.key(0), (8, 8, 3))
    keys = jax.random.split(jax.random.key(1), 64)
    found = np.asarray(augment.flip_shift(jnp.repeat(image[None], 64, 0), keys, shift=1))
    allowed = {
        (flip, y, x): np.pad(image[:, ::-1] if flip else image, ((1, 1), (1, 1), (0, 0)))[y : y + 8, x : x + 8]
        for flip in (0, 1)
        for y in range(3)
        for x in range(3)
    }
    hits = {name for one in found for name, value in allowed.items() if np.array_equal(one, value)}
    assert len(hits) > 12 and all(any(np.array_equal(one, v) for v in allowed.values()) for one in found)
    reflected = np.asarray(augment.flip_shift(jnp.ones((64, 8, 8, 3)), keys, shift=2, reflect=True))
    assert (reflected == 1).all()


def test_cutout_and_crops():
    keys = jax.random.split(jax.random.key(1), 64)
    found = np.asarray(augment.flip_shift(jnp.ones((64, 8, 8, 3)), keys, shift=0, cutout=4))
    blank = (found == 0).all(-1).sum((1, 2))
    assert blank.max() == 16 and blank.min() >= 4 and len(set(blank)) > 2
    ramp = jnp.arange(64.0).reshape(1, 8, 8, 1)
    crops = np.asarray(augment.flip_crop(jnp.repeat(ramp, 64, 0), keys, size=6))
    assert crops.shape == (64, 6, 6, 1) and len({crop.tobytes() for crop in crops}) > 12
    np.testing.assert_array_equal(augment.center_crop(ramp, 6), ramp[:, 1:7, 1:7])
    views = augment.ten_views(jnp.concatenate([ramp, -ramp]), 6)
    assert views.shape == (10, 2, 6, 6, 1)
    np.testing.assert_array_equal(views[4, 1], -ramp[0, 1:7, 1:7])
    np.testing.assert_array_equal(views[5, 0], ramp[0, :6, 5::-1])


def test_flip_shift_views():
    images = np.arange(2 * 3 * 4 * 1, dtype=np.float32).reshape(2, 3, 4, 1)
    views = np.asarray(augment.flip_shift_views(images))
    assert views.shape == (6, 2, 3, 4, 1)
    np.testing.assert_array_equal(views[0], images)
    np.testing.assert_array_equal(views[1][:, 1:, 1:], images[:, :-1, :-1])
    np.testing.assert_array_equal(views[1][:, 0, 1:], images[:, 1, :-1])  # The reflected row.
    np.testing.assert_array_equal(views[2][:, :-1, :-1], images[:, 1:, 1:])
    np.testing.assert_array_equal(views[3:], views[:3, :, :, ::-1])


def test_a_flat_split_with_a_label_file(image_dir, capsys):
    flat, labels = image_dir / "val", image_dir / "val.txt"
    flat.mkdir()
    for name in ("a b.png", "c.png", "d.png"):
        Image.new("RGB", (6, 8), (9, 9, 9)).save(flat / name)
    assert sorted(folder.load(str(image_dir)).splits) == ["test", "train"]
    assert "val is skipped: it has no class folders" in capsys.readouterr().err
    for lines in (
        "a b.png cat\n\n/some where/else/c.png bird\nd.png bird\nnot_here.png cat\n",
        "a b.png 1\nc.png 0\nd.png 0",
    ):
        labels.write_text(lines)
        found = folder.load(str(image_dir))
        np.testing.assert_array_equal(found.splits["val"][1], [1, 0, 0])
        assert sorted(found.splits) == ["test", "train", "val"]
        output = capsys.readouterr().err
        assert ("val.txt lists 1 images that do not exist" in output) == ("not_here" in lines)
    for line, wrong in (("c.png 2", "'c.png 2'"), ("c.png 0", "'c.png 0'"), ("c" * 90, f"'{'c' * 80} ...'")):
        labels.write_text(f"a b.png cat\n{line}\n")
        message = f"val.txt, line 2: {wrong} does not end with one of the 2 classes"
        with pytest.raises(DataError, match=re.escape(message)):
            folder.load(str(image_dir))
    labels.write_text("a b.png cat\nc.png cat\nd.png cat\nc.png bird\n")
    with pytest.raises(DataError, match=r"val\.txt lists c\.png with two classes, cat and bird"):
        folder.load(str(image_dir))
    labels.write_text("a b.png cat\n")
    with pytest.raises(DataError, match=r"lists no class for c\.png and 1 more"):
        folder.load(str(image_dir))


def test_class_names_that_are_numbers_or_contain_spaces(tmp_path):
    names, paths, labels = ("1", "2", "3 4", "4", "5 "), ["a.png", "b c.png", "d.png"], tmp_path / "val.txt"
    for lines, expected in (
        ("a.png 0\nb c.png 1\nd.png 3", [0, 1, 3]),  # Indices, since no class is named 0.
        ("a.png 1\nb c.png 2\nd.png 2", [0, 1, 1]),  # Names, if both are possible.
        ("a.png 3 4\nb c.png 4\nd.png 1", [2, 3, 0]),
        ("a.png 4 \nb c.png 5 \nd.png  1  ", [3, 4, 0]),  # Trailing spaces belong to a name that has them.
    ):
        labels.write_text(lines)
        assert folder._labelled(paths, labels, names) == list(zip(paths, expected, strict=True))


def test_color_noise_uses_separate_random_keys():
    key = jax.random.key(3)
    own = jax.random.key_data(jax.random.fold_in(key, augment.NOISE_KEY))
    for count in (2, 3):  # The numbers of keys that flips, shifts, crops and cutouts use.
        assert not (jax.random.key_data(jax.random.split(key, count)) == own[None]).all(-1).any()


def test_color_noise_follows_the_principal_components():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(5000, 3)) @ np.array([[30.0, 28.0, 26.0], [0.0, 9.0, -8.0], [0.0, 0.0, 3.0]])
    covariance = pixel_covariance(np.clip(pixels + 120, 0, 255).astype(np.uint8).reshape(50, 10, 10, 3))
    np.testing.assert_allclose(covariance, np.cov(pixels, rowvar=False), rtol=0.05, atol=5)
    std, keys = np.sqrt(np.diag(covariance)), jax.random.split(jax.random.key(0), 4000)
    changed = augment.colour_noise(jnp.zeros((4000, 2, 1, 3)), keys, covariance=covariance, std=std, scale=0.1)
    assert (changed[:, 0] == changed[:, 1]).all()
    shifts = np.asarray(changed[:, 0, 0]) * std
    np.testing.assert_allclose(np.cov(shifts, rowvar=False), 0.01 * np.asarray(covariance), rtol=0.1, atol=0.3)
