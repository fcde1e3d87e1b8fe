"""Decodes image files of any size and mode to arrays."""

import contextlib
import errno
import io
import traceback
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from data.dataset import DataError, UnreadableError

ORIENTATION = 0x0112  # The EXIF tag; TURNS undoes its values. ImageOps.exif_transpose fails if other tags are damaged.
_T = Image.Transpose
TURNS: dict[object, Image.Transpose] = {
    **{2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE},
    **{6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90},
}

SHORT_GREYS = {"L;2": 85, "L;4": 17}  # Pillow's raw modes with 2 and 4 bits per pixel -> factor from values to 8 bits.

# Maps the (height, width) of an image to the box (left, top, right, bottom) to crop and the (height, width) to resize
# it to, in pixels. A box that is larger than the image is filled with the image's mean color.
Crop = Callable[[int, int], tuple[tuple[float, float, float, float], tuple[int, int]]]


def whole(size: tuple[int, int]) -> Crop:
    """The whole image, resized to `size` (height, width)."""
    return lambda height, width: ((0, 0, width, height), size)


@contextlib.contextmanager
def named_failures(path: str) -> Iterator[None]:
    """Converts exceptions of a block that decodes an image: any exception raised in PIL, whose decoders raise many
    types, becomes DataError with the file's name; an operating system error becomes UnreadableError. Exceptions raised
    by the block's own code are not converted."""
    try:
        yield
    except (MemoryError, DataError):
        raise
    except Exception as error:
        modules = [frame.f_globals["__name__"].partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
        if "PIL" not in modules and not isinstance(error, OSError):
            raise
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise UnreadableError(f"{path}: {error.strerror}") from None
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not a readable image" if unknown else getattr(error, "strerror", None) or error
        raise DataError(f"{path}: {reason}") from None


def read_image(
    path: str,
    *,
    channels: int,
    content: bytes | None = None,
    crop: Crop | None = None,
) -> np.ndarray:
    """Reads an image file as uint8 [H, W, channels], in grayscale or color according to `channels` (1 or 3).

    Applies EXIF rotation, composites transparency onto black, scales 16-bit values and floating-point values in [0, 1],
    and crops and resizes (bilinearly) according to `crop`. A JPEG whose crop is at least twice the target size is
    decoded at 1/2, 1/4 or 1/8 of its resolution.

    If `content`, the bytes of the file, is given, `path` is only used in messages. Raises DataError with the file's
    name if it can't be decoded or its white level is unknown, as for 32-bit integers and floating-point values above 1;
    raises UnreadableError if the file can't be read.
    """
    with named_failures(path), Image.open(path if content is None else io.BytesIO(content)) as opened:
        _scale_transparency(opened)
        if opened.format != "JPEG":
            opened.load()  # Pillow rotates a TIFF on loading, which changes its size and its tag.
        if crop is not None:
            turned = opened.getexif().get(ORIENTATION) in (5, 6, 7, 8)
            width, height = opened.size[::-1] if turned else opened.size
            box, size = crop(height, width)
            times = min((box[2] - box[0]) // size[1], (box[3] - box[1]) // size[0])
            if opened.format == "JPEG" and times >= 2:
                scale = max(s for s in (2, 4, 8) if s <= times)
                opened.draft(None, (opened.width // scale, opened.height // scale))
        opened.load()
        turn = TURNS.get(opened.getexif().get(ORIENTATION))
        image = opened if turn is None else opened.transpose(turn)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = Image.fromarray(_bytes(image, path, clear=opened.info.get("transparency")))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
        if crop is not None:
            x, y = image.width / width, image.height / height
            outer = box[0] * x, box[1] * y, box[2] * x, box[3] * y
            inside = max(outer[0], 0), max(outer[1], 0), min(outer[2], image.width), min(outer[3], image.height)
            if min(box) < 0:
                image = _padded(image, inside, outer, size)
            else:
                image = image.resize(size[::-1], Image.Resampling.BILINEAR, box=inside)
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def _padded(image: Image.Image, inside, outer, size: tuple[int, int]) -> Image.Image:
    """The part `inside` of the image, resized so that the larger box `outer` around it would have `size` (height,
    width), in the center of an image of that size in the part's mean color."""
    width, height = (
        max(1, round(size[1 - axis] * (inside[axis + 2] - inside[axis]) / (outer[axis + 2] - outer[axis])))
        for axis in (0, 1)
    )
    part = image.resize((width, height), Image.Resampling.BILINEAR, box=inside)
    mean = np.asarray(part, np.float64).mean((0, 1)).round().astype(int)
    canvas = Image.new(image.mode, size[::-1], tuple(mean.tolist()) if mean.ndim else int(mean))
    canvas.paste(part, ((size[1] - width) // 2, (size[0] - height) // 2))
    return canvas


def _scale_transparency(opened: Image.Image) -> None:
    """Scales the transparent value of a 2- or 4-bit grayscale PNG to 8 bits; Pillow scales only the pixels."""
    raw = opened.tile[0].args if isinstance(opened, ImageFile.ImageFile) and opened.tile else None
    if raw in SHORT_GREYS and isinstance(opened.info.get("transparency"), int):
        opened.info["transparency"] *= SHORT_GREYS[raw]


def _bytes(image: Image.Image, path: str, *, clear: int | None) -> np.ndarray:
    """The pixels uint8 [H, W] of a grayscale image with more than 8 bits; pixels with the value `clear` become black.
    Raises DataError if the white level is unknown: a guess from the pixels would differ from image to image."""
    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # Also true for NaN.
            line = f"floating-point pixels from {low:g} to {high:g}, expected 0 (black) to 1 (white)"
            raise DataError(f"{path}: {line}")
        values, scale = values.astype(np.float64), 255
    elif image.mode == "I":
        line = "signed or 32-bit pixels, whose white level is unknown; convert them to 8 or 16 bits"
        raise DataError(f"{path}: {line}")
    else:
        values, scale = np.where(values == clear, 0, values) / 257, 1
    return (values * scale).round().astype(np.uint8)


def image_size(path: str, *, content: bytes | None = None) -> tuple[int, int] | None:
    """(height, width) in the header, before any rotation; None if it is not a readable image."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as opened:
            return opened.height, opened.width
    except MemoryError:
        raise
    except Exception:  # PIL's decoders raise many types.
        return None
