"""The page of the zoo: the chart with expandable cards, as a self-contained HTML file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.lecture.lesson import formula
from experiments.lecture.page import MATH_STYLE, checked_formula
from experiments.lecture.zoo.card import Card
from experiments.lecture.zoo.drawing import legend, svg
from experiments.reporting import report

STYLE = """
body { max-width: 84rem; }
p { max-width: 46rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; font-size: .875rem; }
.legend li { display: flex; align-items: center; gap: .35rem; }
.zoo { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 11.5rem), 1fr)); gap: .75rem;
  grid-auto-flow: dense; }
.card { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; }
.card[open] { grid-column: 1 / -1; }
.card > summary { cursor: pointer; list-style: none; padding: .7rem .8rem; height: 100%; display: flex;
  flex-direction: column; }
.card[open] > summary { height: auto; }
.card > summary::-webkit-details-marker { display: none; }
.card > summary:focus-visible { outline: 3px solid #56B4E9; outline-offset: 2px; }
.card > summary h2 { margin: 0; font-size: 1rem; }
.card > summary svg { max-width: 100%; max-height: 10rem; height: auto; margin: .5rem auto; flex: 1; }
.card > summary p { margin: 0; font-size: .875rem; color: var(--soft); }
.card .inside { padding: 0 1rem 1rem; display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.card .inside > * { min-width: 0; }
.card h3 { margin: 1rem 0 .2rem; }
.card p { margin: .3rem 0; }
.card td:first-child, .card th { white-space: normal; }
.card figure { margin: 1rem 0; }
.formula { overflow-x: auto; overflow-y: hidden; }
"""
CHART_STYLE = """
.chart { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; align-items: end; }
.chart figure { margin: 0; text-align: center; }
.chart svg { max-width: 100%; max-height: 9rem; height: auto; }
"""


class Shown(NamedTuple):
    """A network's findings for the page; `image` is None if it was not trained."""

    card: Card
    text: str = ""
    numbers: Mapping[str, Any] = {}
    baseline: Mapping[str, Any] = {}
    caption: str = ""
    image: Path | None = None
    seconds: float = 0.0
    versus: str = "baseline"


def _written(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"mean", "std"}:
        return f"{_written(value['mean'])} ± {_written(value['std'])}" if value["std"] else _written(value["mean"])
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)


def _unbroken(text: str) -> str:
    """Inserts no-break spaces before percent signs."""
    return text.replace(" %", "\u00a0%")


def _rows(shown: Shown) -> list[tuple[str, str, str]]:
    """The rows of a card's table: (name, this network's value, the baseline's value)."""
    names = [*shown.numbers, *(name for name in shown.baseline if name not in shown.numbers)]
    columns = (shown.numbers, shown.baseline)
    written = [[_written(values[name]) if name in values else "" for values in columns] for name in names]
    return [(name.replace("_", " "), own, other) for name, (own, other) in zip(names, written, strict=True)]


def _card(shown: Shown, seeds: int) -> str:
    card = shown.card
    result = shown.text if shown.image else "Not trained in this run."
    head = f"<h2>{report.escaped(card.title)}</h2>{svg(card.diagram, f'{card.title}: cells and connections')}"
    head += "" if shown.image else "<p>not trained</p>"
    several = f" --seeds={seeds}" * (seeds > 1)
    parts = [
        f'<details class="card" id="{card.name}"><summary>{head}</summary><div class="inside"><div>',
        f"<p>{report.escaped(card.idea)}</p>",
        f'<div class="formula" tabindex="0">{checked_formula(formula(card.formula, display=True))}</div>',
        f"<h3>Learning rule</h3><p>{report.escaped(card.rule)}</p>",
        f"<h3>Result</h3><p>{report.escaped(_unbroken(result))}</p>",
    ]
    if shown.image:
        took = f"{seeds} seed{'s' * (seeds > 1)}, {shown.seconds:.0f} s"
        columns = ("", "this network", shown.versus)
        parts.append(report.table_html(f"Numbers ({took})", columns, _rows(shown)))
    parts += [
        f'<p class="note">{report.escaped(card.reference)}</p>',
        f'<pre tabindex="0">python -m experiments.lecture.zoo --only={card.name}{several} --workdir=NEW',
        f"\n{report.escaped(card.command)}" if card.command else "",
        "</pre></div><div>",
        report.figure_html("", shown.caption, shown.image) if shown.image else "",
        "</div></div></details>",
    ]
    return "".join(parts)


def chart(cards: Iterable[Card]) -> str:
    """The diagrams of all networks with their names, as HTML with the style CHART_STYLE."""
    figures = (
        f"<figure>{svg(card.diagram, card.title)}<figcaption>{report.escaped(card.title)}</figcaption></figure>"
        for card in cards
    )
    return f'<div class="chart">{"".join(figures)}</div>'


def page(networks: Sequence[Shown], seeds: int) -> str:
    """The HTML document."""
    title = "The neural-network zoo, trained"
    trained = sum(shown.image is not None for shown in networks)
    kinds = [layer.kind for shown in networks for layer in shown.card.diagram.layers]
    body = [
        f"<h1>{title}</h1>",
        "<p>The networks of the Asimov Institute's chart (Fjodor van Veen 2016, “The neural network zoo”), each "
        "trained with its own learning rule on a laptop. Expand a network to see its idea, its equation, its results "
        f"in this run and a baseline. {trained} of {len(networks)} networks were trained for this page.</p>",
        legend(kinds),
        '<div class="zoo">',
        *(_card(shown, seeds) for shown in networks),
        "</div>",
    ]
    return report.document(title, "\n".join(body), style=STYLE + MATH_STYLE)
