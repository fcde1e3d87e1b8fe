"""Tests of the commands as users run them, of killed runs, and of bad input."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import SignalAt
from PIL import Image
from results import TIMES, result, same

import data
from experiments.cli import compilation_cache

SMALL = ["--model=mlp", "--hidden=16", "--augment=digits", "--batch_size=32", "--dropout=0.2", "--steps=24"]
SMALL += ["--log_every=5", "--eval_every=8"]
CNN = ["--model=cnn", *SMALL[2:]]


@pytest.fixture(scope="session")
def whole(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, result(start("classify", f"--workdir={workdir}", *SMALL))


def rows(workdir):
    lines = (pathlib.Path(workdir) / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [{k: v for k, v in zip(names, line.split(","), strict=True) if k not in TIMES} for line in lines[1:]]


def test_outputs_of_a_run(whole):
    workdir, summary = whole
    assert json.loads((workdir / "summary.json").read_text()) == summary
    names = ["model", "dataset", "split", "loss", "accuracy", "accuracy_top5", "examples", "step", "seed", "parameters"]
    names += ["seconds", "compile_seconds", "images_per_second", "fingerprint", "workdir"]
    assert list(summary) == names
    assert (summary["examples"], summary["step"], summary["parameters"]) == (1000, 24, 784 * 16 + 16 + 16 * 10 + 10)
    assert [row["step"] for row in rows(workdir)] == ["5", "8", "10", "15", "16", "20", "24"]
    run = json.loads((workdir / "run.json").read_text())
    assert run["splits"] == {"train": 4000, "test": 1000} and run["end"] and run["multiply_adds"] == 784 * 16 + 16 * 10
    assert {p.name for p in (workdir / "figures").iterdir()} >= {"loss.png", "confusion_matrix.png", "layer1.png"}
    assert "--model=mlp" in (workdir / "flags.txt").read_text() and "<img" in (workdir / "report.html").read_text()
    assert list(workdir.glob("events.*"))


def test_a_finished_run_prints_its_summary_and_does_nothing(whole, start):
    workdir, summary = whole
    before = (workdir / "report.html").stat().st_mtime_ns
    done = start("classify", f"--workdir={workdir}", f"--flagfile={workdir / 'flags.txt'}")
    assert result(done) == summary and "complete" in done.stderr
    assert (workdir / "report.html").stat().st_mtime_ns == before


def test_the_compilation_cache_is_private(tmp_path, monkeypatch, capsys):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "nutshell" / "compiled"
    try:
        compilation_cache.start_cache()
        assert folder.stat().st_mode & 0o777 == 0o700 and jax.config.jax_compilation_cache_dir == str(folder)
        jax.config.update("jax_compilation_cache_dir", before)
        folder.chmod(0o777)
        compilation_cache.start_cache()
        assert jax.config.jax_compilation_cache_dir == before and "is writable by other" in capsys.readouterr().err
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_evaluate_equals_the_runs_own_evaluation(whole, start):
    workdir, summary = whole
    scores = result(start("evaluate", f"--workdir={workdir}", "--batch_size=300"))
    assert scores["accuracy"] == summary["accuracy"] and scores["fingerprint"] == summary["fingerprint"]
    assert scores["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    done = start("evaluate", f"--workdir={workdir}", "--tta=ten_view")
    assert done.returncode == 2 and "--tta=ten_view is supported only with --augment=crop24" in done.stderr
    assert len((workdir / "confusion.csv").read_text().splitlines()) == 11
    assert result(start("evaluate", f"--workdir={workdir}", "--split=train"))["examples"] == 4000


def after_row(count, number=signal.SIGKILL):
    """A signal after `count` rows of metrics.csv."""
    return SignalAt(number, "train.workdir:MetricsFile.append", count)


@pytest.mark.parametrize("kills", [(1,), pytest.param((3, 2), marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_identically(whole, start, tmp_path, kills):
    """Kills the run before its first checkpoint, or twice, each time while a checkpoint may still be in progress."""
    arguments = [f"--workdir={tmp_path / 'killed'}", *SMALL]
    for count in kills:
        done = start("classify", *arguments, signal_at=after_row(count))
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(result(start("classify", *arguments)), whole[1])
    assert rows(tmp_path / "killed") == rows(whole[0])


@pytest.mark.slow
def test_a_killed_convolutional_run_resumes_bit_identically(start, tmp_path):
    whole, killed = (["classify", f"--workdir={tmp_path / name}", *CNN] for name in ("whole", "killed"))
    summary = result(start(*whole))
    assert start(*killed, signal_at=after_row(4)).returncode == -signal.SIGKILL
    assert same(result(start(*killed)), summary)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    "at, step",
    [
        (after_row(3, signal.SIGTERM), 10),  # No checkpoint was due at that step.
        pytest.param(  # Between two rows of metrics.csv.
            SignalAt(signal.SIGTERM, "train.checkpoint:Checkpoints.save", 1), 7, marks=pytest.mark.slow
        ),
        pytest.param(after_row(3, signal.SIGINT), 10, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_the_next_step_and_the_run_resumes(whole, start, tmp_path, at, step):
    arguments = [f"--workdir={tmp_path / 'stopped'}", *SMALL, "--save_every=7"]
    done = start("classify", *arguments, signal_at=at)
    assert done.returncode == 128 + at.number and "the same command resumes" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "stopped" / "summary.json").exists()
    done = start("classify", *arguments)
    assert f"resuming from step {step}" in done.stderr and same(result(done), whole[1])
    assert rows(tmp_path / "stopped") == rows(whole[0])


@pytest.mark.slow
def test_a_run_resumes_on_two_devices_and_initializes_another(whole, start, tmp_path):
    workdir = tmp_path / "moved"
    arguments = [f"--workdir={workdir}", *SMALL]
    # At the row of step 20: the checkpoint of step 8 was complete before the checkpoint of step 16 began.
    assert start("classify", *arguments, signal_at=after_row(6)).returncode == -signal.SIGKILL
    done = start("classify", *arguments, "--devices=2")
    summary = result(done)
    assert "2 cpu devices (simulated)" in done.stderr and "resuming from step" in done.stderr
    assert abs(summary["accuracy"] - whole[1]["accuracy"]) < 0.1
    other = [f"--workdir={tmp_path / 'o'}", "--steps=1", "--learning_rate=1e-9", f"--init_from={workdir}"]
    found = result(start("classify", *other, "--model=mlp", "--hidden=16"))
    assert found["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    same = result(
        start("classify", *other, "--model=mlp", "--hidden=16", "--activation=relu", f"--workdir={tmp_path}/r")
    )
    assert same["loss"] == found["loss"]  # relu is the default.
    done = start("classify", *other, "--model=cnn", f"--workdir={tmp_path / 'p'}")
    assert done.returncode == 2 and "has --model=mlp, this run --model=cnn" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_predict_labels_files_and_reports_unreadable_ones(whole, start, mnist5k, tmp_path):
    images, labels = mnist5k.splits["test"]
    for i in (0, 500):
        Image.fromarray(images[i, ..., 0]).resize((56, 56)).save(tmp_path / f"{labels[i]}.png")
    (tmp_path / "bad.png").write_text("no image")
    done = start("predict", f"--workdir={whole[0]}", *sorted(tmp_path.glob("*.png")), "--top=2")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and "bad.png" in done.stderr and "Traceback" not in done.stderr
    assert lines[0] == "file,label,probability" and len(lines) == 5
    probabilities = np.array([float(line.split(",")[2]) for line in lines[1:]])
    assert (probabilities[::2] >= probabilities[1::2]).all()


def test_predict_counts_many_unreadable_files(whole, start, tmp_path):
    files = [tmp_path / f"{i:03}.png" for i in range(123)]
    for path in files:
        path.write_text("no image")
    done = start("predict", f"--workdir={whole[0]}", *files)
    *named, last = done.stderr.splitlines()
    assert done.returncode == 1 and [line.split(":")[1].strip() for line in named] == [str(path) for path in files[:20]]
    assert last == "error: 103 more of the 123 files can't be read"


def test_a_full_standard_output_is_reported(environment, tmp_path):
    for arguments in (["evaluate", "--help"], ["summary", "--model=mlp"]):
        command = [sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]]
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert (done.returncode, done.stderr) == (1, "error: No space left on device: standard output\n")


def test_a_removed_current_folder_is_reported(launch, tmp_path):
    program = "import os\nos.rmdir(os.getcwd())\nfrom experiments import classify\nfrom experiments.cli import app\n"
    program += "app.run(classify.main, classify.ClassifyConfig)\n"
    (tmp_path / "gone").mkdir()
    done = launch(program, "--workdir=w", folder=tmp_path / "gone").wait()
    line = "error: --workdir=w: relative path, but the current folder no longer exists\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("model", ["mlp", pytest.param("logistic", marks=pytest.mark.slow)])
def test_dry_run_and_summary(start, tmp_path, model):
    extra = ["--positive=3", "--negative=8"] if model == "logistic" else []
    done = start("classify", f"--workdir={tmp_path / 'v/w'}", f"--model={model}", "--dry_run", *extra)
    summary = result(done)
    assert summary["step"] == 2 and summary["parameters"] > 0 and not summary.keys() & {"loss", "accuracy"}
    assert "all outputs are discarded" in done.stderr and not any(word in done.stderr for word in ("loss", "report:"))
    assert list(tmp_path.iterdir()) == []
    described = result(start("summary", f"--model={model}", "--image_size=28", "--json"))
    assert described["parameters"] == sum(layer["parameters"] for layer in described["layers"]) > 0


@pytest.mark.slow
def test_a_dry_run_on_generated_images(start, tmp_path):
    flags = ["--model=mlp", "--hidden=4", "--dataset=folder", "--data_dir=absent", "--dry_run", "--dry_run_data"]
    flags += ["--image_size=32", "--augment=crop", "--colour_noise=0.1", "--tta=ten_view"]
    (tmp_path / "w/.dry_run_of_a_killed_one").mkdir(parents=True)
    (tmp_path / "w/mine").touch()
    done = result(start("classify", f"--workdir={tmp_path / 'w'}", *flags))
    assert {path.name for path in (tmp_path / "w").iterdir()} == {"mine", ".lock"}
    assert done["examples"] == 2 and done["parameters"] == 3 * 32 * 32 * 4 + 4 + 4 * 1000 + 1000
    done = start("classify", f"--workdir={tmp_path / 'v'}", "--dry_run_data")
    assert done.returncode == 2 and "--dry_run_data needs --dry_run" in done.stderr
    small = ["--batch_size=4", "--parallelism=hybrid", "--devices=2", "--image_size=31"]
    done = start("classify", f"--workdir={tmp_path / 'v'}", *flags[2:6], *small, "--model=vgg11")
    assert done.returncode == 2 and "at least 32x32 pixels, not 31x31" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = start("classify", f"--workdir={tmp_path / 'v'}", "--dry_run", "--fc_update=each_pass")
    assert done.returncode == 2 and "need --parallelism=hybrid" in done.stderr


def test_a_bad_grid_is_a_one_line_error(start, tmp_path):
    for grid in ("seed=4..0", "seed=1,1", "seed='1", "workdir=a", "seed", "", "seed=0..99999999"):
        done = start("sweep", f"--workdir={tmp_path / 's'}", f"--grid={grid}", "--print_commands")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "--grid" in done.stderr


@pytest.mark.slow
def test_sweep(start, tmp_path):
    arguments = [f"--workdir={tmp_path / 's'}", "--grid=learning_rate=0.1 seed=0..1", "--", "--model=perceptron"]
    arguments.append("--steps=10")
    printed = start("sweep", "--print_commands", *arguments)
    assert len(printed.stdout.splitlines()) == 2 and not (tmp_path / "s").exists()
    done = start("sweep", *arguments)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "s" / "sweep.csv").read_text().splitlines()) == 3 and done.stdout.count("±") == 1
    assert "complete" in start("sweep", *arguments).stderr and (tmp_path / "s" / "sweep_curves.png").exists()


BAD_FLAGS = {
    "--nodry_run=3": "--nodry_run=3 does not take an argument",
    "--hidden=99999999999999": "must be between 1 and 1000000",
    "--model=lenett": "did you mean lenet",
    "--dataset=mnst5k": "did you mean mnist5k",
    "--data_dir=images": "/images is not supported by --dataset=mnist5k",
    "--learning_rat=1": "learning_rat",
    "--batch_size=0": "--batch_size=0",
    "--steps=-1": "--steps=-1",
    "--learning_rate=0": "--learning_rate=0",
    "--learning_rate=nan": "--learning_rate=nan",
    "--batch_size=4001": "4000",
    "--batch_size=many": "many",
    "--schedule=linear": "cosine",
    "--model=logistic": "--positive",
    "--hidden=5": "has --dropout",
    "--devices=0": "--devices=0",
    "--devices=200": "must be between 1 and the batch size, 128",
    "--seed=4294967296": "--seed=4294967296",
    "--weight_decay=inf": "--weight_decay=inf",
    "--warmup_steps=99999999999": "--warmup_steps=99999999999",
    "--steps=many": "must be an integer",
    "--slope=0.1": "needs --activation=leaky_relu",
    "--model=densenet --depth=41": "3N + 4 layers, not 41",
    "--model=densenet --compression=0.001": "leaves no channels of",
    f"--flagfile={sys.executable}": "utf-8",
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_a_bad_flag_is_a_one_line_error_with_status_2(start, tmp_path, flag):
    done = start("classify", f"--workdir={tmp_path / 'w'}", *flag.split())
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and BAD_FLAGS[flag] in done.stderr
    assert not (tmp_path / "w").exists()


def test_an_indivisible_batch_size_suggests_the_nearest(start, tmp_path):
    done = start("classify", f"--workdir={tmp_path / 'w'}", "--batch_size=30", "--devices=4")
    assert done.returncode == 2 and "try 28 or 32" in done.stderr


@pytest.mark.slow
def test_unusable_workdirs_are_reported(whole, start, tmp_path):
    (tmp_path / "file").write_text("")
    done = start("classify", f"--workdir={tmp_path / 'file' / 'w'}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    done = start("classify", f"--workdir={whole[0]}", *SMALL, "--steps=25")
    assert done.returncode == 1 and "--steps=24 (stored), 25 (given)" in done.stderr
    for name, text in (("run.json", "[]"), ("run.json", '{"flags": []}'), ("summary.json", "{")):
        broken = tmp_path / f"broken {name} {len(text)}"
        shutil.copytree(whole[0], broken)
        (broken / name).write_text(text)
        done = start("classify", f"--workdir={broken}", *SMALL)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and f"{name} is damaged" in done.stderr
    (broken / "summary.json").write_text(json.dumps(whole[1] | {"loss": "low"}))
    done = start("classify", f"--workdir={broken}", *SMALL)
    assert done.returncode == 1 and "summary.json of this run is damaged" in done.stderr
    (broken / "summary.json").unlink()
    with open(broken / "metrics.csv", "ab") as file:
        file.write(b'20,xx,yy,1,2,3,4,5,6\n\xff\xfe\n"' + b"x" * 200_000)
    assert same(result(start("classify", f"--workdir={broken}", *SMALL)), whole[1])
    assert rows(broken) == rows(whole[0])
    shutil.rmtree(broken / "checkpoints")
    (broken / "checkpoints").write_text("")
    (broken / "summary.json").unlink()
    done = start("classify", f"--workdir={broken}", *SMALL)
    assert done.returncode == 1 and "is a file, not a folder of checkpoints" in done.stderr
    done = start("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 1 and "does not contain a run" in done.stderr


def test_a_refused_start_leaves_no_folder(start, tmp_path):
    done = start("classify", f"--workdir={tmp_path / 'new'}", *SMALL, "--init_from=/none")
    assert (done.returncode, done.stderr) == (
        1,
        "error: --init_from=/none does not contain a run: no readable run.json\n",
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mean", [[None], [[1], [2, 3]], "x"])
def test_a_damaged_run_json_is_a_one_line_error(whole, start, tmp_path, mean):
    shutil.copytree(whole[0], tmp_path / "w")
    run = json.loads((tmp_path / "w" / "run.json").read_text())
    (tmp_path / "w" / "run.json").write_text(json.dumps(run | {"mean": mean}))
    for command in (["classify", *SMALL], ["evaluate"]):
        done = start(command[0], f"--workdir={tmp_path / 'w'}", *command[1:])
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
def test_lines_for_a_closed_standard_error_are_dropped(environment, tmp_path):
    for flag, status in (("--json", 0), ("--depth=0", 2)):
        command = [sys.executable, "-m", "experiments.summary", "--model=perceptron", flag]
        line = f"{shlex.join(command)} 2>&-"
        done = subprocess.run(["sh", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and done.stderr == ""
        assert (json.loads(done.stdout)["parameters"] == 7850) if status == 0 else (done.stdout == "")


def test_an_interrupt_swallowed_by_a_destructor_still_stops(launch):
    lines = """
import signal, time
from experiments.cli import app
class Collected:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def main(argv):
    Collected()
    time.sleep(60)
app.run(main)
"""
    done = launch(lines).wait()
    assert (done.returncode, done.stderr) == (130, "interrupted\n"), done


def test_changed_data_is_refused_and_a_copy_is_accepted(start, tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("blue", "red"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                image.save(tmp_path / "data" / split / name / f"{i}.png")
    run = ["classify", f"--workdir={tmp_path / 'w'}", "--dataset=folder", "--model=perceptron", "--batch_size=4"]
    run += ["--steps=4"]

    def again(place):
        return start(*run, f"--data_dir={place}")

    assert again(tmp_path / "data").returncode == 0
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert "run already complete" in again(tmp_path / "copy").stderr
    train = tmp_path / "copy" / "train"
    (train / "red").rename(train / "x")
    (train / "blue").rename(train / "red")
    (train / "x").rename(train / "blue")
    done = again(tmp_path / "copy")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "created with different data: the labels or images of train have changed" in done.stderr


@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_silently(environment, tmp_path):
    """As with `| head -1`: the reader of the pipe exits before all output is written."""
    for arguments in (["classify", "--help"], ["summary", "--model=resnet152"]):
        command = [sys.executable, "-m", f"experiments.{arguments[0]}", *arguments[1:]]
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_without_a_home_folder_there_is_no_cache(environment, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # As for a user without an entry in passwd.
    with pytest.raises(OSError, match="no home folder is known; set HOME or XDG_CACHE_HOME"):
        compilation_cache.cache_folder()
    monkeypatch.chdir(tmp_path)
    compilation_cache.start_cache()
    with pytest.raises(data.DataError, match="cannot determine the home folder; specify --data_dir=FOLDER"):
        data.load("cifar10")
    with pytest.raises(data.DataError, match="cannot determine the home folder; specify --data_dir=FOLDER"):
        data.load("tfds:mnist")
    assert not list(tmp_path.iterdir())


X64 = """
import os
import jax
jax.config.update("jax_enable_x64", True)  # As with JAX_ENABLE_X64, which the fork server does not have.
os.environ["JAX_ENABLE_X64"] = "true"
from experiments import classify
from experiments.cli import app
app.run(classify.main, classify.ClassifyConfig)
"""


@pytest.mark.slow
def test_results_do_not_depend_on_jax_enable_x64(start, tmp_path):
    options = ["--model=mlp", "--hidden=4", "--dropout=0.5", "--augment=digits", "--steps=4", "--batch_size=8"]
    single = start("classify", f"--workdir={tmp_path / 'a'}", *options)
    double = start(X64, f"--workdir={tmp_path / 'b'}", *options)
    assert result(double)["fingerprint"] == result(single)["fingerprint"]
    line = "JAX_ENABLE_X64 has no effect: this command computes in float32"
    assert double.stderr.startswith(line) and line not in single.stderr


PLATFORM = """
import os
import jax
jax.config.update("jax_platforms", "bogus")  # As with JAX_PLATFORMS, which jax has read already.
os.environ["JAX_PLATFORMS"] = "bogus"
from experiments.cli import app
from experiments.lecture.zoo import __main__ as zoo
app.run(zoo.main, zoo.ZooConfig)
"""


def test_an_unknown_platform_is_named(start, tmp_path):
    done = start(PLATFORM, f"--workdir={tmp_path / 'w'}", "--only=hopfield")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: JAX_PLATFORMS=bogus: Unable to initialize backend 'bogus'") and "'cpu'" in line
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(start, tmp_path):
    options = ["--model=mlp", "--hidden=4", "--learning_rate=1e30", "--steps=20", "--save_every=1"]
    done = start("classify", f"--workdir={tmp_path / 'w'}", *options)
    assert done.returncode == 1 and "at step" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "w" / "checkpoints" / "1" / "about").exists()


@pytest.mark.slow
def test_a_full_disk_names_the_folder_and_keeps_the_earlier_checkpoint(start, environment, tmp_path):
    arguments = [f"--workdir={tmp_path / 'w'}", "--model=mlp", "--steps=40", "--eval_every=10"]
    assert start("classify", *arguments, signal_at=after_row(3)).returncode == -signal.SIGKILL
    # Files of at most 200 kB, less than the parameters need. A separate cache, since its files would be truncated too.
    limited = {"file_limit": 200 << 10, "environment": environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}}
    done = start("classify", *arguments, **limited)
    assert done.returncode == 1 and f"{tmp_path / 'w' / 'checkpoints'}: File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    done = start("classify", *arguments)
    assert result(done)["step"] == 40 and "resuming from step" in done.stderr
