"""Tests of the environment that a run records, and of reproducing a run."""

import json
import shutil
import subprocess

import pytest
from PIL import Image
from results import result

from experiments import reproduce
from experiments.reporting import environment

MLP = ["--model=mlp", "--hidden=8", "--batch_size=32", "--steps=6", "--eval_every=3", "--log_every=2"]


def git(folder, *arguments):
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_recorded_only_for_tracked_files(tmp_path):
    nothing = {"commit": None, "dirty": None, "diff_sha256": None}
    (tmp_path / "inside").mkdir()
    for name in ("module.py", "inside/installed.py"):
        (tmp_path / name).write_text("x = 1\n")
    assert environment.source(tmp_path / "module.py") == nothing
    git(tmp_path, "init")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "Begin")
    clean = environment.source(tmp_path / "module.py")
    assert len(clean["commit"]) == 40 and clean == {"commit": clean["commit"], "dirty": False, "diff_sha256": None}
    # As in a virtual environment inside the checkout of another project.
    assert environment.source(tmp_path / "inside/installed.py") == nothing
    digests = []
    for text in ("x = 2\n", "x = 3\n"):
        (tmp_path / "module.py").write_text(text)
        changed = environment.source(tmp_path / "module.py")
        assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)
        digests.append(changed["diff_sha256"])
    assert len(digests[0]) == 64 and digests[0] != digests[1]


def test_differences_between_environments():
    run, here = ({"processor": f"{name}, 2 cores", "commit": "1", "dirty": name == "B"} for name in "AB")
    run["packages"], here["packages"] = {"jax": "0.9", "flax": "1", "old": "1"}, {"jax": "1.0", "flax": "1", "new": "2"}
    run |= {"environment": {"XLA_FLAGS": "-a"}, "data_digests": {"train": "x", "test": "y"}}
    here |= {"environment": {}, "data_digests": {"train": "z", "test": "y"}, "cpu_kernels": True}
    assert environment.differences(run, here) == [
        "processor: A, 2 cores (run), B, 2 cores (here)",
        "dirty: no (run), yes (here)",
        "jax: 0.9 (run), 1.0 (here)",
        "new: none (run), 2 (here)",
        "old: 1 (run), none (here)",
        "variable XLA_FLAGS: -a (run), none (here)",
        "data of split train: x (run), z (here)",
    ]
    assert environment.differences(run, run) == []
    assert environment.differences({"packages": [1], "environment": 3, "processor": "A, 2 cores"}, run) == []


def test_the_first_step_that_differs():
    rows = [{"step": 2.0, "loss": 1.0, "seconds": 1.0}, {"step": 4.0, "loss": 0.5, "seconds": 2.0}]
    assert reproduce.first_different_step(rows, [row | {"seconds": 9.0} for row in rows]) is None
    assert reproduce.first_different_step(rows, [rows[0], rows[1] | {"loss": 0.6}]) == 4
    assert reproduce.first_different_step(rows, rows[1:]) == 2


@pytest.mark.slow
def test_a_run_is_reproduced_and_changes_are_detected(start, tmp_path, monkeypatch):
    summary = result(start("classify", f"--workdir={tmp_path / 'w'}", *MLP))
    found = result(start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'same'}"))
    assert found["identical"] and found["fingerprint"] == [summary["fingerprint"]] * 2
    assert found["metrics"] == {} and found["environment"] == [] and found["first_different_step"] is None
    # As if the run had been made on another machine, with another result.
    for name, changed in (("run", {"processor": "another"}), ("summary", {"accuracy": 0.5, "fingerprint": "0"})):
        path = tmp_path / "w" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    metrics = tmp_path / "w/metrics.csv"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:-1], lines[-1].replace("6,", "6,9", 1)]) + "\n")
    done = start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'same'}")
    assert (
        done.returncode == 1
        and "not identical: parameters different; metrics.csv differs first at step 6" in done.stderr
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["identical"] and found["metrics"] == {"accuracy": [0.5, summary["accuracy"]]}
    assert found["environment"] == [f"processor: another (run), {environment.processor()} (here)"]


@pytest.mark.slow
def test_a_run_that_cannot_be_reproduced_is_a_one_line_error(start, tmp_path):
    done = start("reproduce", f"--run={tmp_path}", f"--workdir={tmp_path / 'new'}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and f"--run={tmp_path} does not contain" in done.stderr
    result(start("classify", f"--workdir={tmp_path / 'w'}", *MLP))
    done = start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'w'}/")
    assert done.returncode == 2 and "must differ from --run" in done.stderr
    # The outputs of the old run are read before the new run starts.
    for name, damaged in (
        *(("metrics.csv", text) for text in (b"", b"step,loss\n2,x\n4,1\n", b"a,b\n1,2\n", b"\xff\xfe")),
        *(("summary.json", text) for text in (b"{}", b"[", None)),
    ):
        path = tmp_path / "w" / name
        whole = path.read_bytes()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        done = start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'new'}")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"does not contain a finished run: no readable {name}" in done.stderr
        assert not (tmp_path / "new").exists()
        path.write_bytes(whole)


@pytest.mark.slow
def test_a_run_with_a_relative_data_folder_is_reproduced(start, launch, tmp_path, mnist5k):
    images, labels = mnist5k.splits["train"]
    for split, part in (("train", slice(0, 4000, 100)), ("test", slice(50, 4000, 200))):
        for i, (image, label) in enumerate(zip(images[part], labels[part], strict=True)):
            folder = tmp_path / "here/images" / split / str(label % 2)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    options = [*MLP, "--dataset=folder", "--data_dir=images", "--batch_size=8"]
    result(launch("classify", f"--workdir={tmp_path / 'w'}", *options, folder=tmp_path / "here").wait())
    assert result(start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'again'}"))["identical"]


@pytest.mark.slow
def test_a_run_of_an_older_version_is_reproduced_on_its_own_split(start, tmp_path):
    result(start("classify", f"--workdir={tmp_path / 'w'}", *MLP, "--val_fraction=0.1", "--eval_split=test"))
    path = tmp_path / "w/run.json"
    run = json.loads(path.read_text())
    del run["eval_split"], run["flags"]["eval_split"]  # As written by versions before val became the default split.
    path.write_text(json.dumps(run))
    assert result(start("reproduce", f"--run={tmp_path / 'w'}", f"--workdir={tmp_path / 'again'}"))["identical"]
