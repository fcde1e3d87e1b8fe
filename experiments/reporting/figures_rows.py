"""Rows of images under their labels, as a figure: what goes into a network above what comes out of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(NamedTuple):
    """Images of a figure under their label; more than fit a line are wrapped. They are whole numbers in 0 .. 255,
    [N, H, W] or [N, H, W, 1 or 3]; if `signed`, weights in -127 .. 127 [N, H, W], which are blue below zero, white at
    zero and red above it."""

    label: str
    images: Any
    signed: bool = False


def image_rows(title: str, rows: Sequence[Row], *, columns: int = 10, below: float = 0.0) -> "Figure":
    """Rows of images, all of one size, under a title and above `below` empty inches."""
    import matplotlib

    shape = np.asarray(rows[0].images[0]).shape
    margin, gap, line = 0.1, 0.04, 0.2  # Inches.
    cell = (figures.WIDTH - 2 * margin + gap) / columns - gap
    heading = figures.wrapped(title, 52)
    top = margin + 0.24 * (heading.count("\n") + 1) + 0.06
    tall, starts = cell * shape[0] / shape[1], []
    for row in rows:
        starts.append(top)
        top += line + (tall + gap) * -(-len(row.images) // columns) + 0.08
    top += below
    style = {**figures.STYLE, "axes.grid": False, "figure.constrained_layout.use": False}
    with matplotlib.rc_context(style):
        drawn = figures.new_figure(figures.WIDTH, top)
        axes = drawn.add_axes((0, 0, 1, 1))  # In inches, y downwards.
        axes.set_axis_off()
        axes.text(margin, margin, heading, fontsize=12, fontweight="bold", va="top")
        for row, start in zip(rows, starts, strict=True):
            axes.text(margin, start, row.label, fontsize=10, va="top")
            for index, image in enumerate(np.asarray(row.images)):
                left = margin + index % columns * (cell + gap)
                upper = start + line + index // columns * (tall + gap)
                image = image[..., 0] if image.shape[-1] == 1 and image.ndim == 3 else image
                colours, low, high = ("RdBu_r", -127, 127) if row.signed else ("gray", 0, 255)
                box = (left, left + cell, upper + tall, upper)
                axes.imshow(image, colours, vmin=low, vmax=high, extent=box, aspect="auto", interpolation="nearest")
        axes.set_xlim(0, figures.WIDTH)
        axes.set_ylim(top, 0)
    return drawn
