"""Absl flags from the fields of a frozen dataclass; each field defines default, help text and accepted values.

    @dataclasses.dataclass(frozen=True)
    class Config:
        '''Training'''  # the heading under which --help lists these flags
        batch_size: int = option(128, "Global batch size.", "[1, inf)")

`define` defines the flags, `from_flags` reads them into a `Config`, and `from_json` reads the output of `to_json`.
Supported types are bool, int, float, str, and tuples of int, float or str (comma-separated lists); each may be None.
"""

import dataclasses
import math
import os
import re
import shlex
import types
import typing
from typing import Any, NamedTuple

from absl import flags

NUMBERS = {int: "an integer", float: "a number"}
SEVERAL = ", or several separated by commas"


class Interval(NamedTuple):
    """The numbers from `low` to `high`; `low_open` and `high_open` exclude the end points."""

    low: float
    high: float
    low_open: bool
    high_open: bool

    @classmethod
    def parsed(cls, text: str) -> "Interval":
        """Parses an interval such as "[0, 1)" or "(0, inf)"."""
        match = re.fullmatch(r"([(\[])([^,]+), ([^,]+)([)\]])", text)
        assert match, text
        return cls(float(match[2]), float(match[3]), match[1] == "(", match[4] == ")")

    def holds(self, value: float) -> bool:
        """Whether the interval contains the value; False for nan."""
        above = self.low < value or (value == self.low and not self.low_open)
        return above and (value < self.high or (value == self.high and not self.high_open))

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"must be greater than {self.low:g}" if self.low_open else f"must be {self.low:g} or more"
        if not (self.low_open or self.high_open):
            return f"must be between {self.low:.10g} and {self.high:.10g}"
        low = f"{'greater than' if self.low_open else 'at least'} {self.low:g}"
        return f"must be {low} and {'less than' if self.high_open else 'at most'} {self.high:g}"


class Spec(NamedTuple):
    """Properties of a field's flag besides its type and default."""

    help: str
    interval: Interval | None
    choices: tuple[str, ...] | None
    needed: str
    resumable: bool
    network: bool
    path: bool


def option(
    default: Any,
    help: str,
    interval: str | None = None,
    *,
    choices: typing.Sequence[str] | None = None,
    needed: str = "",
    resumable: bool = False,
    network: bool = False,
    path: bool = False,
) -> Any:
    """Declares a dataclass field as a flag.

    Args:
        interval: bounds of a number, or of each number of a tuple, such as "[0, 1)".
        choices: the accepted values.
        needed: for a required flag, a description of its value.
        resumable: whether the flag may change when a run resumes.
        network: whether the flag is an option of some networks, see models.create.
        path: whether the value is a path; it is made absolute, so that the stored value is valid in any folder.
    """
    bounds = Interval.parsed(interval) if interval else None
    spec = Spec(help, bounds, tuple(choices) if choices else None, needed, resumable, network, path)
    return dataclasses.field(default=default, metadata={"flag": spec})


def override(base: type, name: str, default: Any) -> Any:
    """The field `name` of the dataclass `base` with a different default."""
    return dataclasses.field(default=default, metadata=base.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


def specs(config_class: type) -> dict[str, Spec]:
    """The flags of a config class (or object), by name."""
    return {field.name: field.metadata["flag"] for field in dataclasses.fields(config_class)}


class _Kind(NamedTuple):
    scalar: type
    is_tuple: bool
    optional: bool


def flag_types(config_class: type) -> dict[str, _Kind]:
    """The types of a config class's flags, by name."""
    found = {}
    for name, hint in typing.get_type_hints(config_class).items():
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [part for part in parts if part is not type(None)]
        is_tuple = typing.get_origin(kinds[0]) is tuple
        found[name] = _Kind(typing.get_args(kinds[0])[0] if is_tuple else kinds[0], is_tuple, len(kinds) < len(parts))
    return found


def _absolute(path: str) -> str:
    """Makes a path absolute and expands ~, which a shell does not do in --flag=~/folder. Raises ValueError if the home
    folder is unknown or the current folder does not exist."""
    path = os.path.expanduser(path)
    if path.split("/")[0] == "~":  # HOME is not set, and the user has no entry in passwd.
        raise ValueError("no home folder is known; set HOME")
    try:
        return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise ValueError("relative path, but the current folder no longer exists") from None


def _converted(value: Any, kind: _Kind, spec: Spec, several: str = "") -> Any:
    """Converts a flag's value, or a value from JSON, to the field's type. Raises ValueError that names the accepted
    values."""
    if value is None or (value == "" and (kind.optional or spec.needed)):
        if not kind.optional:
            raise ValueError("must be given" if not spec.needed else f"must be given: {spec.needed}")
        return None
    if kind.is_tuple:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list")
        return tuple(_converted(item, kind._replace(is_tuple=False, optional=False), spec, SEVERAL) for item in value)
    if kind.scalar in NUMBERS:
        try:
            number = kind.scalar(value) if not isinstance(value, bool) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or (isinstance(value, float) and number != value and not math.isnan(value)):
            raise ValueError(f"must be {NUMBERS[kind.scalar]}{several}")
        if spec.interval and not math.isfinite(number if kind.scalar is float else 0):
            raise ValueError("must be a finite number")
        value = number
    elif not isinstance(value, kind.scalar):
        raise ValueError(f"must be a {kind.scalar.__name__}")
    elif spec.path and value:
        value = _absolute(str(value))
    if spec.interval and not spec.interval.holds(value):
        raise ValueError(str(spec.interval))
    if spec.choices and value not in spec.choices:
        raise ValueError(f"must be one of {', '.join(spec.choices)}")
    return value


def define(config_class: type, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for each field of `config_class`, with a validator that runs when the command line is parsed."""
    kinds = flag_types(config_class)
    for field in dataclasses.fields(config_class):
        spec, kind, default = field.metadata["flag"], kinds[field.name], typing.cast(Any, field.default)
        common: dict[str, Any] = {"flag_values": flag_values}
        if kind.is_tuple:
            items = None if default is None else list(map(str, default))
            flags.DEFINE_list(field.name, items, spec.help, **common)
        elif spec.choices:
            flags.DEFINE_enum(field.name, default, spec.choices, spec.help, **common)
        else:
            makers: dict[type, Any] = {
                bool: flags.DEFINE_bool,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }
            makers[kind.scalar](field.name, default, spec.help, **common)

        def check(value, name=field.name, kind=kind, spec=spec):
            try:
                _converted(value, kind, spec)
            except ValueError as error:
                equals = "" if value in (None, "") else f"={given(value)}:"
                raise flags.IllegalFlagValueError(f"--{name}{equals} {error}") from None
            return True

        flags.register_validator(field.name, check, flag_values=flag_values)


def from_flags(config_class: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """Creates a `config_class` from the parsed flags."""
    all_specs, kinds = specs(config_class), flag_types(config_class)
    values = {name: _converted(flag_values[name].value, kinds[name], spec) for name, spec in all_specs.items()}
    if "epochs" in values and flag_values["epochs"].present and not flag_values["steps"].present:
        values["steps"] = None  # --epochs overrides the default number of steps.
    return config_class(**values)


def from_arguments(config_class: type, arguments: list[str]) -> Any:
    """Creates a `config_class` from command-line arguments. Raises ValueError, or OSError for a --flagfile, if the
    command would reject them."""
    values = flags.FlagValues()
    define(config_class, values)
    try:
        extra = values(["", *arguments])[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if extra:
        raise ValueError(f"positional arguments: {' '.join(extra)}")
    return from_flags(config_class, values)


def from_json(config_class: type, stored: dict[str, Any]) -> Any:
    """Creates a `config_class` from stored flags; flags added since then get their defaults. Raises ValueError for an
    unknown flag or an invalid value."""
    all_specs, kinds, values = specs(config_class), flag_types(config_class), {}
    for name, value in stored.items():
        if name not in all_specs:
            raise ValueError(f"--{name}={value}: this version has no such flag")
        try:
            values[name] = _converted(value, kinds[name], all_specs[name])
        except ValueError as error:
            raise ValueError(f"--{name}={value}: {error}") from None
    return config_class(**values)


def to_json(config: Any) -> dict[str, Any]:
    """The flags by name, for JSON. The items of a tuple become strings, as typed on the command line."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: list(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}


# Flags that are valid only for one start of a run with several processes.
OF_ONE_PROCESS = ("coordinator_address", "num_processes", "process_id")


def given(value: Any) -> str:
    """A flag's value as shown in messages."""
    if value is None or value == ():
        return "none" if value is None else "empty"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flag_lines(config: Any) -> dict[str, str]:
    """The command-line arguments by the flags' names, in alphabetical order; flags that are None have none."""
    lines = {}
    for name, value in sorted(to_json(config).items()):
        if isinstance(value, bool):
            lines[name] = f"--{'' if value else 'no'}{name}"
        elif value is not None:
            lines[name] = f"--{name}={given(value)}"
    return lines


def flag_lines(config: Any) -> list[str]:
    """The flags as command-line arguments, or as lines of a file for --flagfile."""
    return list(_flag_lines(config).values())


def command_line(command: str, config: Any) -> str:
    """The command with all its flags, quoted for a shell. The flags that differ from their defaults come first; the
    others follow on the next line."""
    lines = {name: line for name, line in _flag_lines(config).items() if name not in OF_ONE_PROCESS}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    changed = [line for name, line in lines.items() if getattr(config, name) != defaults[name]]
    unchanged = [line for line in lines.values() if line not in changed]
    return f"python -m experiments.{command} {shlex.join(changed)} \\\n  {shlex.join(unchanged)}"
