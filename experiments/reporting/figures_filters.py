"""Visualizations of convolutions: filters as in Krizhevsky's slide, and patches beside their guided gradients.

Images are enlarged by an integer factor without interpolation, so that weights are not blurred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.reporting.figures import DPI, STYLE, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 640  # Minimum width in pixels of an enlarged image.
LINE = 22  # Height in pixels of a line of text.


def as_colour(images: ArrayLike) -> NDArray[np.float64]:
    """Converts images [..., C] to [..., 3]: three channels are RGB; otherwise their mean is shown in gray."""
    pixels = np.asarray(images, np.float64)
    return pixels if pixels.shape[-1] == 3 else np.repeat(pixels.mean(-1, keepdims=True), 3, axis=-1)


def to_own_range(images: ArrayLike) -> NDArray[np.float64]:
    """Scales each of the images [N, H, W, C] from its own minimum and maximum to 0 .. 1; a constant image becomes
    0.5."""
    pixels = np.asarray(images, np.float64)
    low, high = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return np.where(high > low, (pixels - low) / np.where(high > low, high - low, 1), 0.5)


def around_grey(images: ArrayLike) -> NDArray[np.float64]:
    """Scales each of the images [N, H, W, C] by its largest magnitude to 0 .. 1, with zero at 0.5."""
    pixels = np.asarray(images, np.float64)
    largest = np.abs(pixels).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * pixels / np.where(largest > 0, largest, 1)


def columns_of(count: int) -> int:
    """The number of columns of a grid of `count` images: the smallest number from the square root r, rounded up, to 2 r
    that divides `count`, or r if there is none."""
    root = math.ceil(math.sqrt(count))
    return next((n for n in range(root, 2 * root + 1) if count % n == 0), root)


def montage(images: ArrayLike, *, columns: int, scale: int = 1) -> NDArray[np.uint8]:
    """Arranges images [N, H, W, 3] in 0 .. 1 in a grid of rows * (H + 1) + 1 by columns * (W + 1) + 1 pixels, separated
    and framed by black lines of one pixel; then each pixel is repeated `scale` times in both directions."""
    pixels = np.round(255 * np.clip(np.asarray(images, np.float64), 0, 1)).astype(np.uint8)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, 3), np.uint8)
    cells[:count, 1:, 1:] = pixels
    grid = cells.reshape(rows, columns, height + 1, width + 1, 3).transpose(0, 2, 1, 3, 4)
    grid = np.pad(grid.reshape(rows * (height + 1), columns * (width + 1), 3), ((0, 1), (0, 1), (0, 0)))
    return grid.repeat(scale, 0).repeat(scale, 1)


def filter_grid(filters: ArrayLike) -> NDArray[np.uint8]:
    """Filters [N, H, W, C] as a single image [., ., 3], each normalized to its own range (Krizhevsky, Sutskever &
    Hinton 2012, figure 3)."""
    images = to_own_range(as_colour(filters))
    columns = columns_of(len(images))
    return montage(images, columns=columns, scale=math.ceil(WIDTH / (columns * (images.shape[2] + 1) + 1)))


def excitation_grid(patches: ArrayLike, gradients: ArrayLike, captions: Sequence[str], *, title: str) -> Figure:
    """For each of U units a block of the T patches that activate it most, in descending order, and beside it a block of
    their guided gradients in the same order, as in Springenberg et al. 2015.

    Args:
        patches: [U, T, H, W, C] in 0 .. 1.
        gradients: [U, T, H, W, C], each drawn on its own scale with zero in gray.
        captions: U strings.
    """
    import matplotlib

    left = as_colour(patches)
    units, shown, height, width, _ = left.shape
    right = around_grey(as_colour(gradients).reshape(-1, height, width, 3)).reshape(left.shape)
    side = math.ceil(math.sqrt(shown))
    across = 2 if units > 1 else 1
    margin, gap = 12, 4
    scale = math.ceil((WIDTH / across - gap - margin) / (2 * (side * (width + 1) + 1)))
    blocks = [[montage(part[unit], columns=side, scale=scale) for part in (left, right)] for unit in range(units)]
    tall, half = blocks[0][0].shape[:2]
    wide = margin + across * (2 * half + gap + margin)
    heading = wrapped(title, wide // 11)
    top = margin + LINE * (heading.count("\n") + 1) + gap
    canvas = np.full((top + -(-units // across) * (LINE + tall + margin), wide, 3), 255, np.uint8)
    corners = []
    for unit, pair in enumerate(blocks):
        row, column = divmod(unit, across)
        x, y = margin + column * (2 * half + gap + margin), top + row * (LINE + tall + margin) + LINE
        corners.append((x, y))
        for offset, block in zip((0, half + gap), pair, strict=True):
            canvas[y : y + tall, x + offset : x + offset + half] = block
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "figure.constrained_layout.use": False}):
        figure = new_figure(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(canvas, extent=(0, canvas.shape[1], canvas.shape[0], 0), aspect="auto", interpolation="nearest")
        axes.text(margin, margin, heading, fontsize=11, fontweight="bold", va="top")
        for (x, y), caption in zip(corners, captions, strict=True):
            axes.text(x, y - 4, caption, fontsize=9, va="bottom")
    return figure
