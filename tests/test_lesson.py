"""Tests of the lessons: rendering of Markdown, formulas, code and drawings, and the content of each lesson."""

import re
from xml.etree import ElementTree

import pytest

from experiments.lecture import __main__ as lecture
from experiments.lecture import lesson
from experiments.lecture import page as lecture_page


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
