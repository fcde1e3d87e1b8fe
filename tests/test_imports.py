"""Tests that imports are lazy: nothing slow for --help or a bad flag, and little besides JAX for the first step."""

import json
import subprocess
import sys

import pytest
from commands import ROOT

NEEDED_FOR_STEPS = {"jax", "flax", "optax", "numpy", "PIL"}
UNNEEDED = {"orbax", "tensorstore", "grain", "tensorboardX", "matplotlib", "scipy", "sklearn", "mlxtend", "tqdm"}


def slow_modules(code: str) -> set[str]:
    """The slow modules that a new process has imported after running `code`."""
    lines = f"import json, sys\n{code}\nprint()\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & (NEEDED_FOR_STEPS | UNNEEDED)


@pytest.mark.parametrize(
    "command", ["classify", "segment", "generate", "reconstruct", "evaluate", "predict", "summary"]
)
def test_help_imports_nothing_slow(command):
    run = f"runpy.run_module('experiments.{command}', run_name='__main__')"
    code = f"import runpy\nsys.argv = ['{command}', '--help']\ntry:\n    {run}\nexcept SystemExit:\n    pass"
    assert slow_modules(code) == set()


@pytest.mark.parametrize("flag", ["--devices=200", "--model=logistic", "--steps=0.5"])
def test_a_bad_flag_imports_nothing_slow(flag):
    run = "runpy.run_module('experiments.classify', run_name='__main__')"
    code = f"import runpy\nsys.argv = ['classify', '--workdir=w', '{flag}']\ntry:\n    {run}\n"
    code += "except SystemExit as end:\n    assert end.code == 2, end.code"
    assert slow_modules(code) == set()


def test_the_first_step_does_not_import_checkpoint_figure_or_data_libraries():
    modules = "reporting.classification_report, experiments.reporting.run_record, experiments.setup.training"
    assert slow_modules(f"import experiments.{modules}, train.loop") == NEEDED_FOR_STEPS
