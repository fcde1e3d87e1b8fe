"""Tests of the lessons: rendering of Markdown, formulas, code and drawings, and the content of each lesson."""

import re
from xml.etree import ElementTree

import pytest
from commands import ROOT

from experiments.lecture import __main__ as lecture
from experiments.lecture import lesson
from experiments.lecture import page as lecture_page
from experiments.reporting.report import escaped


def test_markdown_is_escaped():
    html, widgets = lesson.to_html('<script>alert("x")</script> **bold** [link](javascript:alert)\n\n> answer')
    assert "<script" not in html and "&lt;script&gt;" in html and "<strong>bold</strong>" in html
    assert "href" not in html and widgets == []
    assert "<details><summary>Answer</summary><p>answer</p>\n</details>" in html.replace("\n<p>", "<p>")


def test_formulas_are_mathml_without_superscript_primes():
    html, _ = lesson.to_html("the derivative $\\sigma'(z) \\ge 0$:\n\n$$\\delta = W^T \\delta'$$")
    inline, block = re.findall(r"<math.*?</math>", html)
    for formula in (inline, block):
        lecture_page.checked_formula(formula)
    assert 'display="inline"' in inline and 'display="block"' in block and "\\" not in html
    assert [e.text for e in ElementTree.fromstring(inline).iter() if e.text][:2] == ["σ", "′"]
    assert inline.count("<msup>") == 0 and block.count("<msup>") == 1


def inner(latex: str, *, display: bool = False) -> str:
    """The children of the formula's outer mrow."""
    return re.fullmatch(r"<math[^>]*><mrow>(.*)</mrow></math>", lesson.formula(latex, display=display))[1]


def test_the_output_of_latex2mathml_is_corrected():
    thin, sigma = 'lspace="0.167em" rspace="0', "<mo>&#x02211;</mo>"
    assert inner(r"\ln y") == f'<mo {thin}.167em">ln</mo><mi>y</mi>'
    assert inner(r"\max(z)").startswith(f'<mo {thin}">max</mo><mo stretchy="false">&#x00028;</mo>')
    assert inner(r"\lVert x \rVert").count('<mo stretchy="false">&#x02016;</mo>') == 2
    assert inner(r"\hat y") == '<mover accent="true"><mi>y</mi><mo stretchy="false">&#x0005E;</mo></mover>'
    in_brackets = inner(r"\left( \sum_{k,m} x \right)", display=True)
    assert f"<munder>{sigma}<mrow><mi>k</mi><mo>&#x0002C;</mo><mi>m</mi></mrow></munder><mi>x</mi>" in in_brackets
    assert f"<msub>{sigma}<mi>k</mi></msub>" in inner(r"\sum_k x")
    assert f'<munder><mo {thin}.167em">min</mo><mi>k</mi></munder>' in inner(r"\min_k x", display=True)


def test_source_cuts_definitions_without_their_docstrings():
    code = lesson.source("experiments/lecture/pooling.py", "relative_change")
    assert code.splitlines() == [
        "def relative_change(before, after):",
        "    axes = tuple(range(1, before.ndim))",
        "    return jnp.sqrt(((after - before) ** 2).sum(axes) / (before**2).sum(axes))",
    ]
    method = lesson.source("models/cnn.py", "CNN.__call__", "for i, width", "x = max_pool")
    assert method.splitlines() == [
        "for i, width in enumerate(self.widths, 1):",
        '    x = conv(width, (5, 5) if i == 1 else (3, 3), name=f"conv{i}")(x)',
        '    x = max_pool(act(norm(name=f"bn{i}"), x), 2)',
    ]
    with pytest.raises(ValueError, match="models/cnn.py defines no CNN.nosuch"):
        lesson.source("models/cnn.py", "CNN.nosuch")
    with pytest.raises(ValueError, match="no line that starts with 'while'"):
        lesson.source("models/cnn.py", "CNN.__call__", "while")


@pytest.mark.parametrize(
    "content",
    ["<script>1</script>", '<image href="http://x"/>', '<g onclick="x"/>', '<path xlink:href="#a" d="M0 0"/>'],
)
def test_drawings_have_no_scripts_or_references(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lesson, "FOLDER", tmp_path)
    (tmp_path / "drawings").mkdir()
    start = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 1 1">'
    (tmp_path / "drawings" / "x.svg").write_text(f"{start}<rect/></svg>")
    assert lesson.drawing("x.svg", 'a "b"').count('<svg role="img" aria-label="a &quot;b&quot;" ') == 1
    (tmp_path / "drawings" / "x.svg").write_text(f"{start}{content}</svg>")
    with pytest.raises(ValueError, match="which is not allowed"):
        lesson.drawing("x.svg", "")


def test_the_appendix_is_a_section_of_the_page():
    section = lecture_page.appendix("notation")
    assert section.startswith('<section class="topic" id="notation"><h2>Notation</h2>') and section.count("<h2>") == 1
    assert section.count("<h3>") == section.count("</h3>") == 3 and "threshold" in section
    formulas = re.findall(r"<math.*?</math>", section)
    assert len(formulas) > 20
    for formula in formulas:
        lecture_page.checked_formula(formula)
    ElementTree.fromstring(section)


@pytest.mark.parametrize("name", [path.stem for path in sorted((lesson.FOLDER / "lessons").glob("*.md"))])
def test_links_inside_the_page_lead_somewhere(name):
    text = (lesson.FOLDER / "lessons" / f"{name}.md").read_text()
    assert set(re.findall(r"\]\((#[^)]*)\)", text)) <= {"#notation", "#zoo"}


def test_a_lesson_must_have_all_sections(tmp_path, monkeypatch):
    monkeypatch.setattr(lesson, "FOLDER", tmp_path)
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "x.md").write_text("# T\n\n## Question\nWhy?\n\n## Idea\nSo.\n")
    with pytest.raises(ValueError, match=r"lessons/x.md: the sections must be Question, .*, not Question, Idea"):
        lesson.read("x")


@pytest.mark.parametrize("name", lecture.TOPICS)
def test_lessons_are_complete(name):
    read = lesson.read(name)
    html = {heading: lesson.to_html(text)[0] for heading, text in read.sections.items()}
    assert html["Question"].count("?") >= 1
    assert '<svg role="img"' in html["Idea"]
    assert html["Symbols"].count("<tr>") >= 2 and 'display="block"' in html["Equation"]
    code = re.findall(r"<pre.*?</pre>", html["Code"], re.DOTALL)
    assert code and all(1 < block.count("\n") + 1 <= 16 for block in code)
    assert 2 <= html["Exercises"].count("<summary>Answer</summary>") <= 4
    assert len(re.findall(r"\d{4}", html["Further reading"])) >= 2
    for formula in re.findall(r"<math.*?</math>", "".join(html.values())):
        lecture_page.checked_formula(formula)


def test_the_published_page_is_a_full_run():
    page = (ROOT / "docs/lecture/index.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 5_000_000 and not re.search(r'(src|href)="(?!data:|#|https://)', page)
    titles = [re.sub("<.*?>", "", title) for title in re.findall(r"<h2>\d+\. (.*?)</h2>", page)]
    assert titles == [escaped(lesson.read(name).title) for name in lecture.TOPICS]
    assert page.count('<div class="widget"') >= 6 and page.count('<form class="guess"') >= len(titles)


def test_commands_break_between_words():
    expected = '<pre class="command" tabindex="0"><span>python</span> <span>--x=&lt;1&gt;</span>\n</pre>'
    assert lesson.command("python --x=<1>\n") == expected
    assert expected in lesson.to_html("```sh\npython --x=<1>\n```")[0]
