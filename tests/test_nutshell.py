"""Tests of the console script, from any folder and from a wheel built from this checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import commands
import documented
import pytest
from results import result

from experiments.cli import subprocesses

SCRIPT = pathlib.Path(sysconfig.get_path("scripts"), "nutshell")
TINY = ["--model=perceptron", "--steps=2"]


@pytest.fixture
def own_modules(tmp_path):
    """A user's folder with modules that have the names of this project's packages."""
    for name in ("train", "data", "models", "experiments", "ziglang"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the {name}.py of the current folder was imported')\n")
    return tmp_path


def run(environment, folder, *command, **own):
    """Runs a command without the checkout on its path, with the additional environment variables `own`."""
    names = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | own
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=names, capture_output=True, text=True, timeout=commands.LIMIT,
    )  # fmt: skip


def test_the_script_lists_every_command_with_a_summary(start):
    done = start("__main__")
    assert done.returncode == 0, done.stderr
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[2:])
    assert sorted(rows) == documented.COMMANDS["experiments"]
    assert rows["classify"] == "Trains and evaluates a classifier"


def test_an_unknown_command_is_a_one_line_error(start):
    done = start("__main__", "clasify", "--workdir=w")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: unknown command 'clasify'; known: ")
    assert done.stderr.endswith("did you mean classify?\n")


def test_a_command_keeps_its_flags_and_its_exit_status(start):
    done = start("__main__", "summary", "--model=mlp", "--image_size=28", "--json")
    assert result(done)["parameters"] == 235_146
    assert start("__main__", "summary", "--model=lenett").returncode == 2


def test_the_script_runs_despite_user_modules_with_the_same_names(environment, own_modules):
    done = run(environment, own_modules, SCRIPT, "summary", "--model=cnn", "--json")
    assert result(done)["parameters"] == 94_058


@pytest.mark.slow
def test_subprocesses_run_despite_user_modules_with_the_same_names(environment, own_modules):
    new_cache = environment | {"XDG_CACHE_HOME": str(own_modules / "cache")}  # The kernels are compiled too.
    grid = ["--workdir=s", "--grid=seed=0", "--", *TINY]
    done = run(new_cache, own_modules, SCRIPT, "sweep", *grid)
    assert done.returncode == 0 and (own_modules / "s" / "seed=0" / "report.html").exists(), done.stderr


def test_a_subprocess_runs_the_code_of_its_parents_checkout(tmp_path, monkeypatch):
    """Also if the package is installed from another checkout, as here."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "summary.py").write_text("import sys\nprint(__file__, *sys.argv[1:])\n")
    monkeypatch.setattr(subprocesses, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(commands.ROOT))
    assert subprocesses.run("summary", "--nosuch").status == 2, "without pyproject.toml, it is not a checkout"
    (tmp_path / "pyproject.toml").touch()
    assert subprocesses.run("summary", "a", "b").output == f"{tmp_path}/experiments/summary.py a b\n"


@pytest.mark.slow
def test_a_wheel_runs_the_demo_without_the_checkout(environment, own_modules, tmp_path_factory):
    """Uses the base interpreter of the virtual environment, with its packages except for the checkout."""
    build, target = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    source = tmp_path_factory.mktemp("source") / "nutshell"
    # A copy, because the build writes next to its sources.
    left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "docs", "tests")
    shutil.copytree(commands.ROOT, source, ignore=left_out)
    done = run(environment, build, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", build, source)
    assert done.returncode == 0, done.stderr
    (wheel,) = build.glob("nutshell-*.whl")
    done = run(environment, build, *pip, "install", "--no-deps", "--no-index", "--target", target, wheel)
    assert done.returncode == 0, done.stderr

    packages = os.pathsep.join([str(target), sysconfig.get_path("purelib")])  # Without its .pth files.
    python = pathlib.Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    started = [python, "-P", target / "bin" / "nutshell", "classify"]
    recipe = f"--flagfile={target / 'experiments' / 'recipes' / 'demo.flags'}"
    alone = {"PYTHONPATH": packages, "XDG_CACHE_HOME": str(own_modules / "cache")}
    done = run(environment, own_modules, *started, recipe, "--workdir=w", "--steps=2", **alone)
    assert result(done)["parameters"] == 94_058
    assert "kernels unavailable" not in done.stderr and (own_modules / "w" / "report.html").exists(), done.stderr
