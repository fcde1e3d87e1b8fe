"""The chart's diagrams: a network's cells and connections as SVG, and the legend of the cells."""

import itertools
import math
import random
from collections.abc import Iterable
from typing import NamedTuple

from experiments.reporting.report import escaped

# In pixels: the radius of a cell, the distances between columns and between rows of cells, the margin of the diagram.
RADIUS, ACROSS, DOWN, EDGE = 8, 44, 22, 12


class Kind(NamedTuple):
    """A kind of cell: its text in the legend, its color, and a mark inside it that distinguishes it without color."""

    text: str
    colour: str
    mark: str = ""


# The color-blind safe palette of Okabe and Ito.
KINDS = {
    "input": Kind("input", "#F0E442"),
    "noisy": Kind("noisy input", "#F0E442", "triangle"),
    "backfed": Kind("input that is fed back", "#F0E442", "ring"),
    "hidden": Kind("hidden", "#009E73"),
    "probabilistic": Kind("probabilistic hidden", "#009E73", "ring"),
    "spiking": Kind("spiking hidden", "#009E73", "triangle"),
    "recurrent": Kind("recurrent", "#56B4E9", "ring"),
    "memory": Kind("memory", "#56B4E9", "square"),
    "gated": Kind("gated memory", "#0072B2", "square"),
    "kernel": Kind("kernel", "#CC79A7", "ring"),
    "pool": Kind("convolution or pooling", "#CC79A7"),
    "attention": Kind("attention", "#CC79A7", "square"),
    "output": Kind("output", "#E69F00"),
    "match": Kind("output that matches the input", "#D55E00", "ring"),
}


class Layer(NamedTuple):
    """A column of cells. `joined` is the connection to the previous column: "all" (fully connected), "near" (to the
    three nearest cells), "one" (one-to-one) or "not" (none)."""

    kind: str
    count: int  # type: ignore[assignment]  # Hides tuple.count.
    joined: str = "all"


class Diagram(NamedTuple):
    """A network's diagram.

    Attributes:
      layers: Layers from left to right; clockwise from the top for form "circle".
      form: "layers"; "circle": each cell is connected to all others; "scattered": the cells of the second layer have
        random positions and connections, as in a reservoir; "grid": the cells of the second layer form a square map.
      skips: Pairs (from, to) of layers with additional one-to-one connections.
    """

    layers: tuple[Layer, ...]
    form: str = "layers"
    skips: tuple[tuple[int, int], ...] = ()


Point = tuple[float, float]


def _column(x: float, count: int, height: float) -> list[Point]:
    return [(x, height / 2 + (row - (count - 1) / 2) * DOWN) for row in range(count)]


def _circle(count: int) -> list[Point]:
    radius = max(DOWN, count * DOWN / (2 * math.pi))
    center = radius + EDGE + RADIUS
    angles = (2 * math.pi * n / count - math.pi / 2 for n in range(count))
    return [(center + radius * math.cos(angle), center + radius * math.sin(angle)) for angle in angles]


def _field(x: float, count: int, height: float, *, scattered: bool) -> list[Point]:
    """The positions of the cells of a square map, with random offsets if `scattered`, too small for cells to touch."""
    side, generator = math.ceil(math.sqrt(count)), random.Random(0)
    free = (DOWN - 2 * RADIUS) / 2 if scattered else 0
    top = height / 2 - (side - 1) / 2 * DOWN
    places = ((x + n % side * DOWN, top + n // side * DOWN) for n in range(count))
    return [(x + generator.uniform(-free, free), y + generator.uniform(-free, free)) for x, y in places]


def _places(diagram: Diagram) -> list[list[Point]]:
    """The centers of the cells by layer."""
    if diagram.form == "circle":
        around = iter(_circle(sum(layer.count for layer in diagram.layers)))
        return [list(itertools.islice(around, layer.count)) for layer in diagram.layers]
    wide = {1} if diagram.form in ("scattered", "grid") else set()
    sides = [math.ceil(math.sqrt(layer.count)) if n in wide else 1 for n, layer in enumerate(diagram.layers)]
    tallest = max(
        side if n in wide else layer.count for n, (layer, side) in enumerate(zip(diagram.layers, sides, strict=True))
    )
    height = (tallest - 1) * DOWN + 2 * (RADIUS + EDGE)
    x, found = float(RADIUS + EDGE), []
    for n, (layer, side) in enumerate(zip(diagram.layers, sides, strict=True)):
        if n in wide:
            found.append(_field(x, layer.count, height, scattered=diagram.form == "scattered"))
        else:
            found.append(_column(x, layer.count, height))
        x += (side - 1) * DOWN + ACROSS
    return found


def _pairs(joined: str, before: int, count: int) -> Iterable[tuple[int, int]]:
    """The pairs of connected cells of two adjacent layers."""
    for i in range(before):
        for j in range(count):
            nearest = i - (before - 1) / 2 - (j - (count - 1) / 2) * before / max(count, 1)
            distance = {"all": 0.0, "near": abs(nearest) - 1.01, "one": abs(i - j) - 0.5, "not": 1.0}[joined]
            if distance <= 0:
                yield i, j


def _lines(diagram: Diagram, places: list[list[Point]]) -> list[tuple[Point, Point]]:
    if diagram.form == "circle":
        cells = [point for layer in places for point in layer]
        return [(a, b) for n, a in enumerate(cells) for b in cells[n + 1 :]]
    found = []
    for n, (before, after) in enumerate(zip(places, places[1:], strict=False), 1):
        pairs = list(_pairs(diagram.layers[n].joined, len(before), len(after)))
        if diagram.form == "scattered":  # Keeps one of three connections of the reservoir.
            pairs = [pair for pair in pairs if sum(pair) % 3 == 0]
        found += [(before[i], after[j]) for i, j in pairs]
    if diagram.form == "scattered":
        cells = places[1]
        found += [(a, b) for n, a in enumerate(cells) for b in cells[n + 1 :] if math.dist(a, b) < 1.6 * DOWN]
    if diagram.form == "grid":
        cells = places[1]
        found += [(a, b) for n, a in enumerate(cells) for b in cells[n + 1 :] if math.dist(a, b) < 1.1 * DOWN]
    return found


def _mark(kind: Kind, x: float, y: float) -> str:
    style = 'fill="none" stroke="#1c1c1c" stroke-width="1.3"'
    if kind.mark == "ring":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {style}/>'
    if kind.mark == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" {style}/>'
    if kind.mark == "triangle":
        return f'<path d="M{x:.1f} {y - 4.5:.1f}l4 7h-8z" {style}/>'
    return ""


def _cell(kind: str, x: float, y: float) -> str:
    colour = KINDS[kind].colour
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{colour}" stroke="#1c1c1c"/>'
    return shape + _mark(KINDS[kind], x, y)


def svg(diagram: Diagram, title: str) -> str:
    """Renders the diagram as an SVG element, with `title` as its text for screen readers."""
    places = _places(diagram)
    everything = [point for layer in places for point in layer]
    arcs = [
        (places[a][i], places[b][j]) for a, b in diagram.skips for i, j in _pairs("one", len(places[a]), len(places[b]))
    ]
    width = max(x for x, _ in everything) + RADIUS + EDGE
    height = max(y for _, y in everything) + RADIUS + EDGE
    parts = [
        f'<line x1="{a:.1f}" y1="{b:.1f}" x2="{c:.1f}" y2="{d:.1f}"/>' for (a, b), (c, d) in _lines(diagram, places)
    ]
    parts += [
        f'<path d="M{a:.1f} {b:.1f}Q{(a + c) / 2:.1f} {min(b, d) - DOWN:.1f} {c:.1f} {d:.1f}" fill="none"/>'
        for (a, b), (c, d) in arcs
    ]
    for layer, points in zip(diagram.layers, places, strict=True):
        loops = layer.kind in ("recurrent", "memory", "gated") and diagram.form == "layers"
        parts += [f'<circle cx="{x:.1f}" cy="{y - RADIUS:.1f}" r="5" fill="none"/>' for x, y in points if loops]
    cells = "".join(
        _cell(layer.kind, x, y) for layer, points in zip(diagram.layers, places, strict=True) for x, y in points
    )
    lines = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img">'
        f'<title>{escaped(title)}</title><g stroke="currentColor" stroke-opacity="0.55">{lines}</g>{cells}</svg>'
    )


def legend(kinds: Iterable[str]) -> str:
    """The legend of these kinds of cells, as HTML."""
    size = 2 * RADIUS + 4

    def entry(kind: str) -> str:
        icon = f'<svg viewBox="0 0 {size} {size}" width="{size}" height="{size}" aria-hidden="true">'
        return f"<li>{icon}{_cell(kind, size / 2, size / 2)}</svg> {escaped(KINDS[kind].text)}</li>"

    shown = set(kinds)
    return f'<ul class="legend">{"".join(entry(kind) for kind in KINDS if kind in shown)}</ul>'
