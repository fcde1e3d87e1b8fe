"""Tests of the benchmarks; the peer's script is replaced by a fake that prints the same kind of output."""

import io
import json
import os
import pathlib
import signal
import statistics
import sys

import made_idx
import numpy as np
import pytest
from documented_runs import NO_TORCH
from PIL import Image

import data
from benchmarks import twins

FAKE = """
import json, sys
given = dict(flag.lstrip("-").split("=") for flag in sys.argv[1:] if "=" in flag)
with open(__file__ + ".log", "a") as log:
    print(*sys.argv[1:], file=log)
calls = open(__file__ + ".log").read().count("--layout=channels_last --threads=1")
if "--compile" in sys.argv and (COMPILES is None or given["layout"] != COMPILES):
    sys.exit("no compiler")
slow = given["layout"] == "nchw"
ms = 400.0 if slow else 120.0 if given["threads"] == "2" else 1000.0 if calls == 1 else 100.0
ms = 50.0 if "--compile" in sys.argv else ms
print("a line that is not JSON")
print(json.dumps({"parameters": PARAMETERS, "median_ms": ms}))
"""


@pytest.fixture
def fake(tmp_path):
    """fake(parameters) returns the path of a peer that is fastest with one thread, except for a slow first call.
    --compile fails except with the layout `compiles`, where it is even faster."""

    def write(parameters, compiles=None):
        text = FAKE.replace("PARAMETERS", str(parameters)).replace("COMPILES", repr(compiles))
        (tmp_path / "peer.py").write_text(text)
        return tmp_path / "peer.py"

    return write


@pytest.fixture
def measure(start, tmp_path):
    """measure(*arguments) runs benchmarks.MODULE to completion."""

    def run(*arguments, module="classifiers"):
        only = ["--models=mlp"] * (module == "classifiers")
        return start(module, *only, *arguments, package="benchmarks", folder=tmp_path)

    return run


@pytest.mark.slow
def test_measurements_of_ours_and_the_peer_alternate(measure, fake, tmp_path):
    peer = fake(5_256_202)  # The number of parameters of the MLP 3072-1024-1024-1024-10.
    done = measure(f"--peer={peer}", "--rounds=2", "--seconds=0.01", "--json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    row = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    assert json.loads(lines[-1]) == {"ratios": {"mlp": row["ratio"]}}
    assert (row["model"], row["batch_size"], row["peer_ms"]) == ("mlp", 128, 100.0)
    assert row["peer_setting"] == "--layout=channels_last --threads=1" and "compiled_ratio" not in row
    assert row["ratio"] == pytest.approx(row["ours_ms"] / 100.0, abs=1e-4)
    assert lines[1].split()[:2] == ["mlp", "128"] and lines[1].endswith(row["peer_setting"])
    assert lines[2] == f"geometric mean of 1: {statistics.geometric_mean([row['ratio']]):.3f}"
    assert lines[3].startswith(f"input path mlp: {row['others']['input path']:.3f} times")
    turns = row["turns"]
    assert row["peer_setting"] in turns["peer"] and not any("nchw" in s or "compile" in s for s in turns["peer"])
    assert all(found in ([100.0, 100.0], [120.0, 120.0]) for found in turns["peer"].values())
    assert len(turns["ours"]) == 2 * (len(turns["peer"]) + 1) and len(turns["others"]["input path"]) == 2
    calls = pathlib.Path(f"{peer}.log").read_text().splitlines()
    assert all("--model=mlp --batch_size=128" in call for call in calls)
    assert sum(f"--steps={turns['steps']}" in call for call in calls) == 2 * len(turns["peer"])


@pytest.mark.slow
def test_the_compiled_peer_is_reported_separately(measure, fake):
    done = measure(f"--peer={fake(5_256_202, 'nchw')}", "--rounds=1", "--seconds=0.01", "--forward_only", "--batch=3")
    assert done.returncode == 0, done.stderr
    row = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    assert (row["batch_size"], row["peer_ms"], row["compiled_ms"], row["others"]) == (3, 100.0, 50.0, {})
    assert row["compiled_ratio"] == pytest.approx(row["ours_ms"] / 50.0, abs=1e-4)
    assert row["compiled_setting"].startswith("--layout=nchw --threads=") and "geometric mean of 1:" in done.stdout
    calls = pathlib.Path(f"{fake(5_256_202)}.log").read_text().splitlines()
    assert all("--model=mlp --batch_size=3" in call and call.endswith("--forward_only") for call in calls)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet100_bc", "resnet18"])
def test_another_parameter_count_is_refused_for_other_networks(measure, fake, name):
    parameters = {"alexnet": 61_100_840, "resnet18": 11_689_512, "densenet100_bc": 769_162}[name]
    done = measure(f"--peer={fake(parameters - 1)}", f"--models={name}")
    line = f"error: {name} has {parameters:,} parameters here and {parameters - 1:,} in the peer\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_another_parameter_count_is_refused_for_segnet_basic(measure, fake):
    done = measure(f"--peer={fake(1_416_586)}", module="segmentation")
    line = "error: segnet_basic has 1,416,587 parameters here and 1,416,586 in the peer\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_the_peers_time_is_the_median_of_its_best_setting():
    peer = {
        "--threads=1": [90.0, 20.0, 95.0],
        "--threads=2": [40.0, 50.0, 300.0],
        "--threads=2 --compile": [20.0, 19.0, 90.0],
    }
    others = {"input path": [1.01, 1.5, 1.02], "augmentation": [1.0, 1.0, 1.005]}
    turns = {"steps": 5, "ours": [24.0, 25.0, 90.0], "peer": peer, "others": others}
    row = twins.summarise("densenet40", turns, batch_size=64)
    assert (row["ours_ms"], row["peer_ms"], row["peer_setting"], row["ratio"]) == (25.0, 50.0, "--threads=2", 0.5)
    assert (row["compiled_ms"], row["compiled_setting"], row["compiled_ratio"]) == (20.0, "--threads=2 --compile", 1.25)
    assert row["others"] == {"input path": 1.02, "augmentation": 1.0} and row["batch_size"] == 64
    assert twins.table([row])[1:] == [
        "densenet40        64      25.0      50.0   0.50      20.0   1.25  --threads=2",
        "geometric mean of 1: 0.500",
        "input path densenet40: 1.020 times the step on one fixed batch",
        "augmentation densenet40: 1.000 times the step on one fixed batch",
    ]


def test_without_a_peer_only_our_time_is_reported():
    row = twins.summarise("mlp", {"steps": 5, "ours": [24.0], "peer": {}, "others": {}}, batch_size=128)
    assert "ratio" not in row and twins.table([row])[1].split() == ["mlp", "128", "24.0", *"-----"]


def test_another_parameter_count_is_refused(measure, fake):
    done = measure(f"--peer={fake(5_256_201)}")
    line = "error: mlp has 5,256,202 parameters here and 5,256,201 in the peer\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.slow
def test_errors_are_one_line(measure, tmp_path):
    needs_torch = tmp_path / "needs_torch.py"
    needs_torch.write_text("import json\nraise ModuleNotFoundError(\"No module named 'torch'\")\n")
    silent = tmp_path / "silent.py"
    silent.write_text("print('nothing')\n")
    for status, line, arguments in (
        (2, "error: --peer=absent.py: no such file", ["--peer=absent.py"]),
        (
            2,
            f"error: --peer_python={sys.executable}: {NO_TORCH}; must be a Python with torch",
            [f"--peer={needs_torch}"],
        ),
        (2, "error: --peer_python=absent: no such command; ", [f"--peer={silent}", "--peer_python=absent"]),
        (1, "error: the peer printed no JSON with parameters and median_ms: ", [f"--peer={silent}"]),
        (
            2,
            "error: --models=vgg: must be one of mlp, vgg_like, resnet20, densenet40, ",
            ["--models=vgg"],
        ),
        (2, "error: --rounds=0: ", ["--rounds=0"]),
        (2, "error: --seconds=nan: must be between 0.001 and 3600", ["--seconds=nan"]),
    ):
        done = measure(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
        assert done.stderr.startswith(line)


def test_the_gan_benchmark_without_torch_is_a_one_line_error(start, without_torch):
    done = start("gan", f"--peer_python={sys.executable}", package="benchmarks", environment=without_torch)
    line = f"error: --peer_python={sys.executable}: {NO_TORCH}; must be a Python with torch\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize(("name", "modules"), [("record", "torch and numpy"), ("loader", "torch and torchvision")])
def test_the_record_and_loader_benchmarks_without_torch_end_at_once(start, without_torch, name, modules):
    done = start(name, f"--peer_python={sys.executable}", package="benchmarks", environment=without_torch)
    line = f"error: --peer_python={sys.executable}: {NO_TORCH}; must be a Python with {modules}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_sigterm_also_ends_the_training_program_of_the_record_benchmark(launch, tmp_path):
    """The peer's Python is a script that waits. It writes its process ID when the benchmark has begun to read its
    output, of which the pipe cannot hold as much."""
    peer, pid = tmp_path / "peer", tmp_path / "pid"
    wait = f"head -c 200000 /dev/zero\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 1000\n"
    peer.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit\n{wait}')
    peer.chmod(0o755)
    made_idx.write(tmp_path / "data", train=1024)
    dataset = ["--dataset=fashion_mnist", f"--data_dir={tmp_path}/data"]
    command = launch("record", f"--peer_python={peer}", *dataset, package="benchmarks")
    command.wait_until(pid.exists)
    command.send_signal(signal.SIGTERM)
    done = command.wait()
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_bad_flags_of_the_record_benchmark(start, tmp_path):
    python = f"--peer_python={sys.executable}"
    for line, arguments in (
        ("--seeds=-2: must be a list of integers of 0 or more, less than 2**63", [python, "--seeds=1,-2"]),
        (f"--seeds={2**63}: must be a list of integers of 0 or more, less than 2**63", [python, f"--seeds={2**63}"]),
        ("--epochs=nan: must be a number from 0.01 to 1000", [python, "--epochs=nan"]),
        (
            f"--peer_python={tmp_path}: no such command; must be a Python with torch and numpy",
            [f"--peer_python={tmp_path}"],
        ),
    ):
        done = start("record", *arguments, package="benchmarks")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")


def test_recompressed_images(start, tmp_path):
    splits = made_idx.write(tmp_path / "source")
    command = ["recompress", f"--data_dir={tmp_path}/source", f"--out={tmp_path}/out"]
    done = start(*command, package="benchmarks")
    assert done.returncode == 0, done.stderr
    for split, (images, labels) in data.load("fashion_mnist", str(tmp_path / "out")).splits.items():
        np.testing.assert_array_equal(labels, splits[split][1])
        decoded = [through_jpeg(image, 75) for image in splits[split][0]]
        np.testing.assert_array_equal(images[..., 0], decoded)
        error = np.mean((images[..., 0] / 255 - splits[split][0] / 255) ** 2)
        assert error > 0
        if split == "train":
            assert done.stdout == f"40 training images of quality 75: {-10 * np.log10(error):.2f} dB\n"
    again = start(*command, package="benchmarks")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1) and "already contains" in again.stderr
    unnamed = start("recompress", "--out=", package="benchmarks")
    assert (unnamed.returncode, unnamed.stderr) == (2, "error: --out must be given: the folder for the files\n")


def through_jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
