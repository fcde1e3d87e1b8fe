"""Tests of mnist5k, the order of batches, augmentation and the decoding of image files."""

import re
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import data
from data import augment, batches, decode
from data import mnist5k as mnist5k_module
from data.dataset import DataError, binary_task, pixel_statistics


def test_mnist5k_is_split_by_class(mnist5k):
    assert {name: images.shape for name, (images, _) in mnist5k.splits.items()} == {
        "train": (4000, 28, 28, 1),
        "test": (1000, 28, 28, 1),
    }
    for split, count in (("train", 400), ("test", 100)):
        np.testing.assert_array_equal(np.bincount(mnist5k.splits[split][1]), [count] * 10)
    train = {image.tobytes() for image in mnist5k.splits["train"][0]}
    assert not any(image.tobytes() in train for image in mnist5k.splits["test"][0])


@pytest.mark.parametrize("damaged", [slice(20000, None), slice(100, 140), slice(2000, 2040)])
def test_a_damaged_mnist5k_is_an_error_of_one_line(tmp_path, monkeypatch, damaged):
    """A truncated file, and zeros where zlib or the checksum notices them."""
    content, path = bytearray(mnist5k_module._file().read_bytes()), tmp_path / "damaged.csv.gz"
    content[damaged] = bytes(40 if damaged.stop else 0)
    path.write_bytes(content)
    monkeypatch.setattr(mnist5k_module, "_file", lambda: path)
    with pytest.raises(DataError, match=f"cannot read mnist5k from {path}: ") as caught:
        mnist5k_module.load()
    assert "\n" not in str(caught.value)


def test_binary_task(mnist5k):
    pair = binary_task(mnist5k, "3", "8")
    assert pair.class_names == ("8", "3") and len(pair.splits["train"][1]) == 800
    rest = binary_task(mnist5k, "3")
    assert rest.splits["test"][1].sum() == 100 and len(rest.splits["test"][1]) == 1000
    with pytest.raises(ValueError, match="no class '11'"):
        binary_task(mnist5k, "11")
    images, labels = mnist5k.splits["test"]
    few = mnist5k._replace(splits=mnist5k.splits | {"test": (images[labels == 5], labels[labels == 5])})
    with pytest.raises(DataError, match="mnist5k: the split test has no images of 3 and 8"):
        binary_task(few, "3", "8")


def test_order_is_a_pure_function_of_seed_and_epoch():
    stream = [np.concatenate([batches.rows(3, step, batch_size=7, examples=20) for step in range(20)])]
    stream.append(np.concatenate([batches.rows(3, step, batch_size=10, examples=20) for step in range(14)]))
    np.testing.assert_array_equal(*stream)  # The order does not depend on the batch size.
    for epoch in range(7):
        np.testing.assert_array_equal(np.sort(stream[0][20 * epoch : 20 * epoch + 20]), np.arange(20))
    assert (batches.order(3, 0, examples=20) != batches.order(3, 1, examples=20)).any()
    assert (batches.order(3, 0, examples=20) != batches.order(4, 0, examples=20)).any()


def test_training_batches_can_start_at_any_step():
    images, labels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1), np.arange(10, dtype=np.int32)
    whole = batches.train_batches(images, labels, batch_size=4, seed=0)
    for _ in range(3):
        next(whole)
    again = batches.train_batches(images, labels, batch_size=4, seed=0, start=3)
    for _ in range(4):
        np.testing.assert_array_equal(next(whole)["label"], next(again)["label"])


def test_two_epochs_show_both_views_of_every_image():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 1), np.uint8)
    images[:, :, 1] += 100
    labels = np.arange(30, dtype=np.int32)

    def take(steps, start=0, part=(0, 1)):
        stream = batches.train_batches(images, labels, batch_size=8, seed=1, start=start, part=part, flip=True)
        return [next(stream) for _ in range(steps)]

    seen = take(8)  # Two epochs of 30 examples and part of the third.
    turned = np.concatenate([batch["image"][:, 0, 0, 0] >= 100 for batch in seen])
    shown = np.concatenate([batch["label"] for batch in seen])
    np.testing.assert_array_equal(np.concatenate([b["image"][:, 0].min((1, 2)) for b in seen]), shown)
    first, second = (dict(zip(shown[i : i + 30], turned[i : i + 30], strict=True)) for i in (0, 30))
    assert 5 < sum(first.values()) < 25 and first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)
    np.testing.assert_array_equal(take(1, start=4)[0]["image"], seen[4]["image"])
    halves = [take(4, part=(i, 2))[3]["image"] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), seen[3]["image"])
    assert (images[:, 0, 0, 0] < 100).all()


@pytest.mark.parametrize("batch_size", [1, 3, 10, 16])
def test_evaluation_counts_every_example_once(batch_size):
    images, labels = np.ones((10, 2, 2, 1), np.uint8), np.arange(10, dtype=np.int32)
    parts = list(batches.eval_batches(images, labels, batch_size=batch_size))
    assert all(len(part["label"]) == batch_size for part in parts)
    seen = np.concatenate([part["label"][part["mask"] == 1] for part in parts])
    np.testing.assert_array_equal(seen, labels)


def test_augmentation_is_drawn_for_each_image_and_can_be_the_identity(mnist5k):
    image = mnist5k.splits["train"][0][:1]
    keys = jax.random.split(jax.random.key(0), 3)
    same = augment.digits(np.repeat(image, 3, 0), keys, shift=0.0, degrees=0.0, scale=0.0)
    np.testing.assert_allclose(same, np.repeat(image, 3, 0), atol=1e-3)
    changed = np.asarray(augment.digits(np.repeat(image, 3, 0), keys))
    assert np.abs(changed[0] - changed[1]).max() > 10 and changed.min() >= 0 and changed.max() <= 255.01


def test_normalization(mnist5k):
    images = mnist5k.splits["train"][0]
    mean, std = pixel_statistics(images)
    normal = np.asarray(augment.normalize(images, mean, std), np.float64)
    assert abs(normal.mean()) < 1e-3 and abs(normal.std() - 1) < 1e-3


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_image_modes_are_converted(tmp_path, mode):
    gray = np.zeros((40, 30), np.uint8)
    gray[10:30, 5:15] = 255 if mode == "1" else 128
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(gray).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    for channels in (1, 3):
        found = decode.read_image(str(path), channels=channels, crop=decode.whole((40, 30)))
        assert found.shape == (40, 30, channels) and found.dtype == np.uint8
        np.testing.assert_allclose(found[..., 0], gray, atol=3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_cropping(tmp_path, suffix, orientation):
    """Including TIFF, which Pillow rotates itself, but only when its pixels are read."""
    upright = np.zeros((60, 20, 3), np.uint8)
    upright[:30], upright[:, 10:, 1] = (255, 0, 0), 255
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    image, exif = Image.fromarray(upright), Image.Exif()
    stored = image if orientation == 1 else image.transpose(decode.TURNS[undo])
    exif[decode.ORIENTATION] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    seen = []

    def middle(height, width):
        seen.append((height, width))
        return (0, 20, width, 40), (20, 20)

    found = decode.read_image(str(tmp_path / f"a.{suffix}"), channels=3, crop=middle)
    assert seen == [(60, 20)]
    for (y, x), color in {
        (3, 3): (255, 0, 0),
        (3, 16): (255, 255, 0),
        (16, 3): (0, 0, 0),
        (16, 16): (0, 255, 0),
    }.items():
        np.testing.assert_allclose(found[y, x], color, atol=60 if suffix in ("jpg", "webp") else 0)


def gray_png(bits: int, values, clear: int) -> bytes:
    """A grayscale PNG of one row of `values`, in which the value `clear` is transparent."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = int("".join(f"{value:0{bits}b}" for value in values).ljust(64, "0"), 2).to_bytes(8)[
        : -(-len(values) * bits // 8)
    ]
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(">H", clear), b"IDAT": zlib.compress(b"\0" + row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_gray_image_becomes_black(tmp_path, bits):
    most = 2**bits - 1
    (tmp_path / "a.png").write_bytes(gray_png(bits, [most, most - 1, 0], most))
    found = decode.read_image(str(tmp_path / "a.png"), channels=1)
    np.testing.assert_array_equal(found[0, :, 0], [0, round(255 * (most - 1) / most), 0])


def test_pixels_without_a_defined_white_level_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(path)
    np.testing.assert_array_equal(decode.read_image(str(path), channels=1)[0, :, 0], [0, 128, 255])
    for values, message in {
        "0 1 2": "floating-point pixels from 0 to 2, expected 0 (black) to 1 (white)",
        "-1 0 1": "floating-point pixels from -1 to 1",
        "nan 0 1": "floating-point pixels from nan to nan",
    }.items():
        Image.fromarray(np.array([values.split()], np.float32)).save(path)
        with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
            decode.read_image(str(path), channels=1)
    Image.fromarray(np.array([[0, 128, 255]], np.int32)).save(path)
    with pytest.raises(DataError, match="signed or 32-bit pixels, whose white level is unknown"):
        decode.read_image(str(path), channels=1)


def test_exif_rotation_and_resizing(tmp_path):
    gray = np.zeros((40, 20), np.uint8)
    gray[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    Image.fromarray(gray).save(tmp_path / "a.png", exif=exif)
    found = decode.read_image(str(tmp_path / "a.png"), channels=1, crop=decode.whole((8, 4)))
    assert found[-1].min() > 200 and found[0].max() < 50


def test_invalid_image_files_are_named(tmp_path):
    for name, content in (("text.png", b"hello"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            decode.read_image(str(tmp_path / name), channels=1, crop=decode.whole((8, 8)))
    with pytest.raises(DataError, match="absent.png"):
        decode.read_image(str(tmp_path / "absent.png"), channels=1, crop=decode.whole((8, 8)))


def test_an_unknown_data_set_is_refused():
    with pytest.raises(
        ValueError,
        match=r"unknown dataset 'mnst5k'; did you mean mnist5k\? known: cifar10, .*mnist5k, .*tfds:NAME",
    ):
        data.load("mnst5k")
