"""Tests of cropping image files and of decoding JPEGs at a reduced resolution."""

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from data import decode, stream
from data.dataset import DataError


def cut(image, view, path, **options):
    Image.fromarray(image).save(path, **options)
    return decode.read_image(str(path), channels=3, crop=stream.middle(view))


def test_cropping_before_resizing_equals_cropping_after(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    view, path = stream.View(224), tmp_path / "a.png"
    np.testing.assert_array_equal(cut(image, view, path), image[16:240, 48:272])  # No scaling.
    large = np.asarray(Image.fromarray(image).resize((800, 640), Image.Resampling.BICUBIC))
    whole = np.asarray(Image.fromarray(large).resize((320, 256), Image.Resampling.BILINEAR))
    found = cut(large, view, path)
    assert np.abs(found.astype(int) - whole[16:240, 48:272]).max() <= 1
    assert stream.view(None, "none") == (224, 7 / 8, False, "crop") and stream.view(224, "crop")[:2] == (256, 1.0)


def test_exif_rotation_with_other_damaged_exif_data(tmp_path):
    turned = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    damaged = b"\x02\x03\0\x02\0\0\0\x0220\0\0"  # Text instead of a number.
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + b"\0\x02" + turned + damaged + b"\0\0\0\0"
    image = np.arange(5 * 8, dtype=np.uint8).reshape(5, 8)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    found = decode.read_image(str(tmp_path / "a.png"), channels=1)
    np.testing.assert_array_equal(found[..., 0], np.rot90(image, -1))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_a_reduced_resolution(tmp_path, monkeypatch, orientation):
    smooth = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(smooth).resize((1201, 901), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options, sizes = {"quality": 95, "exif": exif}, []
    original = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "load", lambda self: original(self) if sizes.append(self.size) is None else None
    )
    found = cut(large, stream.View(100, 1.0), tmp_path / "a.jpg", **options)
    assert sizes[0] == (151, 113), "an eighth of 1201 x 901"
    with monkeypatch.context() as patch:
        patch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: None)
        expected = cut(large, stream.View(100, 1.0), tmp_path / "a.jpg", **options)
    assert np.abs(found.astype(int) - expected).mean() < 6
    sizes.clear()
    cut(large, stream.View(500, 1.0), tmp_path / "a.jpg", **options)
    assert sizes[0] == (1201, 901)


def test_internal_errors_are_not_reported_as_corrupt_images(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def crop(height, width):
        return (0, 0, width, height), 1 // 0

    for content, expected in ((None, ZeroDivisionError), (b"broken", DataError)):
        with pytest.raises(expected):
            decode.read_image(str(tmp_path / "a.png"), channels=3, content=content, crop=crop)
