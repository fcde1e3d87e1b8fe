"""A figure with labeled rows of images, such as a network's inputs above its outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.reporting import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(NamedTuple):
    """A row of images below its label, wrapped to several lines if necessary. Images are integers in 0 .. 255,
    [N, H, W] or [N, H, W, 1 or 3]; if `signed`, they are weights in -127 .. 127 [N, H, W]: negative values are blue,
    zero is white and positive values are red."""

    label: str
    images: Any
    signed: bool = False


def image_rows(title: str, rows: Sequence[Row], *, columns: int = 10, below: float = 0.0) -> "Figure":
    """Draws rows of images of the same size below a title; leaves `below` inches empty at the bottom."""
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
