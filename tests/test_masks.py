"""Tests of images with annotations of one's own: pairs of files, classes.txt, decoding, colors and errors."""

import csv
import pathlib
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image
from results import result, same

from data import annotations, masks
from data.dataset import DataError
from experiments.cli.app import UsageError
from experiments.cli.config import SegmentConfig
from experiments.reporting import segmentation_report
from experiments.setup import segmentation
from experiments.setup.experiment import SegmentationInfo

SHAPE = 6, 8
RGB = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 0, 255), 255: (255, 255, 255)}
NAMES = "background\ndisk\nsquare\n"
COLOURS = "background 0 0 0\ndisk 255 0 0\nsquare 0 0 255\nvoid 255 255 255\n"


def label(i):
    """The labels of image i: background, a disk (1) or a square (2), and ignored pixels."""
    found = np.zeros(SHAPE, np.uint8)
    found[1:4, 1 + i : 4 + i] = 1 + i % 2
    found[5] = 255
    return found


def write(root, *, splits=(("train", 3), ("test", 2)), suffix="png", save=None, classes=NAMES):
    """Writes a data set whose annotations are gray images, or written by `save(labels, path)`."""
    save = save or (lambda labels, path: Image.fromarray(labels).save(path))
    random = np.random.default_rng(0)
    for split, count in splits:
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 60, (*SHAPE, 3)) + 60 * np.minimum(label(i), 2)[..., None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"{split} {i}.{suffix}")
            save(label(i), root / f"{split}annot" / f"{split} {i}.png")
    if classes:
        (root / masks.FILE).write_text(classes)
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "data")


def save_palette(labels, path, bits=8):
    image = Image.fromarray(labels)
    image.putpalette([channel for i in range(256) for channel in RGB.get(i, (i, i, 90))])
    image.save(path, bits=bits)


def save_colours(labels, path, mode="RGB"):
    pixels = np.zeros((*labels.shape, 3), np.uint8)
    for value, colour in RGB.items():
        pixels[labels == value] = colour
    Image.fromarray(pixels).convert(mode).save(path)


def test_pairs_and_classes(root):
    (root / "train" / ".hidden.png").write_text("")
    (root / "trainannot" / "._train 0.png").write_text("")
    (root / "train" / "notes.txt").write_text("")
    found = masks.load(str(root))
    assert found.name == "masks" and sorted(found.splits) == ["test", "train"]
    assert found.class_names == ("background", "disk", "square")
    assert (found.class_colours, found.class_values) == ((), ())
    images, labels = found.splits["train"]
    assert images.shape == (3, *SHAPE, 3) and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [label(0), label(1), label(2)])
    np.testing.assert_array_equal(images[1], np.asarray(Image.open(root / "train" / "train 1.png")))
    images, small = masks.load(str(root), size=(3, 4)).splits["train"]
    assert images.shape == (3, 3, 4, 3)
    assert all(np.isin(small[0, y, x], labels[0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]) for y, x in np.ndindex(3, 4))
    assert list(masks.load(str(root), split="test").splits) == ["test"]
    assert sorted(masks.load(str(root), split="val").splits) == ["test", "train"]  # To be held out of train.


@pytest.mark.parametrize(
    ("kind", "bits"), [*(("grey", bits) for bits in (1, 2, 4, 8, 16)), *(("palette", bits) for bits in (1, 2, 4, 8))]
)
def test_indices_of_any_number_of_bits(kind, bits, root):
    """PNG files of 1, 2, 4, 8 and 16 bits; Pillow reads gray values of 2 and 4 bits times 85 and 17, and writes them
    with 8 bits, so that the file is made by hand."""
    labels, path = np.minimum(label(1), 1 if bits == 1 else 2), root / "testannot" / "test 1.png"
    if kind == "palette":
        save_palette(labels, path, bits)
    elif bits == 16:
        Image.fromarray(labels.astype(np.uint16)).save(path)
    else:
        path.write_bytes(grey_png(labels, bits))
    with Image.open(path) as image:
        assert image.mode == {"palette": "P", "grey": {1: "1", 16: "I;16"}.get(bits, "L")}[kind]
    np.testing.assert_array_equal(masks.load(str(root)).splits["test"][1][1], labels)


def grey_png(values, bits):
    """A gray PNG file with the given number of bits per pixel."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    expanded = np.unpackbits(values[..., None], axis=-1)[..., -bits:]
    rows = np.packbits(expanded.reshape(len(values), -1), axis=-1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_classes(mode, tmp_path):
    write(tmp_path, save=lambda labels, path: save_colours(labels, path, mode), classes=COLOURS)
    found = masks.load(str(tmp_path))
    assert found.class_names == ("background", "disk", "square")
    assert found.class_colours == (RGB[0], RGB[1], RGB[2])
    np.testing.assert_array_equal(found.splits["train"][1], [label(0), label(1), label(2)])


def test_black_and_white_masks_are_read_by_their_colours(tmp_path):
    """As annotation tools write them; 255 would be ignored as an index."""

    def save(labels, path):
        Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8)).convert("1").convert("L").save(path)

    write(tmp_path, save=save, classes="nothing 0 0 0\nthing 255 255 255")
    np.testing.assert_array_equal(masks.load(str(tmp_path)).splits["train"][1][0], label(0) == 1)
    (tmp_path / masks.FILE).write_text("nothing\nthing")
    with pytest.raises(DataError, match="only one class occurs in train, nothing; if the pixel value 255 is a class"):
        masks.load(str(tmp_path))
    (tmp_path / masks.FILE).unlink()
    with pytest.raises(DataError, match="train in .* have the values 0, 255.*; without classes.txt they must be 0, 1"):
        masks.load(str(tmp_path))
    path = tmp_path / "trainannot" / "train 0.png"
    stray = np.array(Image.open(path)) // 255
    stray[2, 3] = 7
    Image.fromarray(stray).save(path)
    with pytest.raises(DataError, match=rf"values 0, 1, 7, 255 \(7 first in {path}\); without classes"):
        masks.load(str(tmp_path))
    Image.fromarray(255 * (stray == 1).astype(np.uint8)).save(path)
    Image.open(path).resize((80, 60), Image.Resampling.BICUBIC).save(path)
    with pytest.raises(DataError, match="values 0, 1, .*; they were probably smoothed, or compressed with loss"):
        masks.load(str(tmp_path))


def test_classes_without_a_file_are_numbers(tmp_path, capsys):
    write(tmp_path, classes=None)
    assert masks.load(str(tmp_path)).class_names == ("0", "1", "2")
    assert "has no classes.txt: classes are the labels 0 to 2 of train" in capsys.readouterr().err
    # A trained network's classes, if train is absent.
    assert masks.load(str(tmp_path), split="test").class_names == ("0", "1", "2")
    for path in (*tmp_path.glob("train*/*"), *tmp_path.glob("train*")):
        path.unlink() if path.is_file() else path.rmdir()
    numbers = tuple(map(str, range(5)))
    assert masks.load(str(tmp_path), split="test", class_names=numbers).class_names == numbers
    with pytest.raises(DataError, match="has neither a file classes.txt nor a split train; list the classes in"):
        masks.load(str(tmp_path), split="test", class_names=("a", "b"))


def test_void_may_have_any_index(root):
    (root / masks.FILE).write_text("# A comment is not counted.\nVoid\n\nfirst\nsecond\n")
    found = masks.load(str(root))
    assert (found.class_names, found.class_values) == (("first", "second"), (1, 2))
    labels = found.splits["train"][1][1]
    np.testing.assert_array_equal(labels, np.select([label(1) == 1, label(1) == 2], [0, 1], 255))
    # Predictions are written with the indices of the annotations.
    info = SegmentationInfo((*SHAPE, 3), (0,) * 3, (1,) * 3, found.class_names, (1, 1), (), found.class_values)
    place = root / "predictions"
    place.mkdir()
    files, predicted = [str(root / "train" / "train 1.png")], np.minimum(labels, 1)[None]
    (_, mask, _), *_ = segmentation_report.write_masks(place, files, predicted, info, set())
    with Image.open(mask) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), predicted[0] + 1)
        colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colours, segmentation_report.palette(info)[predicted[0]])


def test_255_classes(tmp_path):
    def save(labels, path):
        values = np.arange(labels.size).reshape(labels.shape) + (208 if path.stem == "train 1" else 0)
        Image.fromarray(np.minimum(values, 255).astype(np.uint8)).save(path)

    write(tmp_path, save=save, classes="\n".join(f"class {i}" for i in range(255)))
    labels = masks.load(str(tmp_path)).splits["train"][1]
    assert labels[1].max() == 255 and 254 in labels[1]
    (tmp_path / masks.FILE).write_text("\n".join(f"class {i}" for i in range(256)))
    with pytest.raises(DataError, match=r"classes\.txt, line 256: 'class 255' is one class too many: at most 255 are"):
        masks.load(str(tmp_path))
    lines = [f"class{i} {i % 256} {i // 256} 7" for i in range(256)]
    (tmp_path / masks.FILE).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 256: 'class255 255 0 7' is one class too many"):
        masks.load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must list at least two classes besides void; it lists none"),
        ("cat\nvoid", "it lists cat"),
        ("cat\ncat", r"classes\.txt, line 2: 'cat' repeats the name"),
        ("cat 0 0 0\ndog", "line 2: 'dog' has no color R G B, although other lines have one"),
        ("0 0 0 cat\n1 1 1 dog", "line 1: '0 0 0 cat': the color must follow the name, as NAME R G B"),
        ("name,r,g,b\ncat,0,0,0", "line 1: 'name,r,g,b' has no color R G B, although other lines have one"),
        ("cat 0 0 0\ndog 0 0 0", "line 2: 'dog 0 0 0' repeats the color of another class"),
        ("cat 0 0 256\ndog 0 0 0", "line 1: .* numbers of a color must be between 0 and 255"),
        ("cat\n\tb\x07c", "line 2: .* is not printable"),
    ],
)
def test_errors_in_the_file_of_classes(text, message, root):
    (root / masks.FILE).write_text(text)
    with pytest.raises(DataError, match=message):
        masks.load(str(root))


def test_names_of_classes_and_files_in_either_unicode_normalization_form(root):
    decomposed = unicodedata.normalize("NFD", "caf\u00e9")
    (root / masks.FILE).write_bytes(b"\xef\xbb\xbf" + f"{decomposed} au lait\ncup 1 \ntable".encode())
    (root / "train" / "train 0.png").rename(root / "train" / "caf\u00e9.png")
    (root / "trainannot" / "train 0.png").rename(root / "trainannot" / f"{decomposed}.png")
    found = masks.load(str(root))
    assert found.class_names == ("caf\u00e9 au lait", "cup 1", "table")
    np.testing.assert_array_equal(found.splits["train"][1][0], label(0))


def value(path, number, dtype=np.uint8):
    Image.fromarray(np.full(SHAPE, number, dtype)).save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda at: at("train/train 1.png").unlink(),
            "trainannot/train 1.png has no image .*/train 1.jpg or png",
        ),
        (
            lambda at: [at(f"testannot/test {i}.png").unlink() for i in range(2)],
            "test/test 0.png has no annotation .*/testannot/test 0.png; 1 more files have none",
        ),
        (lambda at: [path.unlink() for path in at("train").iterdir()], "train contains no images"),
        (lambda at: at("train").rename(at("images")), "test"),
        (
            lambda at: value(at("testannot/test 1.png"), 3),
            "test 1.png contains the label 3, expected 0 to 2, or 255",
        ),
        (lambda at: value(at("testannot/test 1.png"), 300, np.uint16), "test 1.png contains the label 300"),
        (
            lambda at: Image.new("RGB", SHAPE[::-1]).save(at("trainannot/train 1.png")),
            "train 1.png: an annotation is an image of class .* not RGB; to read .* R G B; its colors are 0 0 0$",
        ),
        (
            lambda at: Image.new("L", SHAPE[::-1]).save(at("trainannot/train 1.jpg")),
            "trainannot has two files of the name train 1: 'train 1.jpg' and 'train 1.png'",
        ),
        (
            lambda at: at("trainannot/train 1.png").rename(at("trainannot/train 1.jpg")),
            "trainannot/train 1.jpg: an annotation must be a PNG file; formats with lossy",
        ),
        (
            lambda at: Image.new("L", SHAPE[::-1]).save(at("trainannot/train 1.png"), "JPEG"),
            "trainannot/train 1.png is a file in the format JPEG; an annotation must be a PNG file",
        ),
        (
            lambda at: Image.new("L", (8, 7)).save(at("testannot/test 1.png")),
            "test 1.png and its annotation differ in size: 6x8 and 7x8",
        ),
        (
            lambda at: Image.fromarray(np.arange(48, dtype=np.uint8).reshape(SHAPE)).save(at("testannot/test 1.png")),
            "contains the label 3, expected 0 to 2, or 255 for void, in row 0, column 3 .*; it was probably smoothed",
        ),
        (lambda at: at("testannot/test 1.png").write_text("text"), "test 1.png: not a readable image"),
        (lambda at: [value(path, 1) for path in at("trainannot").iterdir()], "only one class occurs in train, disk"),
    ],
)
def test_errors_name_the_file_and_the_problem(root, change, message, capsys):
    change(lambda name: root / name)
    if message == "test":  # Folders without a counterpart are skipped.
        assert list(masks.load(str(root)).splits) == ["test"]
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            f"{root / 'images'} is skipped: there is no folder {root / 'imagesannot'}",
            f"{root / 'trainannot'} is skipped: there is no folder {root / 'train'}",
        ]
        return
    with pytest.raises(DataError, match=message):
        masks.load(str(root))


def test_errors_in_colours(tmp_path):
    write(tmp_path, save=save_colours, classes=COLOURS)
    path = tmp_path / "trainannot" / "train 1.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[2, 3] = 9, 8, 7
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=r"train 1.png: the color 9 8 7 in row 2, column 3 .* is not listed in .*txt$"):
        masks.load(str(tmp_path))
    save_colours(label(1), path)
    Image.open(path).resize((80, 60), Image.Resampling.BILINEAR).save(path)  # Smoothed.
    with pytest.raises(DataError, match="is not listed in .*; it was probably smoothed, or compressed with loss"):
        masks.load(str(tmp_path))
    value(path, 1)
    with pytest.raises(DataError, match="1 1 1 .*; if annotations contain class indices, remove the colors from"):
        masks.load(str(tmp_path))
    value(path, 300, np.uint16)
    with pytest.raises(DataError, match="gray values of 16 bits; an annotation in colors has 8 bits per channel"):
        masks.load(str(tmp_path))
    Image.new("RGBA", SHAPE[::-1], (0, 0, 0, 0)).save(path)
    with pytest.raises(DataError, match="train 1.png has a transparent pixel in row 0, column 0"):
        masks.load(str(tmp_path))


def test_a_rotated_photo_and_its_annotation(tmp_path):
    """A photo with an EXIF orientation is rotated, so that its annotation must be that of the rotated image."""
    write(tmp_path, suffix="jpg")
    exif = Image.Exif()
    exif[annotations.ORIENTATION] = 6
    upright = Image.open(tmp_path / "train" / "train 1.jpg")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "train" / "train 1.jpg", exif=exif, quality=95)
    images, labels = masks.load(str(tmp_path)).splits["train"]
    np.testing.assert_array_equal(labels[1], label(1))
    assert np.abs(images[1].astype(int) - np.asarray(upright)).mean() < 12
    path = tmp_path / "trainannot" / "train 1.png"
    stored = Image.fromarray(label(1)).transpose(Image.Transpose.ROTATE_90)
    stored.save(path)
    with pytest.raises(DataError, match="differ in size: 6x8 and 8x6; the image is rotated by its EXIF orientation"):
        masks.load(str(tmp_path))
    stored.save(path, exif=exif)  # Rotated as well.
    np.testing.assert_array_equal(masks.load(str(tmp_path)).splits["train"][1][1], label(1))


def test_files_outside_the_folder_are_not_read(root, tmp_path):
    outside = tmp_path / "secret.png"
    (root / "trainannot" / "train 0.png").rename(outside)
    (root / "trainannot" / "train 0.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"trainannot/train 0\.png is outside"):
        masks.load(str(root))
    (root / "trainannot").rename(root / "labels")
    (root / "trainannot").symlink_to("labels")  # A link within the folder.
    outside.rename(root / "labels" / "train 0.png")
    assert len(masks.load(str(root)).splits["train"][1]) == 3
    (tmp_path / "names").write_text(NAMES)
    (root / masks.FILE).unlink()
    (root / masks.FILE).symlink_to(tmp_path / "names")
    with pytest.raises(DataError, match=r"classes\.txt is outside"):
        masks.load(str(root))
    link = tmp_path / "link"
    link.symlink_to(root)
    (root / masks.FILE).unlink()
    assert len(masks.load(str(link)).splits["train"][1]) == 3


def test_images_of_several_sizes_and_memory(root, monkeypatch):
    for folder, mode in (("train", "RGB"), ("trainannot", "L")):
        Image.new(mode, (4, 4)).save(root / folder / "train 2.png")
    with pytest.raises(DataError, match=r"train 2\.png is 4x4, but the first image is 6x8; use --image_size"):
        masks.load(str(root))
    assert masks.load(str(root), size=(6, 8)).splits["train"][0].shape == (3, 6, 8, 3)
    monkeypatch.setattr(annotations.os, "sysconf", lambda name: 30)  # Simulates 900 bytes of memory.
    with pytest.raises(DataError, match="5 images of 6x8 pixels would take 0 GB of memory; use --image_size=HEIGHTx"):
        masks.load(str(root))


def test_absent_classes_are_reported(root, capsys):
    (root / masks.FILE).write_text(f"{NAMES}cat\ndog")
    assert len(masks.load(str(root)).class_names) == 5
    assert "has no pixels of the classes cat, dog in train" in capsys.readouterr().err


def test_colours_of_the_figures(tmp_path):
    write(tmp_path, save=save_palette)
    found = masks.load(str(tmp_path))
    assert found.class_colours == (RGB[0], RGB[1], RGB[2])
    np.testing.assert_array_equal(found.splits["train"][1][1], label(1))
    config = SegmentConfig(dataset="masks", data_dir=str(tmp_path))
    info = segmentation.dataset_info(config, found)
    assert (info.class_names, info.class_colours) == (found.class_names, found.class_colours)
    np.testing.assert_array_equal(segmentation_report.palette(info), [*RGB.values()])  # Void is not black here.
    # 31 pixels of each image are background, and 9 a disk or a square.
    assert info.class_weights == pytest.approx((9 / 31, 1, 1))
    with pytest.raises(UsageError, match="--class_weights=published is supported by --dataset=camvid only"):
        segmentation.dataset_info(SegmentConfig(dataset="masks", class_weights="published"), found)
    grey = Image.fromarray(label(0))
    grey.putpalette([i for i in range(256) for _ in range(3)])  # Colors that can't be told apart.
    grey.save(tmp_path / "trainannot" / "train 0.png")
    assert masks.load(str(tmp_path)).class_colours == ()


def test_generated_colours_differ():
    colours = segmentation_report.distinct_colours(255)
    far = np.abs(colours[:, None] - colours).max(2)
    assert colours.shape == (255, 3) and far[~np.eye(255, dtype=bool)].min() >= 19  # As for tab20.
    info = SegmentationInfo((1, 1, 3), (0,) * 3, (1,) * 3, tuple(map(str, range(255))), (1,) * 255)
    assert segmentation_report.palette(info)[255].tolist() == [0, 0, 0] and (colours.max(1) > 20).all()
    info = SegmentationInfo((1, 1, 3), (0,) * 3, (1,) * 3, ("a", "b"), (1, 1), ((0, 0, 0), (255, 255, 255)))
    assert segmentation_report.palette(info)[2].tolist() == [128] * 3  # The color of void.


def test_a_figure_of_many_classes_lists_those_in_it():
    names = tuple(f"class {i}" for i in range(150))
    info = SegmentationInfo((*SHAPE, 3), (0,) * 3, (1,) * 3, names, (1,) * 150)
    images, labels = np.zeros((2, *SHAPE, 3), np.uint8), np.full((2, *SHAPE), 7, np.uint8)
    labels[0, 0], guesses = 255, np.full((2, *SHAPE), 149, np.uint8)
    shown = segmentation_report.figure(images, labels, guesses, info)
    assert [text.get_text() for text in shown.legends[0].get_texts()] == ["class 7", "class 149", "void"]
    colours = [patch.get_facecolor()[:3] for patch in shown.legends[0].get_patches()]
    np.testing.assert_allclose(colours, segmentation_report.palette(info)[[7, 149, 150]] / 255)
    labels[1].flat[:45] = range(20, 65)  # Only the most frequent classes are listed.
    names = [
        text.get_text() for text in segmentation_report.figure(images, labels, guesses, info).legends[0].get_texts()
    ]
    assert names == ["class 7", *(f"class {i}" for i in range(20, 58)), "class 149", "void"]


def test_bad_input_is_one_line(root, start, tmp_path):
    for folder, message in (
        (None, "--dataset=masks requires --data_dir=FOLDER, which contains SPLIT/.*png and classes.txt"),
        (tmp_path / "none", "none: no such folder"),
        (tmp_path, "contains no folders SPLIT/ and SPLITannot/, such as train/ and trainannot/"),
    ):
        with pytest.raises(DataError, match=message):
            masks.load(folder and str(folder))
    (root / "train" / "train 0.png").unlink()
    done = start("segment", "--dataset=masks", f"--data_dir={root}", f"--workdir={tmp_path / 'w'}", "--batch_size=2")
    assert done.returncode == 1 and "trainannot/train 0.png has no image" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()


def scene(random, side=32):
    """An image of a bright disk and a dark square on noise, and its labels, with a border of void."""
    image, labels = random.integers(90, 166, (side, side, 3)), np.zeros((side, side), np.uint8)
    y, x = np.mgrid[:side, :side]
    for kind, shade in ((1, 70), (2, -70)):
        row, column, reach = *random.integers(6, side - 6, 2), random.integers(4, 8)
        away = np.hypot(y - row, x - column) if kind == 1 else np.maximum(abs(y - row), abs(x - column))
        labels[away < reach], image[away < reach] = kind, image[away < reach] + shade
    labels[0] = 255
    return image.clip(0, 255).astype(np.uint8), labels


@pytest.mark.slow
def test_a_run_on_shapes(start, tmp_path):
    root, random = tmp_path / "data", np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 16)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image, labels = scene(random)
            Image.fromarray(image).save(root / split / f"{i:02}.jpg", quality=95)
            save_colours(labels, root / f"{split}annot" / f"{i:02}.png")
    (root / masks.FILE).write_text(COLOURS)
    workdir = tmp_path / "w"
    run = ["--dataset=masks", f"--data_dir={root}", "--batch_size=8", "--steps=40"]
    run += ["--crop=24x24", "--val_fraction=0.25", "--eval_every=20"]
    whole = result(start("segment", f"--workdir={workdir}", *run))
    assert (whole["split"], whole["examples"], whole["test_examples"]) == ("val", 12, 16)
    counts = np.bincount(np.concatenate([scene(random)[1].ravel() for _ in range(50)]), minlength=256)
    constant = counts[0] / counts[:3].sum() / 3  # The mean IoU of predicting background everywhere.
    assert set(whole["iou"]) == {"background", "disk", "square"} and min(whole["iou"].values()) > 0.2
    assert whole["test_mean_iou"] > constant + 0.4, whole

    evaluated = result(start("evaluate", f"--workdir={workdir}"))
    assert evaluated["mean_iou"] == pytest.approx(whole["test_mean_iou"], rel=1e-6)
    assert same(evaluated, result(start("evaluate", f"--workdir={workdir}", "--split=test", f"--data_dir={root}/.")))
    page = (workdir / "report.html").read_text()
    assert "segnet_small on masks" in page and all(f">{name}<" in page for name in ("background", "disk", "square"))

    file = root / "test" / "03.jpg"
    done = start("predict", f"--workdir={workdir}", str(file))
    row = next(csv.DictReader(done.stdout.splitlines()))
    with Image.open(row["mask"]) as mask:
        colours = {tuple(colour) for colour in np.asarray(mask.convert("RGB")).reshape(-1, 3).tolist()}
    assert colours <= {RGB[0], RGB[1], RGB[2]} and len(colours) > 1
    assert pathlib.Path(row["overlay"]).exists() and (workdir / "predictions" / "legend.png").exists()

    (root / masks.FILE).write_text(COLOURS.replace("disk", "coin"))
    done = start("evaluate", f"--workdir={workdir}")
    assert done.returncode == 2 and "classes differ: ['background', 'disk', 'square'] in the run" in done.stderr
