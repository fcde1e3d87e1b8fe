"""Tests of the documents: relative links, and the code of docs/python.md."""

import re

import pytest
from commands import ROOT

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    missing = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            missing.append(link)
    assert not missing


def test_anchors():
    assert anchors("# A b\ntext\n## SegNet: C, d-e\n```\n# no\n```\n") == {"a-b", "segnet-c-d-e"}


@pytest.mark.slow
def test_the_code_of_python_md_runs(start, tmp_path):
    """All blocks, one after the other, as in a notebook."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), flags=re.M | re.S)
    done = start("classify", f"--workdir={tmp_path / 'W'}", "--model=mlp", "--steps=2", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    program = "\n".join(blocks).replace('load_run("W")', f'load_run("{tmp_path / "W"}")')
    program += "\nassert probabilities.shape == (100, 10) and logits.shape == (4, 10) and scores.shape == (10, 10)"
    program += "\nassert shapes['logits']['__call__'][0] == (100, 10), shapes\n"
    done = start(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in "0123456789"
