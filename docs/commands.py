"""Writes the page of all commands: python docs/commands.py > docs/commands.md"""

import ast
import importlib
import inspect

from experiments.__main__ import commands
from experiments.cli import help
from experiments.lecture import topic


def config_of(module) -> type | None:
    """The config class that a command's module passes to app.run; for a topic, the class is built from its OPTIONS."""
    call = next(
        node
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("app.run", "topic.main")
    )
    if ast.unparse(call.func) == "app.run":
        return getattr(module, ast.unparse(call.args[1])) if len(call.args) > 1 else None
    return topic.config_class(topic.flags_of(getattr(module, "OPTIONS", None)))


def page() -> str:
    """The page, Markdown."""
    lines = [
        "# Commands",
        "",
        "This page is the output of `python docs/commands.py`; `--help` of a command prints the same. All",
        "commands also take `--flagfile=FILE`, a file of flags. A value out of bounds, or a flag that would have no",
        "effect in combination with the others, is rejected with a one-line message and exit status 2.",
    ]
    for name in commands():
        path = f"experiments.{name}"
        module = importlib.import_module(f"{path}.__main__" if name in ("lecture", "lecture.zoo") else path)
        summary, examples, rest = help.described(module.__doc__ or "")
        lines += ["", f"## {name}", "", _escaped(summary)]
        lines += ["", *(f"    {example}" for example in examples)] if examples else []
        lines += ["", *rest.splitlines()] if rest else []
        config = config_of(module)
        for heading, flags in (help.groups(config) if config else {}).items():
            lines += ["", f"| {heading} | default, accepted | |", "|---|---|---|"]
            lines += [f"| `{_cell(f.usage)}` | {_cell(f.values)} | {_cell(_escaped(f.help))} |" for f in flags]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    return text.replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
