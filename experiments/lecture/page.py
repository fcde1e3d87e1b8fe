"""The lecture page: a lesson per topic, with the experiment's figures and numbers, and the scripts of its widgets.

Like the report of a run, it is self-contained and escapes all text. The content security policy allows only the page's
own script, by its hash.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from experiments.lecture import lesson as lessons
from experiments.lecture.guess import Guess
from experiments.reporting import report

WIDGETS = Path(__file__).parent / "widgets"
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
MATHML = frozenset(
    ("math", "mrow", "mi", "mo", "mn", "mtext", "mfrac", "msub", "msup", "msubsup", "msqrt", "mroot", "mover", "munder")
    + ("munderover", "mtable", "mtr", "mtd", "mspace", "mpadded", "mstyle", "mphantom", "merror")
)
ATTRIBUTES = frozenset(
    ("display", "columnalign", "rowspacing", "columnspacing", "stretchy", "fence", "form", "mathvariant")
)
ATTRIBUTES |= frozenset(("accent", "width", "displaystyle", "separator", "lspace", "rspace", "linethickness", "xmlns"))
# Fonts with the metrics and large operators of MathML. The padding keeps scrollable formulas from cutting superscripts.
MATH_STYLE = """
math { font-family: "STIX Two Math", "Latin Modern Math", "Cambria Math", "DejaVu Math TeX Gyre", math, serif;
  font-size: 1.1em; }
math[display="block"] { font-size: 1.2em; padding: .5rem 0; overflow-x: auto; overflow-y: hidden; }
mtd[columnalign="left"] { text-align: left; }
"""
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8") + MATH_STYLE


class Section(NamedTuple):
    """A section of the page. A figure is (name, title, caption, path of a PNG), a table (title, header, rows).

    `lesson` is the name of the file in lessons/ ("" for a training run of --use, which has none), and `widgets` maps
    the name of a widget to its data.
    """

    title: str
    lesson: str
    text: Sequence[str]
    figures: Sequence[tuple[str, str, str, str | Path]]
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]]
    numbers: Mapping[str, Any]
    command: str
    guesses: Sequence[Guess] = ()
    widgets: Mapping[str, Any] = {}


def checked_formula(text: str) -> str:
    """Returns the MathML unchanged. Raises ValueError if it is malformed or contains other elements or attributes."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"a formula is not valid XML ({error}): {text[:60]!r}") from None
    for element in root.iter():
        tag = element.tag.removeprefix(NAMESPACE)
        if tag not in MATHML or not ATTRIBUTES.issuperset(element.attrib):
            raise ValueError(f"a formula contains <{tag}> with {sorted(element.attrib)}, which is not allowed")
    if root.tag.removeprefix(NAMESPACE) != "math":
        raise ValueError(f"the root element of a formula must be <math>, not <{root.tag}>")
    return text


def _keep_together(html: str) -> str:
    """Keeps numbers, standard deviations and units on one line with no-break spaces."""
    return html.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0")


def _guess(guess: Guess) -> str:
    """The form of a guess. The script of the page shows it and hides the figure until a guess was made; without
    JavaScript the form is hidden and the figure shown. There is none for a result that is not finite."""
    if not math.isfinite(guess.value):
        return ""
    ends = min(guess.low, guess.value), max(guess.high, guess.value)
    low, high, value = (report.escaped(f"{number:.6g}") for number in (*ends, guess.value))
    unit = report.escaped(guess.unit)
    return (
        f'<form class="guess" hidden data-value="{value}" data-unit="{unit}"><label>{report.escaped(guess.question)}'
        f'<span class="slider"><input type="range" min="{low}" max="{high}" step="any"><output></output></span></label>'
        '<button type="submit">Compare with the result</button><p class="truth" role="status"></p></form>'
    )


def _figures(section: Section) -> str:
    asked: dict[str, list[Guess]] = {}
    for guess in map(Guess._make, section.guesses):
        asked.setdefault(guess.figure, []).append(guess)
    unknown = asked.keys() - {name for name, *_ in section.figures}
    if unknown:
        raise ValueError(f"guesses name the figures {', '.join(sorted(unknown))}, which do not exist")
    if not section.figures:
        return ""
    shown = [
        '<div class="shown">'
        + "".join(map(_guess, asked.get(name, ())))
        + report.figure_html(title, caption, path)
        + "</div>"
        for name, title, caption, path in section.figures
    ]
    return "\n".join(['<div class="grid">', *shown, "</div>"])


def _measured(section: Section) -> str:
    """The figures, text, tables and numbers of an experiment, and its command. The script shows the text, tables and
    numbers when all guesses were made."""
    parts = [_figures(section), '<div class="measured">']
    parts += [f"<p>{_keep_together(report.escaped(paragraph))}</p>" for paragraph in section.text]
    parts += [_keep_together(report.table_html(*entry)) for entry in section.tables]
    numbers = report.escaped(json.dumps(section.numbers, indent=1, ensure_ascii=False))
    parts += [f'<details><summary>All numbers</summary><pre tabindex="0">{numbers}</pre></details></div>']
    parts += [f'<p class="note">To repeat this:</p>{lessons.command(section.command)}']
    return "\n".join(parts)


def _section(number: int, section: Section, used: dict[str, Any]) -> str:
    """The HTML of a section; adds the data of its widgets to `used`."""
    parts = [f'<section class="topic" id="topic{number}"><h2>{number}. {report.escaped(section.title)}</h2>']
    if not section.lesson:
        return "\n".join([*parts, _measured(section), "</section>"])
    for heading, text in lessons.read(section.lesson).sections.items():
        html, widgets = lessons.to_html(text)
        for name in widgets:
            if name not in section.widgets:
                raise ValueError(
                    f"the lesson {section.lesson} shows the widget {name}, but its topic has no data for it"
                )
            used[name] = section.widgets[name]
        kind = heading.split()[0].lower()
        parts += [f'<div class="part {kind}"><h3>{heading}</h3>', _keep_together(html)]
        parts += [_measured(section)] if heading == "Experiment" else []
        parts += ["</div>"]
    return "\n".join([*parts, "</section>"])


def appendix(name: str) -> str:
    """The section with the text of lessons/NAME.md; lessons link to it as #NAME."""
    title, text = lessons.read_appendix(name)
    html = re.sub(r"(?<=<)(/?)h2>", r"\1h3>", lessons.to_html(text)[0])  # Below the section's own h2.
    return (
        f'<section class="topic" id="{name}"><h2>{report.escaped(title)}</h2>'
        f'<div class="part appendix">{_keep_together(html)}</div></section>'
    )


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


def _script(widgets: Mapping[str, Any]) -> str:
    """The page's script: widgets/page.js, which starts the guesses and the widgets, and the files of the widgets."""
    names = ["page", *sorted(widgets)]
    return "\n".join((WIDGETS / f"{name}.js").read_text(encoding="utf-8") for name in names)


def page(
    title: str, introduction: Sequence[str], sections: Sequence[Section], *, end: str = "", style: str = ""
) -> str:
    """The HTML document. `end` is HTML after the sections, and `style` is added to the style sheet."""
    links = "".join(
        f'<li><a href="#topic{number}">{report.escaped(section.title)}</a></li>'
        for number, section in enumerate(sections, 1)
    )
    body = [f"<h1>{report.escaped(title)}</h1>", *(f"<p>{report.escaped(text)}</p>" for text in introduction)]
    widgets: dict[str, Any] = {}
    body += [f"<nav><ol>{links}</ol></nav>"]
    body += [_section(number, each, widgets) for number, each in enumerate(sections, 1)]
    data = json.dumps(widgets, separators=(",", ":")).replace("<", "\\u003c")  # No </script> inside.
    script = _script(widgets)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body += [end, f'<script type="application/json" id="widget-data">{data}</script><script>{script}</script>']
    return report.document(title, "\n".join(body), style=STYLE + style, scripts=f"'sha256-{digest}'")
