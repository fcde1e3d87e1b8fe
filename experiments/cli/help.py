"""The text of --help."""

import dataclasses
import inspect
import math
import re
import textwrap
from typing import Any, NamedTuple

from experiments.cli import options

# Flags that are listed first, in this order, if a command has them.
MOST_USED = (
    "workdir",
    "run",
    "model",
    "dataset",
    "data_dir",
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "seed",
    "devices",
)
WIDTH = 88
FLAGFILE = (
    "--flagfile=FILE reads flags from a file, such as a run's flags.txt. If a flag is given twice, the last counts."
)


class Flag(NamedTuple):
    """A flag in the help text: `usage` is its form on the command line, `values` its default and its bounds."""

    name: str
    usage: str
    values: str
    help: str


def _accepted(spec: options.Spec) -> str:
    """The bounds of a flag. An upper bound of 2^31 - 1 or more, beyond any practical use, is shown as infinite."""
    if not spec.interval or math.isinf(spec.interval.low):
        return ""
    interval = spec.interval
    if interval.high >= 2**31 - 1:
        interval = interval._replace(high=math.inf)
    return str(interval).removeprefix("must be ")


def _flag(field: dataclasses.Field, kind) -> Flag:
    spec: options.Spec = field.metadata["flag"]
    default: Any = field.default
    value = "|".join(spec.choices) if spec.choices else "PATH" if spec.path else kind.scalar.__name__.upper()
    value = {"INT": "N", "FLOAT": "X", "STR": "TEXT"}.get(value, value)
    if kind.is_tuple:
        value = f"{value},..."
    usage = f"--[no]{field.name}" if kind.scalar is bool else f"--{field.name}={value}"
    told = "required" if spec.needed else "" if default in (None, (), "") else f"default {options.given(default)}"
    if kind.scalar is bool:
        told = "on by default" if default else ""
    return Flag(field.name, usage, "; ".join(filter(None, (told, _accepted(spec)))), spec.help)


def groups(config_class: type) -> dict[str, list[Flag]]:
    """The flags of a command by heading, with the most common ones first."""
    kinds = options.flag_types(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    few = len(fields) <= len(MOST_USED)  # Listed under one heading, in the order of the fields.
    most = [] if few else [name for name in MOST_USED if name in fields]
    found: dict[str, list[Flag]] = {}
    for name in dict.fromkeys([*most, *fields]):
        declared = next(base for base in config_class.__mro__[::-1] if name in vars(base))
        heading = "Flags" if few else "Most used" if name in most else (declared.__doc__ or "").split(".")[0]
        found.setdefault(heading, []).append(_flag(fields[name], kinds[name]))
    return found


def described(doc: str) -> tuple[str, list[str], str]:
    """Splits a command's module docstring into (summary, example command lines, remaining text)."""
    first, _, rest = inspect.cleandoc(doc).partition("\n\n")
    first, rest = " ".join(first.split()), rest.strip("\n")
    summary, _, example = first.partition(": python -m ")
    examples = [f"python -m {example}"] if example else []
    while match := re.match(r"(python -m [^\n]*)\n*", rest):
        examples.append(match[1])
        rest = rest[match.end() :]
    return summary.rstrip(":. ") + ".", examples, rest.strip("\n")


def text(config_class: type | None, doc: str, name: str, *, positional: bool = False) -> str:
    """Returns the text of --help."""
    summary, examples, rest = described(doc)
    shown = groups(config_class) if config_class else {}
    required = [flag.usage for flags in shown.values() for flag in flags if "required" in flag.values]
    usage = [name, *required, "[--flag=value ...]", *["[ARGUMENT ...]"] * positional]
    lines = [summary, "", f"usage: {' '.join(usage)}"]
    lines += [f"{'example:' if n == 0 else '        '} {example}" for n, example in enumerate(examples)]
    lines += ["", rest] if rest else []
    for heading, flags in shown.items():
        lines += ["", f"{heading}:"]
        for flag in flags:
            lines.append(f"  {flag.usage}" + (f"  ({flag.values})" if flag.values else ""))
            lines += textwrap.wrap(flag.help, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return "\n".join([*lines, "", *textwrap.wrap(FLAGFILE, WIDTH)])
