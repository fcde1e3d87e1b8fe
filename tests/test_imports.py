"""What is imported before it is needed: nothing slow for help or a bad flag, for a first step jax and little else."""

import json
import subprocess
import sys

import pytest
from commands import ROOT

FOR_STEPS = {"jax", "flax", "optax", "numpy", "PIL"}
LATER = {"orbax", "tensorstore", "grain", "tensorboardX", "matplotlib", "scipy", "sklearn", "mlxtend", "tqdm"}


def slow_modules(code: str) -> set[str]:
    """Those that a new process has imported when it has run the code."""
    lines = f"import json, sys\n{code}\nprint()\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, cwd=ROOT, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])} & (FOR_STEPS | LATER)


@pytest.mark.parametrize(
    "command", ["classify", "segment", "generate", "reconstruct", "evaluate", "predict", "summary"]
)
def test_help_imports_nothing_slow(command):
    run = f"runpy.run_module('experiments.{command}', run_name='__main__')"
    code = f"import runpy\nsys.argv = ['{command}', '--help']\ntry:\n    {run}\nexcept SystemExit:\n    pass"
    assert slow_modules(code) == set()


@pytest.mark.parametrize("flag", ["--devices=200", "--model=logistic", "--steps=0.5"])
def test_the_refusal_of_a_bad_flag_imports_nothing_slow(flag):
    run = "runpy.run_module('experiments.classify', run_name='__main__')"
    code = f"import runpy\nsys.argv = ['classify', '--workdir=w', '{flag}']\ntry:\n    {run}\n"
    code += "except SystemExit as end:\n    assert end.code == 2, end.code"
    assert slow_modules(code) == set()


def test_a_first_step_needs_no_checkpoints_figures_or_readers_of_files():
    modules = "reporting.classification_report, experiments.reporting.run_record, experiments.setup.training"
    assert slow_modules(f"import experiments.{modules}, train.loop") == FOR_STEPS
