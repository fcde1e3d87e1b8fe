"""The lessons of the lecture: Markdown files in lessons/, rendered to HTML.

A lesson has the sections SECTIONS in this order, each with the heading ##. The appendix, notation.md, has other
headings. Both use these elements beside Markdown:

    $x$ and $$x$$             a formula in LaTeX, rendered as MathML
    ![alt text](NAME.svg)     a drawing of the folder drawings/, inlined; it uses currentColor, so it follows dark mode
    ```source                 code cut from the project's source: the file and the name of a function, class or method;
    models/layers.py relu     two more lines, if there are any, are the beginnings of the first and the last line shown
    ```
    ```widget                 an interactive part: widgets/NAME.js, see widgets/README.md
    pooling
    ```
    > text                    the folded answer to an exercise
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from latex2mathml import converter
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from experiments.reporting.report import escaped

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parents[1]
SECTIONS = (
    ("Question", "Idea", "Symbols", "Equation", "Code", "Experiment")
    + ("Why it matters", "Exercises", "Further reading")
)  # fmt: skip
# Corrections of latex2mathml's output, as (pattern, replacement).
CORRECTIONS = (
    # A superscript prime would be raised and shrunk twice in fonts without mathematical variants.
    (r"<msup>(<m[ion]>[^<]*</m[ion]>)<m[io]>(?:&#x02032;|′)</m[io]></msup>", r"<mrow>\1<mo>′</mo></mrow>"),
    # Hats, norms and absolute values would be stretched to the size of the row; only one side of a norm, even.
    ("<mo>(&#x0005E;|&#x02016;|&#x0007C;)</mo>", r'<mo stretchy="false">\1</mo>'),
    # Functions have thin spaces, none before a parenthesis.
    ("<m[io]>(exp|ln|log|max|min|tanh)</m[io]>(?=<mo[^>]*>&#x00028;)", r'<mo lspace="0.167em" rspace="0">\1</mo>'),
    ("<m[io]>(exp|ln|log|max|min|tanh)</m[io]>", r'<mo lspace="0.167em" rspace="0.167em">\1</mo>'),
)
# In a display formula, the subscript of a sum, maximum or minimum is below it, also between \left and \right.
LIMITS = re.compile(
    "<msub>(<mo[^>]*>(?:&#x02211;|max|min)</mo>)(<m[in]>[^<]*</m[in]>|<mrow>(?:(?!</?mrow>).)*</mrow>)</msub>"
)
SVG = "{http://www.w3.org/2000/svg}"
DRAWING_ELEMENTS = frozenset(
    ("svg", "g", "path", "line", "rect", "circle", "ellipse", "polyline", "polygon", "text", "tspan", "defs", "marker")
)


class Lesson(NamedTuple):
    """A lesson: its title and the Markdown text of each of its SECTIONS."""

    title: str
    sections: dict[str, str]


def read(name: str) -> Lesson:
    """Reads lessons/NAME.md. Raises ValueError if its sections are not exactly SECTIONS."""
    text = (FOLDER / "lessons" / f"{name}.md").read_text(encoding="utf-8")
    first, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = {heading: body.strip() for heading, _, body in (part.partition("\n") for part in parts)}
    if tuple(sections) != SECTIONS or not first.startswith("# "):
        raise ValueError(f"lessons/{name}.md: the sections must be {', '.join(SECTIONS)}, not {', '.join(sections)}")
    return Lesson(first.removeprefix("# ").strip(), sections)


def read_appendix(name: str) -> tuple[str, str]:
    """The title of lessons/NAME.md, which is not the lesson of a topic, and its text in Markdown."""
    title, _, text = (FOLDER / "lessons" / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    return title.removeprefix("# ").strip(), text


def formula(latex: str, *, display: bool) -> str:
    """The MathML of a LaTeX formula, with CORRECTIONS."""
    mathml = converter.convert(latex, display="block" if display else "inline")
    for pattern, replacement in CORRECTIONS:
        mathml = re.sub(pattern, replacement, mathml)
    return LIMITS.sub(r"<munder>\1\2</munder>", mathml) if display else mathml


def source(path: str, name: str, first: str = "", last: str = "") -> str:
    """The code of a function, class or Class.method in a file of the project, without its docstring and indentation.

    `first` and `last` are the beginnings of the first and the last line shown. Raises ValueError if there is no such
    definition or line.
    """
    text = (PROJECT / path).read_text(encoding="utf-8")
    found: ast.AST = ast.parse(text)
    for part in name.split("."):
        inside = [node for node in ast.iter_child_nodes(found) if getattr(node, "name", None) == part]
        if not inside:
            raise ValueError(f"{path} defines no {name}")
        found = inside[0]
    assert isinstance(found, (ast.FunctionDef, ast.ClassDef))
    begin, end = found.lineno - 1, found.end_lineno or found.lineno
    lines = text.splitlines()
    if ast.get_docstring(found) is not None:
        doc = found.body[0]
        del lines[doc.lineno - 1 : doc.end_lineno]
        end -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
    shown = lines[begin:end]
    for beginning, keep_before in ((first, False), (last, True)):
        if beginning:
            places = [i for i, line in enumerate(shown) if line.strip().startswith(beginning)]
            if not places:
                raise ValueError(f"{path}: {name} has no line that starts with {beginning!r}")
            shown = shown[: places[0] + 1] if keep_before else shown[places[0] :]
    return textwrap.dedent("\n".join(shown)).strip("\n")


def drawing(name: str, alt: str) -> str:
    """The SVG element of drawings/NAME with `alt` as its label. Raises ValueError for elements other than
    DRAWING_ELEMENTS, event handlers and references to other files."""
    text = (FOLDER / "drawings" / name).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    for element in root.iter():
        tag, names = element.tag.removeprefix(SVG), list(element.attrib)
        if tag not in DRAWING_ELEMENTS or any(each.startswith("on") or "href" in each for each in names):
            raise ValueError(f"drawings/{name} contains <{tag}> with {names}, which is not allowed")
    start = text.index("<svg") + len("<svg")
    return (
        f'<span class="drawing" tabindex="0"><svg role="img" aria-label="{escaped(alt)}"{text[start:].rstrip()}</span>'
    )


# Rendering rules of markdown-it: (renderer, tokens, index of the token, options, environment) -> HTML.
def _answer_open(*_):
    return "<details><summary>Answer</summary>"


def _answer_close(*_):
    return "</details>"


def _table_open(*_):
    return '<div class="scroll" tabindex="0"><table>'


def _table_close(*_):
    return "</table></div>"


def _image(_renderer, tokens, index, *_):
    return drawing(tokens[index].attrs["src"], tokens[index].content)


def command(text: str) -> str:
    """The HTML of a command; a browser breaks its lines between words only, not after the hyphens of a flag."""
    words = re.sub(r"\S+", lambda word: f"<span>{escaped(word[0])}</span>", text)
    return f'<pre class="command" tabindex="0">{words}</pre>'


def _fence(_renderer, tokens, index, _options, environment):
    kind, text = tokens[index].info.strip(), tokens[index].content
    if kind == "widget":
        name = text.strip()
        environment["widgets"].append(name)
        note = '<noscript><p class="note">This interactive part needs JavaScript.</p></noscript>'
        return f'<div class="widget" data-widget="{escaped(name)}">{note}</div>'
    if kind == "source":
        where, *limits = text.splitlines()
        path, name = where.split()
        code = escaped(source(path, name, *limits))
        return f'<figure class="code"><figcaption>{escaped(path)}</figcaption><pre tabindex="0">{code}</pre></figure>'
    return command(text)


RULES = {
    "fence": _fence,
    "image": _image,
    "blockquote_open": _answer_open,
    "blockquote_close": _answer_close,
    "table_open": _table_open,
    "table_close": _table_close,
}


def to_html(text: str) -> tuple[str, list[str]]:
    """Renders Markdown with the elements above; HTML in it is escaped. Returns the HTML and its widgets' names."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.use(dollarmath_plugin, renderer=lambda latex, options: formula(latex, display=options["display_mode"]))
    for name, rule in RULES.items():
        markdown.add_render_rule(name, rule)
    environment: dict = {"widgets": []}
    return markdown.render(text, environment), environment["widgets"]
