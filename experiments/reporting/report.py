"""The report of a training run: curves of metrics.csv and a self-contained HTML page.

The page embeds images as data URIs and its style inline. It has no scripts, loads nothing from the network and follows
the system's dark mode. All external text (class names, flags, paths, titles) is passed through html.escape.
"""

from __future__ import annotations

import base64
import csv
import html
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.reporting.figures import COLOURS, STYLE, label_ends, new_figure, titled, wrapped
from train.workdir import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Metrics whose best value is in the middle, or is reached by untrained networks.
NEITHER_IS_BETTER = ("coverage_max", "memorisation", "accuracy_real", "accuracy_fake", "active", "kl")
LOWER_IS_BETTER = ("loss", "error", "fid", "perplexity", "bits", "nll", "mse", "mae", "reconstruction")
PNG_START = b"\x89PNG\r\n\x1a\n"
FRACTIONS = ("accuracy", "precision", "recall", "f1", "iou", "active")
MORE = "<!-- figures added later -->"
Cell = str | int | float | None
FigureEntry = tuple[str, str, str | Path]  # title, caption, path of the PNG
TableEntry = tuple[str, Sequence[str], Sequence[Sequence[Cell]]]  # title, header, rows

PAGE_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --text: #1c1c1c; --soft: #5b5b5b; --line: #dcdcd8; --box: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --text: #e8e8e6; --soft: #a7a9ab; --line: #34383d; --box: #1f2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.25rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 0; }
.tiles div, pre, .scroll { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; }
.tiles div { padding: .6rem .8rem; }
dt, figcaption, .note { color: var(--soft); font-size: .875rem; }
dd { margin: 0; font-size: 1.3rem; font-weight: 650; font-variant-numeric: tabular-nums; }
pre { padding: .8rem; margin: 0; overflow-x: auto; font: .875rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
.note { white-space: pre-line; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
.grid > * { min-width: 0; margin: 0; }
figure img { display: block; width: 100%; max-width: 40rem; height: auto; background: #fff; padding: .35rem;
  border: 1px solid var(--line); border-radius: .5rem; }
figcaption { margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { overflow-wrap: normal; border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th, td:first-child, .n { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; }
"""


def read_metrics(path: str | Path) -> list[dict[str, float | None]]:
    """Read metrics.csv; empty and missing cells become None.

    A truncated last line (the run was stopped while writing it) is skipped; any other cell that is not a number raises
    ValueError.
    """
    text = Path(path).read_text(encoding="utf-8")
    reader = csv.DictReader(text.splitlines())
    rows: list[dict[str, float | None]] = []
    for line in reader:
        cut = not text.endswith("\n") and reader.line_num == len(text.splitlines())
        if cut and None in line.values():
            continue
        try:
            rows.append({key: float(cell) if cell and cell.strip() else None for key, cell in line.items() if key})
        except ValueError as error:
            if not cut:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def curves(
    rows: Sequence[dict[str, float | None]],
    *,
    split: str,
    selects: bool,
    skip: Sequence[str] = ("epoch", "seconds"),
    references: Mapping[str, Mapping[str, float]] = {},
) -> dict[str, Figure]:
    """Plot the columns of metrics.csv over the steps, one figure per quantity.

    The columns train_X and eval_X share the figure "X"; any other column, such as learning_rate, has its own. The curve
    of eval_X is labeled with the evaluated ``split``. If checkpoints may be selected on it (``selects``), a ring marks
    the best evaluation and the title reports it; otherwise the title reports the last. If a step occurs twice (in a
    resumed run), the later row is used. Columns without values, those in ``skip`` and quantities that are constant are
    not plotted.

    Args:
        rows: one dict per row, as from read_metrics; empty cells are None.
        references: by quantity, labeled values that are drawn as horizontal lines.
    """
    import matplotlib

    series: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        step = row.get("step")
        if step is None:
            raise ValueError(f"a row of the metrics has no step: {row}")
        for column, value in row.items():
            if value is None or column == "step" or column in skip:
                continue
            part, _, quantity = column.partition("_")
            if part not in ("train", "eval") or not quantity:
                part, quantity = "alone", column
            series.setdefault(quantity, {}).setdefault(part, {})[float(step)] = float(value)
    with matplotlib.rc_context(STYLE):
        return {
            quantity: _curve_figure(quantity, parts, split, selects, references.get(quantity, {}))
            for quantity, parts in series.items()
            if len({value for points in parts.values() for value in points.values()}) > 1
        }


def _curve_figure(
    quantity: str, parts: dict[str, dict[float, float]], split: str, selects: bool, references: Mapping[str, float]
) -> Figure:
    """Plot one quantity: ``parts`` maps train, eval or alone to {step: value}."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    figure = new_figure()
    axes = figure.add_subplot()
    everything = np.array([value for points in parts.values() for value in points.values()], dtype=float)
    finite = everything[np.isfinite(everything)]
    lower = any(word in quantity for word in LOWER_IS_BETTER)
    neither = quantity in NEITHER_IS_BETTER
    percent = any(word in quantity for word in FRACTIONS) and finite.size and 0 <= finite.min() <= finite.max() <= 1
    number = (lambda value: f"{100 * value:.2f} %") if percent else (lambda value: f"{value:.3g}")
    tick = (lambda value, _: f"{100 * value:.6g} %") if percent else (lambda value, _: f"{value:.6g}")

    title = titled(quantity)
    main = next((part for part in ("eval", "train", "alone") if part in parts), "alone")
    ends: list[tuple[float, str, str]] = []
    for part, points in sorted(parts.items(), key=lambda item: item[0] != "train"):  # train first, below the others
        steps = np.array(sorted(points), dtype=float)
        values = np.array([points[step] for step in steps], dtype=float)
        good = np.isfinite(values)
        values = np.where(good, values, np.nan)
        marker = "o" if part == "eval" and len(steps) <= 40 or len(steps) == 1 else ""
        axes.plot(steps, values, color=COLOURS[part], marker=marker, markersize=4, alpha=0.7 if part == "train" else 1)
        if not good.any():
            continue
        name = {"eval": split, "alone": ""}.get(part, part)
        ends.append((float(values[good][-1]), f"{name} {number(values[good][-1])}", part))
        if part == main and part == "eval" and selects and not neither:
            best = int(np.nanargmin(values) if lower else np.nanargmax(values))
            ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8}
            axes.plot(steps[best], values[best], "o", color=COLOURS[part], **ring)
            title += f": best {name} {number(values[best])} at step {steps[best]:,.0f}"
        elif part == main:
            highest = f"highest logged {number(np.nanmax(values))}"
            title += f": {highest}" if part == "alone" else f": final {ends[-1][1].strip()}"
    for label, value in references.items():
        axes.axhline(value, color=COLOURS["reference"], linestyle="--", linewidth=1.2)
        ends.append((value, f"{label} {number(value)}", "reference"))
    finite = np.concatenate([finite, list(references.values())])
    if finite.size < everything.size + len(references):
        first = min(step for points in parts.values() for step, value in points.items() if not np.isfinite(value))
        title += f"; not finite from step {first:,.0f}"

    if lower and finite.size and finite.min() > 0 and finite.max() > 50 * finite.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3) if finite.max() < 1e4 * finite.min() else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{quantity.replace('_', ' ')} (log scale)")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("step")
    axes.set_title(wrapped(title), pad=10)
    label_ends(axes, ends)
    return figure


def formatted(key: str, value: Cell) -> str:
    """A number for display: integers with commas, metrics named in FRACTIONS as percentages, others with four
    significant digits."""
    if value is None:
        return "–"
    if isinstance(value, (bool, str, np.bool_)):
        return str(value)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int):
        return f"{value:,}"
    if any(word in key.lower() for word in FRACTIONS) and 0 <= value <= 1:
        return f"{100 * value:.2f} %"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def escaped(value: object) -> str:
    """Escape text for HTML."""
    return html.escape(str(value), quote=True)


def figure_html(title: str, caption: str, path: str | Path) -> str:
    """Embed a PNG file as a figure element. Raises ValueError for other files."""
    content = Path(path).read_bytes()
    if content[:8] != PNG_START or len(content) < 24:
        raise ValueError(f"not a PNG: {path}")
    width, height = struct.unpack(">II", content[16:24])
    data = base64.b64encode(content).decode("ascii")
    alt = escaped(f"{title}: {caption}" if caption else title)
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return f"<figure><h3>{escaped(title)}</h3>{image}{below}</figure>"


def table_html(title: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table element; purely numeric columns are right-aligned."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"table {title!r}: a row of {len(row)} cells under a header of {len(header)}")
    numeric = [bool(rows) and not any(isinstance(row[at], str) for row in rows) for at in range(len(header))]
    kind = [' class="n"' if right else "" for right in numeric]
    head = "".join(f'<th scope="col"{k}>{escaped(name)}</th>' for k, name in zip(kind, header, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{k}>{escaped(formatted(n, c))}</td>" for k, n, c in zip(kind, header, row, strict=True))
        + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    label = escaped(title)
    box = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{table}</div>'
    return f"<section><h3>{label}</h3>{box}</section>"


def html_page(
    *,
    title: str,
    summary: Mapping[str, Cell],
    command: str,
    figures: Sequence[FigureEntry],
    tables: Sequence[TableEntry],
    resume_note: str,
) -> str:
    """Return the report as a self-contained HTML page.

    Args:
        summary: headline numbers, shown as tiles in this order; strings are shown unchanged.
        command: the exact command line that repeats the run.
        figures: (title, caption, path of a PNG) each; title and caption are also the alternative text.
        tables: (title, header of K names, rows of K cells) each.
        resume_note: how to resume from the checkpoint; "" omits it.
    """
    tiles = "".join(
        f"<div><dt>{escaped(key)}</dt><dd>{escaped(formatted(key, value))}</dd></div>" for key, value in summary.items()
    )
    parts = [f"<h1>{escaped(title)}</h1>"]
    parts += [f'<dl class="tiles">{tiles}</dl>'] if tiles else []
    parts += ["<h2>Repeat this run</h2>", f'<pre tabindex="0">{escaped(command)}</pre>']
    parts += [f'<p class="note">{escaped(resume_note)}</p>'] if resume_note else []
    if figures:
        parts += ["<h2>Figures</h2>", '<div class="grid">', *(figure_html(*entry) for entry in figures), MORE, "</div>"]
    if tables:
        parts += ["<h2>Tables</h2>", '<div class="grid">', *(table_html(*entry) for entry in tables), "</div>"]
    return document(title, "\n".join(parts))


def document(title: str, body: str, *, style: str = "", scripts: str = "") -> str:
    """A complete HTML page around `body`. Its content security policy forbids external resources, and scripts except
    those of the source list `scripts`."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    policy += f"; script-src {scripts}" if scripts else ""
    head = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title>\n<style>{PAGE_STYLE}{style}</style>\n</head>\n<body>\n<main>",
    ]
    return "\n".join([*head, body, "</main>\n</body>\n</html>\n"])


def add_figure(path: Path, title: str, caption: str, image: Path) -> None:
    """Adds a figure to the report of a finished run, or replaces the one of the same title. Does nothing if there is no
    report, or one of an older version, which has no place for more figures."""
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if MORE not in page:
        return
    entry, (before, after) = figure_html(title, caption, image), page.split(MORE, 1)
    start = before.find(f"<figure><h3>{escaped(title)}</h3>")
    if start >= 0:
        end = before.index("</figure>", start) + len("</figure>")
        before = before[:start] + before[end:].lstrip("\n")
    write_atomically(path, f"{before}{entry}\n{MORE}{after}")


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, Cell],
    command: str,
    figures: Sequence[FigureEntry],
    tables: Sequence[TableEntry],
    resume_note: str,
) -> None:
    """Write html_page(...) to ``path`` atomically."""
    page = html_page(
        title=title, summary=summary, command=command, figures=figures, tables=tables, resume_note=resume_note
    )
    write_atomically(Path(path), page)
