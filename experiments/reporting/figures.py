"""Figures for a training report: one style, drawn with matplotlib's Agg canvas.

matplotlib is imported inside the functions to keep importing this module fast. The colors are the color-blind safe
palette of Okabe and Ito. Each figure is about 620 pixels wide with large type, so that it stays readable when scaled
to the width of a phone. The background is opaque white, for light and dark pages.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.messages import one_line
from train.workdir import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches, of all figures except large confusion matrices
DPI = 120
COLOURS = {"train": "#0072B2", "eval": "#D55E00", "test": "#009E73", "alone": "#0072B2", "reference": "#666666"}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "grid.color": "#e4e4e4",
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # class names may contain $
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Save a figure as PNG, atomically and without timestamp or version, so that equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # characters that the font lacks
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    write_atomically(Path(path), buffer.getvalue())


def new_figure(width: float = WIDTH, height: float = 3.4) -> Figure:
    """Return an empty figure of the given size in inches; the style applies only inside rc_context(STYLE)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def label_ends(axes: Axes, ends: list[tuple[float, str, str]], gap: float = 14.0) -> None:
    """Write each (last value, text, part) to the right of its line, at least ``gap`` points apart."""
    if not ends:
        return
    ends = sorted(ends)
    pixels = np.array([axes.transData.transform((axes.get_xlim()[0], value))[1] for value, _, _ in ends])
    heights = pixels * 72 / DPI
    places = heights.copy()
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + gap)
    places -= (places - heights).mean()
    for (value, text, part), shift in zip(ends, places - heights, strict=True):
        axes.annotate(
            text.strip(),
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(5, float(shift)),
            textcoords="offset points",
            color=COLOURS[part],
            va="center",
            fontsize=10,
            fontweight="bold",
            annotation_clip=False,
        )


def titled(quantity: str) -> str:
    """A metric's name as a title."""
    title = quantity.replace("_", " ").capitalize()
    for word, shown in (("iou", "IoU"), ("f1", "F1"), ("Psnr", "PSNR"), ("Kl", "KL")):
        title = title.replace(word, shown)
    return title


def confusion_matrix(
    counts: ArrayLike, class_names: Sequence[str] | None = None, *, title: str | None = None, percent: bool = False
) -> Figure:
    """Draw a confusion matrix. Colors show each row normalized to sum 1, so that rare classes are visible.

    Args:
        counts: [C, C] integers, true class x predicted class; shown in the cells if C <= 20.
        percent: show percentages of the true class instead of counts, which suits the large counts of pixels.
        class_names: C names; None uses the numbers 0 .. C - 1.
        title: None uses the most frequent confusion.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import FuncFormatter

    table = np.asarray(counts)
    size = len(table)
    if table.ndim != 2 or table.shape != (size, size) or size == 0:
        raise ValueError(f"a confusion matrix must be square, got shape {table.shape}")
    names = [str(index) for index in range(size)] if class_names is None else [str(name) for name in class_names]
    if len(names) != size:
        raise ValueError(f"{size} classes, but {len(names)} class names")
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    mistakes = table - np.diag(np.diag(table))
    if title is None:
        true, predicted = np.unravel_index(int(mistakes.argmax()), mistakes.shape)
        worst = f"{_shortened(names[true])} predicted as {_shortened(names[predicted])}"
        often = f"{_percentage(shares[true, predicted])} % of its pixels" if percent else f"{mistakes.max():,} times"
        title = f"Most frequent error: {worst} ({often})" if mistakes.max() > 0 else "No errors"

    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        side = min(8.0, max(WIDTH, 0.38 * size))
        figure = new_figure(side, side * 0.98)
        axes = figure.add_subplot()
        # The square-root color scale makes a fraction of 1 % visible beside one of 99 %.
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
        every = -(-size // 40)
        shown = range(0, size, every)
        labels = [_shortened(names[index]) for index in shown]
        font = 10 if size <= 12 else 8 if size <= 24 else 6
        axes.set_xticks(shown, labels, fontsize=font, rotation=0 if max(map(len, labels)) <= 2 else 90)
        axes.set_yticks(shown, labels, fontsize=font)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        figure.suptitle(wrapped(title, int(9 * side)), x=0.01, ha="left", fontsize=12, fontweight="bold")
        if size <= 20:
            texts = np.vectorize(_percentage)(shares) if percent else table.astype(int).astype(str)
            digits = max(len(text) for text in texts.ravel())
            points = min(10.0, 72 * side * 0.68 / size * 0.85 / (0.64 * digits))
            for (row, column), count in np.ndenumerate(table):
                if count:
                    colour = "white" if shares[row, column] > 0.3 else "#222222"
                    axes.text(
                        column, row, str(texts[row, column]), ha="center", va="center", fontsize=points, color=colour
                    )
        beside = axes.inset_axes((1.03, 0, 0.035, 1))
        bar = figure.colorbar(image, cax=beside, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        bar.ax.tick_params(labelsize=9)
        bar.set_label("fraction of the true class", fontsize=9)
    return figure


def _percentage(share: float) -> str:
    """A fraction in percent, with one decimal below 10 %."""
    return f"{100 * share:.1f}" if 100 * share < 9.95 else f"{100 * share:.0f}"


def image_grid(
    images: ArrayLike,
    captions: Sequence[str] | None = None,
    title: str = "",
    *,
    normalize: bool = True,
    signed: bool = False,
    columns: int | None = None,
) -> Figure:
    """Draw a grid of images, each with its caption below.

    Args:
        images: [N, H, W], [N, H, W, 1] or [N, H, W, 3] floats; N may be 0.
        captions: N texts, or None.
        normalize: scale each image to its own range; otherwise floats must be in 0 .. 1 (if ``signed``, all images
            share one range).
        signed: for weights. Zero is white, negative values are blue and positive ones red; with three channels zero
            is gray.
        columns: images per row; None chooses by N.
    """
    import matplotlib
    from matplotlib.patches import Rectangle

    pixels = np.nan_to_num(np.asarray(images, dtype=np.float64))
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[-1] != 3):
        raise ValueError(f"images must be [N, H, W] or [N, H, W, 1 or 3], got {pixels.shape}")
    total = len(pixels)
    if captions is not None and len(captions) != total:
        raise ValueError(f"{total} images, but {len(captions)} captions")
    if columns is None:
        columns = 4 if captions is not None or total <= 16 else 8
    columns = max(1, min(columns, total))

    pixels = _to_unit_range(pixels, normalize, signed)
    colour_map = "RdBu_r" if signed else "gray"
    gap, margin, line = 0.1, 0.1, 0.16  # inches
    cell = min(1.6, (WIDTH - 2 * margin + gap) / columns - gap)
    below = [_caption_lines(text, int((cell + gap) * 72 / 4.6)) for text in captions or []]
    caption_height = 0.06 + line * max((len(lines) for lines in below), default=0) if below else 0.0
    heading = wrapped(title, 52)
    top = margin + (0.24 * (heading.count("\n") + 1) + 0.06 if heading else 0.0)
    height = cell * pixels.shape[1] / max(pixels.shape[2], 1)
    pitch = height + caption_height + gap
    tall = top + (pitch * -(-total // columns) if total else 0.5)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "figure.constrained_layout.use": False}):
        figure = new_figure(WIDTH, tall)
        axes = figure.add_axes((0, 0, 1, 1))  # in inches, y downwards
        axes.set_axis_off()
        axes.text(margin, margin, heading, fontsize=12, fontweight="bold", va="top")
        if not total:
            axes.text(margin, top + 0.1, "nothing to show", va="top", color="#666666")
        for index, image in enumerate(pixels):
            row, column = divmod(index, columns)
            left, upper = margin + column * (cell + gap), top + row * pitch
            box = (left, left + cell, upper + height, upper)
            axes.imshow(image, colour_map, vmin=0, vmax=1, extent=box, aspect="auto", interpolation="nearest")
            axes.add_patch(Rectangle((left, upper), cell, height, fill=False, edgecolor="#bbbbbb", linewidth=0.6))
            if below:
                text = "\n".join(below[index])
                axes.text(left, upper + height + 0.04, text, fontsize=8.5, va="top", linespacing=1.15)
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(tall, 0)
    return figure


def _to_unit_range(pixels: NDArray[np.float64], normalize: bool, signed: bool) -> NDArray[np.float64]:
    """Scale [N, H, W] or [N, H, W, 3] to 0 .. 1; if ``signed``, zero maps to 0.5."""
    if not pixels.size:
        return pixels
    axes = tuple(range(1, pixels.ndim))
    if signed:
        largest = np.abs(pixels).max(axis=axes if normalize else None, keepdims=True)
        return 0.5 + 0.5 * pixels / np.where(largest > 0, largest, 1)
    if normalize:
        low, high = pixels.min(axis=axes, keepdims=True), pixels.max(axis=axes, keepdims=True)
        return (pixels - low) / np.where(high > low, high - low, 1)
    return np.clip(pixels, 0, 1)


def mistakes_grid(
    images: ArrayLike,
    labels: ArrayLike,
    predicted: ArrayLike,
    confidence: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    files: Sequence[str] | None = None,
    limit: int = 12,
    title: str | None = None,
) -> Figure:
    """Draw the wrong predictions, in descending order of probability.

    Args:
        images: [N, H, W] or [N, H, W, 1 or 3] floats.
        labels, predicted: [N] integers, the true and the predicted class.
        confidence: [N] floats in 0 .. 1, the probability of the predicted class.
        files: [N] names of the images' files, or None.
    """
    true, guess, sure = np.asarray(labels), np.asarray(predicted), np.asarray(confidence, dtype=np.float64)
    wrong = np.flatnonzero(true != guess)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:limit]
    name = (lambda index: str(index)) if class_names is None else (lambda index: str(class_names[index]))
    captions = [f"true {name(true[i])}, predicted {name(guess[i])}, {100 * sure[i]:.0f} %" for i in chosen]
    if files is not None:
        captions = [f"{text}, {_end(files[i])}" for text, i in zip(captions, chosen, strict=True)]
    if title is None:
        title = f"Most confident errors ({len(chosen)} of {len(wrong):,})" if len(wrong) else "No errors"
    return image_grid(np.asarray(images)[chosen], captions, title)


def wrapped(text: str, width: int = 46) -> str:
    """Break a title into lines of at most ``width`` characters."""
    return "\n".join(textwrap.wrap(text, width))


def _shortened(name: str, longest: int = 16) -> str:
    """Truncate a long name with an ellipsis."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _end(name: str, longest: int = 36) -> str:
    """The end of a long file name, with an ellipsis before it; the starts are often alike. Unprintable characters are
    escaped."""
    name = one_line(name)
    return name if len(name) <= longest else "…" + name[1 - longest :]


def _caption_lines(text: str, width: int) -> list[str]:
    """Break a caption into lines of at most ``width`` characters, at commas if possible."""
    lines: list[str] = []
    for piece in text.replace(", ", ",\n").split("\n"):
        if lines and len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += " " + piece
        else:
            lines += textwrap.wrap(piece, width, break_on_hyphens=False)
    return lines
