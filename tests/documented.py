"""Finds the commands in the documentation and normalizes each to one line.

`python -m experiments.NAME FLAGS` and `nutshell NAME FLAGS` become `NAME FLAGS`, `python -m benchmarks.NAME FLAGS`
becomes `benchmarks.NAME FLAGS`, and a leading `.venv/bin/` is removed.
"""

import ast
import re

from commands import ROOT

MAIN = re.compile(r"^if __name__ == ['\"]__main__['\"]:", re.MULTILINE)
# The files of modules that are commands, by module name.
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"): path
    for pattern in (
        "experiments/[a-z]*.py",
        "experiments/lecture/*.py",
        "experiments/lecture/*/*.py",
        "benchmarks/[a-z]*.py",
    )
    for path in ROOT.glob(pattern)
    if MAIN.search(path.read_text())
}
COMMANDS = {
    package: sorted(name.removeprefix(f"{package}.") for name in FILES if name.startswith(f"{package}."))
    for package in ("experiments", "benchmarks")
}
NAME = "|".join(map(re.escape, sorted(COMMANDS["experiments"], key=len, reverse=True)))
STARTS = re.compile(rf"(nutshell |python |PYTHON |\.venv/bin/\w+ |make )|({NAME}) --")
# In running text, a command ends before the first word that is neither a flag nor a placeholder for a file.
FLAG = r"\[?--(?:\w+(?:=(?:\"[^\"]*\"|[^\s\"\]]+))?)?\]?"
# A fenced block, which may be indented as part of a list: its language and its lines.
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
IN_TEXT = re.compile(
    rf"(?:(?:python -m |PYTHON )(?:experiments|benchmarks)[./][\w.]+|\b(?:{NAME})(?= --))"
    rf"(?: {FLAG}| image\.png| \.\.\.)*"
)


def normalize(text: str) -> str:
    text = " ".join(text.split()).removeprefix(".venv/bin/").removeprefix("nutshell ")
    return text.removeprefix("python -m experiments.").replace("python -m benchmarks.", "benchmarks.")


def is_command(text: str) -> bool:
    return bool(STARTS.match(text))


def spans(text: str) -> list[str]:
    """The contents of code spans."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def in_markdown(text: str) -> list[str]:
    """Commands in code spans, indented code blocks and fenced blocks marked `sh`. In a table's first cell, a bare name
    after a command takes the flags of that command. In a table of FLAGS, each row completes the last command above the
    table."""
    lines = [line.strip() for kind, block in FENCE.findall(text) if kind == "sh" for line in block.splitlines()]
    found, above, text = [normalize(line) for line in lines if is_command(line)], "", FENCE.sub("", text)
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        if lines and lines[0].startswith("    "):
            found += [normalize(re.split(r"\s{2,}#", line.strip())[0]) for line in lines if is_command(line.strip())]
            continue
        if not lines or not lines[0].startswith("|"):
            commands = [normalize(code) for code in spans(paragraph) if is_command(code)]
            found, above = found + commands, (commands or [above])[-1]
            continue
        for line in lines:
            first, *rest = re.split(r"(?<!\\)\|", line.strip("|"))
            codes = spans(first)
            if lines[0].startswith("| FLAGS "):
                found += [above.replace("FLAGS", code) for code in codes[:1]]
            elif codes and is_command(codes[0]):
                flags = codes[0].partition(" ")[2]
                found += [normalize(code if is_command(code) else f"{code} {flags}") for code in codes]
            found += [normalize(code) for code in spans("|".join(rest)) if is_command(code)]
    return found


def in_text(text: str) -> list[str]:
    """Commands in running text: a module's docstring or a recipe's comment."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [normalize(found).rstrip(".,;:") for paragraph in paragraphs for found in IN_TEXT.findall(paragraph)]


def documented() -> dict[str, str]:
    """Maps each command to the first file that contains it."""
    found: dict[str, str] = {}
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
    pages += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments/lecture/lessons").glob("*.md"))]
    sources = [(path, in_markdown(path.read_text())) for path in pages]
    for path in sorted((ROOT / "experiments/recipes").glob("*.flags")):
        comments = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        sources.append((path, in_text("\n".join(comments))))
    for path in FILES.values():
        sources.append((path, in_text(ast.get_docstring(ast.parse(path.read_text())) or "")))
    for path, commands in sources:
        for command in commands:
            found.setdefault(command, str(path.relative_to(ROOT)))
    return found
