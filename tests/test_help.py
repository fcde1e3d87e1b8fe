"""Tests of the text of --help and of docs/commands.md, which is generated from it."""

import dataclasses
import runpy

import pytest
from commands import ROOT

from experiments.cli import help
from experiments.cli.options import option


@dataclasses.dataclass(frozen=True)
class Base:
    """The run. More."""

    workdir: str = option(None, "Folder of the run.", needed="the folder", path=True)
    rate: float = option(0.5, "A | b.", "(0, 1]")


@dataclasses.dataclass(frozen=True)
class Config(Base):
    """Special"""

    batch_size: int = option(8, "Global batch size.", f"[1, {2**31 - 1}]")
    kind: str = option("one", "Which.", choices=("one", "two"))
    slope: float | None = option(None, "Slope.", "(-inf, inf)")
    sizes: tuple[int, ...] = option((3, 4), "Sizes.", "[1, 100]")
    flip: bool = option(True, "Mirror images.")
    fast: bool = option(False, "Be fast.")
    more: int = option(0, "More.", "[0, inf)")
    other: str | None = option(None, "Other.")
    last: int = option(0, "Last.")
    end: int = option(0, "End.")


def test_flags_are_in_groups_with_defaults_and_bounds_the_most_used_first():
    found = help.groups(Config)
    assert list(found) == ["Most used", "The run", "Special"]
    assert [(flag.usage, flag.values) for flag in found["Most used"]] == [
        ("--workdir=PATH", "required"),
        ("--batch_size=N", "default 8; 1 or more"),
    ]
    assert [flag.name for flag in found["The run"]] == ["rate"]
    assert found["The run"][0].values == "default 0.5; greater than 0 and at most 1"
    assert [(flag.usage, flag.values) for flag in found["Special"]][:5] == [
        ("--kind=one|two", "default one"),
        ("--slope=X", ""),
        ("--sizes=N,...", "default 3,4; between 1 and 100"),
        ("--[no]flip", "on by default"),
        ("--[no]fast", ""),
    ]
    assert sum(map(len, found.values())) == len(dataclasses.fields(Config))


def test_few_flags_are_one_group_in_the_order_of_the_config():
    assert [flag.name for flag in help.groups(Base)["Flags"]] == ["workdir", "rate"]


@pytest.mark.parametrize(
    "doc, expected",
    [
        ("Trains: python -m a.b --x=1", ("Trains.", ["python -m a.b --x=1"], "")),
        (
            "Two.\n\npython -m a\npython -m b [--c]\n\n    W/d  file\n",
            ("Two.", ["python -m a", "python -m b [--c]"], "    W/d  file"),
        ),
        ("Three\nlines\n\nand more", ("Three lines.", [], "and more")),
    ],
)
def test_a_docstring_has_a_summary_examples_and_a_rest(doc, expected):
    assert help.described(doc) == expected


def test_the_text_has_usage_example_and_flags():
    lines = help.text(Config, "Trains: python -m a.b --x=1", "python -m a.b", positional=True).splitlines()
    assert lines[:4] == [
        "Trains.",
        "",
        "usage: python -m a.b --workdir=PATH [--flag=value ...] [ARGUMENT ...]",
        "example: python -m a.b --x=1",
    ]
    at = lines.index("  --batch_size=N  (default 8; 1 or more)")
    assert lines[at + 1] == "      Global batch size." and max(map(len, lines)) < 100


def test_the_page_of_all_commands_is_up_to_date():
    """If it is not, run: python docs/commands.py > docs/commands.md"""
    page = runpy.run_path(str(ROOT / "docs/commands.py"))["page"]()
    assert (ROOT / "docs/commands.md").read_text() == page
    assert "## lecture.zoo" in page and "| `--batch_size=N` | default 128; 1 or more | Global batch size. |" in page


def test_help_names_the_command_as_it_was_started(start):
    done = start("classify", "--help")
    assert done.returncode == 0
    assert "\nusage: python -m experiments.classify --workdir=PATH [--flag=value ...]\n" in done.stdout
    program = (
        "import sys\nsys.argv = ['nutshell', 'summary', '--help']\nfrom experiments.__main__ import main\nmain()\n"
    )
    assert "\nusage: nutshell summary [--flag=value ...]\n" in start(program).stdout
