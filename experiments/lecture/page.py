"""The lecture page: a section per topic with text, formula, figures, numbers and the command that repeats it.

Like the report of a run, it is self-contained and escapes all text. Formulas are MathML from an allow-list of elements.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from experiments.reporting import report

MATHML = frozenset(
    ("math", "mrow", "mi", "mo", "mn", "mtext", "mfrac", "msub", "msup", "msubsup", "msqrt", "mroot", "mover", "munder")
    + ("munderover", "mtable", "mtr", "mtd", "mspace", "mpadded", "mstyle", "mphantom", "merror")
)
ATTRIBUTES = frozenset(("display", "columnalign", "rowspacing", "columnspacing", "stretchy", "fence", "mathvariant"))
ATTRIBUTES |= frozenset(("accent", "width", "displaystyle", "separator", "lspace", "rspace", "linethickness", "xmlns"))
STYLE = """
nav ol { columns: 2 16rem; padding-left: 1.5rem; }
section.topic { border-top: 1px solid var(--line); margin-top: 2.5rem; }
section.topic > h2 { font-size: 1.3rem; }
p { max-width: 46rem; }
.formula { overflow-x: auto; overflow-y: hidden; margin: 1rem 0; font-size: 1.15rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--soft); }
a { color: inherit; }
"""


class Section(NamedTuple):
    """A section of the page. A figure is (title, caption, path of a PNG), a table (title, header, rows)."""

    title: str
    text: Sequence[str]
    formula: str
    figures: Sequence[tuple[str, str, str | Path]]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]
    numbers: Mapping[str, Any]
    command: str


def checked_formula(text: str) -> str:
    """Returns the MathML unchanged. Raises ValueError if it is malformed or contains other elements or attributes."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"a formula is not valid XML ({error}): {text[:60]!r}") from None
    for element in root.iter():
        if element.tag not in MATHML or not ATTRIBUTES.issuperset(element.attrib):
            raise ValueError(f"a formula contains <{element.tag}> with {sorted(element.attrib)}, which is not allowed")
    if root.tag != "math":
        raise ValueError(f"the root element of a formula must be <math>, not <{root.tag}>")
    return text


def _keep_together(html: str) -> str:
    """Keeps numbers, standard deviations and units on one line with no-break spaces."""
    return html.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")


def _section(number: int, section: Section) -> str:
    parts = [f'<section class="topic" id="topic{number}"><h2>{number}. {report.escaped(section.title)}</h2>']
    parts += [f"<p>{_keep_together(report.escaped(paragraph))}</p>" for paragraph in section.text]
    formula = section.formula and checked_formula(section.formula)
    parts += [f'<div class="formula" tabindex="0">{formula}</div>'] if formula else []
    if section.figures:
        parts += ['<div class="grid">', *(report.figure_html(*entry) for entry in section.figures), "</div>"]
    parts += [_keep_together(report.table_html(*entry)) for entry in section.tables]
    numbers = json.dumps(section.numbers, indent=1, ensure_ascii=False)
    parts += [f'<details><summary>Numbers of this run</summary><pre tabindex="0">{report.escaped(numbers)}</pre>']
    parts += [
        "</details>",
        f'<p class="note">To repeat this:</p><pre tabindex="0">{report.escaped(section.command)}</pre>',
    ]
    return "\n".join([*parts, "</section>"])


def zoo(chart: str, link: str) -> str:
    """The section on the neural-network zoo: its chart as HTML, and a link to its page ("" if there is none)."""
    escaped = report.escaped(link)
    page = f'<p><a href="{escaped}">The zoo with the results of each network</a></p>' if link else ""
    return (
        '<section class="topic" id="zoo"><h2>The neural-network zoo</h2><p>The networks of the Asimov Institute’s '
        f"chart (Fjodor van Veen 2016). Each can be trained with its own learning rule.</p>{page}{chart}"
        '<p class="note">To train them:</p>'
        '<pre tabindex="0">python -m experiments.lecture.zoo --workdir=NEW</pre></section>'
    )


def page(
    title: str, introduction: Sequence[str], sections: Sequence[Section], *, end: str = "", style: str = ""
) -> str:
    """The HTML document. `end` is HTML after the sections, and `style` is added to the style sheet."""
    links = "".join(
        f'<li><a href="#topic{number}">{report.escaped(section.title)}</a></li>'
        for number, section in enumerate(sections, 1)
    )
    body = [f"<h1>{report.escaped(title)}</h1>", *(f"<p>{report.escaped(text)}</p>" for text in introduction)]
    body += [f"<nav><ol>{links}</ol></nav>", *(_section(number, each) for number, each in enumerate(sections, 1))]
    return report.document(title, "\n".join([*body, end]), style=STYLE + style)
