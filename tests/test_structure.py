"""Checks the import rules: models and data import none of the other packages, train imports no data set and no command,
nothing imports a command, and only the lecture imports its topics."""

import ast
import pathlib

import documented
import pytest
from commands import ROOT

MAY_IMPORT = {
    "models": {"models"},
    "data": {"data"},
    "train": {"train", "models"},
    "experiments": {"experiments", "train", "models", "data"},
    "benchmarks": {"benchmarks", "experiments", "train", "models", "data"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
COMMANDS = {f"experiments.{name}" for name in documented.COMMANDS["experiments"]}
PACKAGES = {"experiments.lecture", "experiments.lecture.zoo"}  # Their modules may be imported.
COMMANDS = COMMANDS - PACKAGES | {f"{package}.__main__" for package in PACKAGES | {"experiments"}}


def imported(path: pathlib.Path) -> set[str]:
    """All imports of a file from the project, also inside functions, as "package.module.name"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in MAY_IMPORT}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports(path):
    package, names = path.relative_to(ROOT).parts[0], imported(path)
    others = sorted(name for name in names if name.split(".")[0] not in MAY_IMPORT[package])
    assert not others, f"{package} may import {', '.join(sorted(MAY_IMPORT[package]))}, not {', '.join(others)}"
    of_lecture = sorted(name for name in names if f"{name}.".startswith("experiments.lecture."))
    assert not of_lecture or path.is_relative_to(ROOT / "experiments/lecture"), "only the lecture may import them"
    of_commands = sorted(name for name in names if any(f"{name}.".startswith(f"{command}.") for command in COMMANDS))
    assert not of_commands, f"a command is imported: {', '.join(of_commands)}"


def test_only_ops_of_the_cpu_kernels_is_imported_from_outside():
    for path in FILES:
        if path.parent.name != "cpu_kernels":
            names = {name for name in imported(path) if name.startswith("models.cpu_kernels")}
            private = sorted(name for name in names if not f"{name}.".startswith("models.cpu_kernels.ops."))
            assert not private, f"{path} imports {', '.join(private)}: import models.cpu_kernels.ops"


def test_networks_reach_the_cpu_kernels_through_the_layers():
    for path in (ROOT / "models").glob("*.py"):
        kernels = sorted(name for name in imported(path) if name.startswith("models.cpu_kernels"))
        assert not kernels or path.name == "layers.py", f"{path} imports {', '.join(kernels)}: import models.layers"


def test_networks_do_not_mention_sharding():
    for path in (ROOT / "models").glob("*.py"):
        assert path.name == "layers.py" or "shard" not in path.read_text(), f"{path} mentions sharding"


def test_every_file_directly_in_experiments_is_a_command():
    for path in (ROOT / "experiments").glob("*.py"):
        if path.name != "__init__.py":
            functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert "main" in functions, f"{path} has no function main, so it is not a command"
    assert documented.COMMANDS["experiments"].count("lecture") == 1
