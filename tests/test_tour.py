"""Tests of the notebook docs/tour.ipynb."""

import json
import subprocess

import pytest
from commands import OPTIMIZATION, ROOT
from test_documents import LINK

CELLS = json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"]
CODE, TEXTS = (
    ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind] for kind in ("code", "markdown")
)
# What the notebook claims, as a program that runs after its cells.
CLAIMS = """
assert accuracy > 0.97 and confusion.sum() == 1000 and confusion.trace() == round(1000 * accuracy)
assert kernel.shape == (5, 5, 1, 32)
assert broken_gradients[0] < 1e-10 and broken_gradients[-1] > 0.1 and 3 < ratios.mean() < 6
assert broken_accuracy < 0.2 and repaired_accuracy > 0.8
assert all(0.1 < gradient < 30 for gradient in repaired_gradients)
assert accuracies[0.1] > 0.75 and accuracies[10.0] < 0.3 and max(curve) > 100 and abs(curve[-1] - np.log(10)) < 0.3
"""


def test_the_first_cell_installs_only_if_the_package_is_missing(monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: called.append(given))
    exec(CODE[0], {})
    missing = CODE[0].replace("import experiments", "import experiments.nosuch", 1)
    with pytest.raises(ModuleNotFoundError, match="^Nutshell is not installed: set REPOSITORY in this cell"):
        exec(missing, {})
    assert not called
    exec(missing.replace('REPOSITORY = ""', 'REPOSITORY = "https://host/name"'), {})
    assert called[0][0][1:3] == ["-m", "pip"] and called[0][0][-1] == "git+https://host/name"


def test_the_notebook_is_small_and_has_outputs_without_errors_or_paths():
    assert (ROOT / "docs/tour.ipynb").stat().st_size < 300_000
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 7
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert " /" not in printed and {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"] == [*range(1, 1 + len(CODE))]


def test_the_links_of_the_notebook_lead_somewhere():
    links = [link for text in TEXTS for link in LINK.findall(text)]
    assert links and all((ROOT / "docs" / link).exists() for link in links)


@pytest.mark.slow
def test_the_cells_run_and_show_what_the_text_says(start, tmp_path, environment):
    """All cells, one after the other in one process, with optimized programs, because they train for many steps."""
    names = {name: value for name, value in environment.items() if name != OPTIMIZATION} | {"MPLBACKEND": "agg"}
    done = start("\n".join([*CODE, CLAIMS]), folder=tmp_path, environment=names)
    assert done.returncode == 0, done.stderr
    assert "20 layers with ReLU" in done.stdout and (tmp_path / "runs/tour/report.html").exists()
