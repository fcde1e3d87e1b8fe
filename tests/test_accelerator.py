"""Tests of the benchmarks for accelerators, on the CPU."""

import json
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT
from PIL import Image

from benchmarks import accelerator, accelerator_table, numerics


@pytest.mark.parametrize(
    "name, gigaflops",
    [
        ("alexnet_owt", 6 * 0.714188480),  # Multiply-adds as in tests/test_summary.py.
        # Generator: 100 -> 4x4x512, then 4x4 windows to 8x8x256, 16x16x128, 32x32x64 and 64x64x3: three passes.
        # Discriminator: 4x4 windows to 32x32x64, 16x16x128, 8x8x256, 4x4x512, then 1: eight passes.
        ("dcgan", 2e-9 * (3 * 104_628_224 + 8 * 103_817_216)),
    ],
)
def test_operations_of_a_step(name, gigaflops):
    assert accelerator.NETWORKS[name].work(name, None, None).flops == pytest.approx(1e9 * gigaflops, rel=1e-6)


def test_throughput_of_a_step():
    rates = accelerator.rates(flops=6 * 714.19e6, batch_size=128, seconds=0.25, peak_tflops=4.0)
    assert rates == {"images_per_second": 512.0, "step_ms": 250.0, "tflops": 2.19, "share_of_peak": 0.5485}
    rates = accelerator.rates(flops=6 * 714.19e6, batch_size=1, seconds=1.0, peak_tflops=None)
    assert rates == {"images_per_second": 1.0, "step_ms": 1000.0, "tflops": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, line",
    [
        (["--models=alexnet"], "error: --models=alexnet: must be one or more of resnet50, "),
        (["--dtypes=float16"], "error: --dtypes=float16: must be one or more of bfloat16, float32"),
        (["--peak_tflops=1"], "error: --peak_tflops=1: must be a positive number for each of bfloat16, float32"),
        (
            ["--peak_tflops=1,nan"],
            "error: --peak_tflops=1,nan: must be a positive number for each of bfloat16, float32",
        ),
    ],
)
def test_bad_flags_of_the_accelerator_benchmark(start, flags, line):
    done = start("accelerator", *flags, package="benchmarks")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(line)


@pytest.mark.parametrize("case", numerics.CONVOLUTIONS[:2])
def test_numpys_convolution_and_its_gradients_agree(case):
    """<conv(x), y> equals <x, transposed(y)> and <kernel, kernel gradient>, because convolution is linear in both."""
    side, window, stride, padding, channels, outputs = case
    plain, random = numerics.Convolution(window, stride, padding), np.random.default_rng(0)
    x, kernel = random.normal(size=(2, side, side, channels)), random.normal(size=(window, window, channels, outputs))
    y = plain.forward(x, kernel)
    gradient = random.normal(size=y.shape)
    product = (y * gradient).sum()
    assert (x * plain.transposed(gradient, kernel, side)).sum() == pytest.approx(product)
    assert (kernel * plain.kernel_gradient(x, gradient)).sum() == pytest.approx(product)


@pytest.mark.parametrize("case", numerics.CONVOLUTIONS)
def test_convolutions_equal_numpys(case):
    assert numerics.convolution_error(*case) < 1e-5


@pytest.mark.parametrize("case", numerics.TRANSPOSED)
def test_transposed_convolutions_equal_numpys(case):
    assert numerics.transposed_error(*case) < 1e-5


def test_the_table_of_all_parts():
    row = {"model": "resnet50", "dtype": "bfloat16", "batch_size": 512, "images_per_second": 1234.5, "step_ms": 414.75}
    check = {"check": "logits, vgg19", "error": 2e-3, "limit": 1e-4, "passed": False}
    found = {
        "steps": [row | {"tflops": 30.3, "share_of_peak": 0.0306}, row | {"error": "out of memory"}],
        "peer": [row | {"model": "resnet50 (PyTorch)"}],
        "training": [{"accuracy": 0.8936, "step": 8438, "seconds": 12.3}],
        "numerics": [check, check | {"passed": True}],
    }
    assert accelerator_table.markdown(found, "NVIDIA H200").splitlines()[2:] == [
        "| model | dtype | batch size | images/s | step, ms | TFLOP/s | of peak |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| resnet50 | bfloat16 | 512 | 1,234 | 414.8 | 30.3 | 3.1 % |",
        "| resnet50 | bfloat16 | 512 | out of memory |  |  |  |",
        "| resnet50 (PyTorch) | bfloat16 | 512 | 1,234 | 414.8 |  |  |",
        "",
        "dcnn.flags: 89.36 % after 8,438 steps in 12 s.",
        "",
        "| check | error | limit | passed |",
        "| --- | --- | --- | --- |",
        "| logits, vgg19 | 2.0e-03 | 1e-04 | **no** |",
        "| logits, vgg19 | 2.0e-03 | 1e-04 | yes |",
    ]


def test_the_script_goes_on_after_a_part_that_fails(environment, tmp_path):
    """PYTHON fails in one part and prints a row in another; only the table is real."""
    stub = tmp_path / "python"
    row = '{"model": "resnet50", "dtype": "float32", "batch_size": 2, "images_per_second": 1, "step_ms": 5}'
    stub.write_text(f"""#!/bin/bash
case "$*" in
    *accelerator_table*) exec {sys.executable} "$@" ;;
    *benchmarks.accelerator*) echo '{row}' ;;
    *) exit 3 ;;
esac
""")
    stub.chmod(0o755)
    command, out = ["bash", ROOT / "benchmarks/accelerator.sh", tmp_path / "out"], tmp_path / "out"
    done = subprocess.run(command, env=environment | {"PYTHON": str(stub)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: numerics failed" in done.stderr and "error: steps failed" not in done.stderr
    assert [row["step_ms"] for row in json.loads((out / "accelerator.json").read_text())["steps"]] == [5]
    assert "| resnet50 | float32 | 2 | 1 | 5.0 |" in (out / "accelerator.md").read_text()


@pytest.mark.slow
def test_the_script_writes_all_parts(environment, tmp_path):
    """With the smallest sizes, on the CPU; PyTorch's part is skipped if it is not installed."""
    random = np.random.default_rng(0)
    for place in (tmp_path / "data" / split / label for split in ("train", "test") for label in "abc"):
        place.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{i}.png")
    more = {"TINY": "1", "PYTHON": sys.executable}
    command = ["bash", ROOT / "benchmarks/accelerator.sh", tmp_path / "out", tmp_path / "data"]
    done = subprocess.run(command, env=environment | more, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/accelerator.json").read_text())
    assert [row["model"] for row in found["steps"]] == ["resnet50", "dcgan"]
    assert all(row["step_ms"] > 0 for row in found["steps"])
    assert found["training"][0]["step"] == 2 and 0 <= found["training"][0]["accuracy"] <= 1
    assert [row["check"] for row in found["numerics"]][-1] == "logits, resnet18"
    assert all(row["passed"] for row in found["numerics"])
    assert (tmp_path / "out/accelerator.md").read_text() in done.stdout


def test_the_script_refuses_wrong_arguments(environment, tmp_path):
    script, full = ROOT / "benchmarks/accelerator.sh", tmp_path / "full"
    full.mkdir()
    (full / "table.md").write_text("kept")
    for arguments, variables, line in (
        ([], {}, "usage: bash benchmarks/accelerator.sh OUT [DATA]"),
        ([tmp_path / "out", tmp_path / "none"], {}, f"error: DATA={tmp_path}/none: no such folder"),
        ([tmp_path / "out", ""], {}, "error: DATA=: no such folder"),
        ([""], {}, "error: OUT=: can't be created"),
        ([full / "table.md"], {}, f"error: OUT={full}/table.md: can't be created"),
        ([full], {}, f"error: OUT={full}: must be a new or an empty folder"),
        ([tmp_path / "out"], {"PEAKS": "9,x"}, "error: PEAKS=9,x: must be two numbers, such as 989.4,494.7"),
        ([tmp_path / "out"], {"PYTHON": "/nowhere/python"}, "error: PYTHON=/nowhere/python: no such command"),
    ):
        names = environment | variables
        done = subprocess.run(["bash", script, *arguments], env=names, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")
    assert (full / "table.md").read_text() == "kept" and not (tmp_path / "out").exists()
