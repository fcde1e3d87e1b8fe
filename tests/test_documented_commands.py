"""Runs every documented command, possibly shortened, and every command of experiments/ also with empty caches."""

import functools
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile

import commands
import documented
import made_idx
import numpy as np
import pytest
from documented_runs import COMMANDS, Omitted
from PIL import Image
from safetensors.numpy import save_file

RUNS = {command: run for command, run in COMMANDS.items() if not isinstance(run, Omitted)}


class Places:
    """Files and folders that commands need, created on first access."""

    def __init__(self, new, start):
        self.new_folder, self.start = new, start
        self.python = sys.executable

    @property
    def new(self):
        return self.new_folder("made") / "new"

    @property
    def file(self):
        return self.new_folder("made") / "file"

    def finished(self, *arguments):
        """The workdir of a finished run."""
        folder = self.new
        done = self.start(*arguments, f"--workdir={folder}", folder=documented.ROOT)
        assert done.returncode == 0, done.stderr
        return folder

    @functools.cached_property
    def images(self):
        """Images of 32x32 pixels in ten classes, with the splits train and test."""
        folder, random = self.new, np.random.default_rng(0)
        for split in ("train", "test"):
            for label in range(10):
                place = folder / split / f"class{label}"
                place.mkdir(parents=True)
                for i in range(3):
                    pixels = random.integers(0, 56, (32, 32, 3)) + 20 * label
                    Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
        return folder

    @functools.cached_property
    def photos(self):
        """Images that are not square, in class folders without splits."""
        folder, random = self.new, np.random.default_rng(0)
        for label, name in enumerate(("cat", "dog")):
            (folder / name).mkdir(parents=True)
            for i in range(10):
                pixels = random.integers(0, 56, (50 + i, 80, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.jpg")
        return folder

    @functools.cached_property
    def photo_run(self):
        options = ["--dataset=folder", f"--data_dir={self.photos}", "--image_size=16", "--batch_size=8", "--steps=2"]
        return self.finished("classify", "--test_fraction=0.2", *options)

    @functools.cached_property
    def image(self):
        path = self.new_folder("made") / "digit.png"
        Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(path)
        return path

    @functools.cached_property
    def camvid(self):
        folder, random = self.new, np.random.default_rng(0)
        for split in ("train", "val", "test"):
            for part in (split, f"{split}annot"):
                (folder / part).mkdir(parents=True)
            for i in range(4):
                label = random.integers(0, 12, (64, 96), dtype=np.uint8)
                Image.fromarray(label).save(folder / f"{split}annot" / f"{i}.png")
                Image.fromarray(np.stack([20 * label] * 3, axis=-1)).save(folder / split / f"{i}.png")
            lines = [f"/SegNet/CamVid/{split}/{i}.png /SegNet/CamVid/{split}annot/{i}.png" for i in range(4)]
            (folder / f"{split}.txt").write_text("\n".join(lines))
        return folder

    @functools.cached_property
    def masks(self):
        """Images whose left part is a class and whose right part is another, with annotations in colors."""
        folder, random = self.new, np.random.default_rng(0)
        for split in ("train", "test"):
            for part in (split, f"{split}annot"):
                (folder / part).mkdir(parents=True)
            for i in range(4):
                left = (np.arange(48) < random.integers(10, 38))[None, :, None] & np.ones((32, 1, 3), bool)
                Image.fromarray(np.where(left, 200, 40).astype(np.uint8)).save(folder / split / f"{i}.png")
                colours = np.where(left, (255, 0, 0), (0, 0, 255)).astype(np.uint8)
                Image.fromarray(colours).save(folder / f"{split}annot" / f"{i}.png")
        (folder / "classes.txt").write_text("left 255 0 0\nright 0 0 255\n")
        return folder

    @functools.cached_property
    def image_archive(self):
        """An archive that contains one archive for each class, like ImageNet's."""
        path = self.new_folder("made") / "ILSVRC2012_img_train.tar"
        with tarfile.open(path, "w") as archive:
            for label in range(2):
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as file:
                    file.add(self.images / "train" / f"class{label}" / "0.png", f"n{label}_0.png")
                member = tarfile.TarInfo(f"n{label}.tar")
                member.size = inner.tell()
                inner.seek(0)
                archive.addfile(member, inner)
        return path

    @functools.cached_property
    def cifar10_archive(self):
        """An archive in the official format and size, with black images."""
        from data import cifar10
        from data.prepare import cifar10 as prepare_cifar10

        path = self.new_folder("made") / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for name in sum(prepare_cifar10.FILES.values(), []):
                content = bytes(prepare_cifar10.RECORD * cifar10.RECORDS)
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    @functools.cached_property
    def cifar10_parquet(self):
        """A folder with Parquet files like the Hugging Face Hub's, of the official size, with one image."""
        import pyarrow
        from pyarrow import parquet

        folder, text = self.new_folder("made"), io.BytesIO()
        Image.new("RGB", (32, 32)).save(text, "PNG")
        for split, count in (("train", 50_000), ("test", 10_000)):
            images, labels = [{"bytes": text.getvalue(), "path": "0.png"}] * count, [*range(10)] * (count // 10)
            table = {"img": images, "label": labels}
            parquet.write_table(pyarrow.table(table), folder / f"{split}-00000-of-00001.parquet")
        return folder

    @functools.cached_property
    def idx_files(self):
        folder = self.new_folder("made")
        made_idx.write(folder)
        return folder

    def weights(self, model, change):
        from benchmarks import parity

        shapes = {name: change(name, shape) for name, shape in parity.entry_shapes(model).items()}
        path = self.new_folder("made") / "weights.safetensors"
        save_file({name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}, path)
        return path

    @functools.cached_property
    def resnet18_weights(self):
        """For the ten classes of `images`."""
        return self.weights("resnet18", lambda name, shape: (10, *shape[1:]) if name.startswith("fc.") else shape)

    @functools.cached_property
    def vgg16_weights(self):
        """For images of 32 pixels: 1x1 instead of 7x7 positions before the dense layers."""
        return self.weights("vgg16", lambda name, shape: (4096, 512) if name == "classifier.0.weight" else shape)

    @functools.cached_property
    def vgg16(self):
        return self.finished("import_weights", "--model=vgg16", f"--weights={self.vgg16_weights}", "--image_size=32")

    @functools.cached_property
    def imported_resnet18(self):
        weights = f"--weights={self.resnet18_weights}"
        return self.finished("import_weights", "--model=resnet18", weights, "--image_size=32")

    @functools.cached_property
    def classifier(self):
        return self.finished("classify", "--model=cnn", "--steps=2", "--val_fraction=0.1")

    @functools.cached_property
    def segmenter(self):
        data = ["--dataset=masks", f"--data_dir={self.masks}"]
        return self.finished("segment", *data, "--steps=2", "--batch_size=2")

    @functools.cached_property
    def dcnn(self):
        recipe = "--flagfile=experiments/recipes/dcnn.flags"
        return self.finished("classify", recipe, f"--data_dir={self.images}", "--steps=2", "--batch_size=8")

    @functools.cached_property
    def generator(self):
        options = ["--dataset=folder", f"--data_dir={self.images}", "--steps=2", "--batch_size=8", "--eval_every=2"]
        return self.finished("generate", *options)

    @functools.cached_property
    def golden(self):
        path = self.new_folder("made") / "golden.json"
        numbers = {"logits_first8": [[0] * 8] * 2, "logits_mean": [0, 0], "logits_std": [0, 0]}
        path.write_text(json.dumps(numbers))
        return path

    @functools.cached_property
    def peer(self):
        path = self.new_folder("made") / "peer.py"
        path.write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
        return path

    @property
    def common_flags(self):
        return re.search(r"^COMMON is `(.*)`", (documented.ROOT / "docs/results.md").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="session")
def places(tmp_path_factory, start):
    return Places(tmp_path_factory.mktemp, start)


def words(command, run, places):
    """The words of the command, with all placeholders replaced."""
    text = f"{command} {run.more}".replace(" ...", "").replace("[", "").replace("]", "")
    where = {"W": "new"} | run.where
    place = {name: getattr(places, value, value) for name, value in where.items() if name in text}
    names = "|".join(re.escape(name) for name in sorted(place, key=len, reverse=True))
    found = re.sub(rf"(?<!\w)(?:{names})(?!\w)", lambda match: str(place[match[0]]), text) if place else text
    left = re.findall(r"(?:^|[ =])([A-Z][A-Z_]*)(?= |$)", found)
    assert not left, f"{command}: tests/documented_runs.py has no replacement for {', '.join(left)}"
    return shlex.split(found)


def check(done, run):
    assert "Traceback" not in done.stderr, done.stderr
    if run.fails:
        assert done.returncode in (1, 2) and run.fails in done.stderr.splitlines()[-1], done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_every_documented_command_has_a_run():
    found = documented.documented()
    new = [f"{command}  ({file})" for command, file in found.items() if command not in COMMANDS]
    old = sorted(COMMANDS.keys() - found.keys())
    say = ["Add these to COMMANDS in tests/documented_runs.py, to be run or omitted:", *new] if new else []
    say += ["Remove these from tests/documented_runs.py; they are no longer documented:", *old] if old else []
    assert not say, "\n".join(say)


def test_every_command_of_experiments_has_a_cold_run():
    cold = {command.split()[0] for command, run in RUNS.items() if run.cold}
    missing = sorted(set(documented.COMMANDS["experiments"]) - cold)
    assert not missing, f"add runs with cold=True to tests/documented_runs.py for {', '.join(missing)}"
    assert all(run.slow for run in RUNS.values() if run.cold)


def params(cold):
    return [
        pytest.param(command, run, id=command, marks=[pytest.mark.slow] if run.slow else [])
        for command, run in RUNS.items()
        if run.cold == cold
    ]


@pytest.mark.parametrize("command, run", params(cold=False))
def test_a_documented_command_runs(command, run, places, environment, without_torch, start):
    first, *rest = words(command, run, places)
    if first in ("make", "ruff", "python"):
        line = {"make": ["make"], "ruff": [sys.executable, "-m", "ruff"], "python": [sys.executable]}[first] + rest
        done = subprocess.run(
            line, cwd=documented.ROOT, env=environment, capture_output=True, text=True, timeout=commands.LIMIT
        )
    else:
        package = "benchmarks" if first.startswith("benchmarks.") else "experiments"
        names = without_torch if run.fails else environment
        name = first.removeprefix("benchmarks.")
        done = start(name, *rest, package=package, folder=documented.ROOT, environment=names)
    check(done, run)


@pytest.mark.parametrize("command, run", params(cold=True))
def test_a_command_starts_in_a_fresh_process_without_caches(command, run, places, environment, tmp_path):
    name, *rest = words(command, run, places)
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    names = {key: value for key, value in (environment | own).items() if key != commands.OPTIMIZATION}
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *rest],
        cwd=documented.ROOT, env=names, capture_output=True, text=True, timeout=commands.LIMIT,
    )  # fmt: skip
    check(done, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in documented.COMMANDS["benchmarks"] if not name.endswith("_in_torch")])
def test_a_benchmark_starts_in_a_fresh_process(name, environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=commands.LIMIT,
    )  # fmt: skip
    assert done.returncode == 0 and "--" in done.stdout and "Traceback" not in done.stderr, done.stderr
