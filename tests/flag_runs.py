"""Helpers of tests/test_flag_effects.py: inputs of commands, partial runs, and digests of their outputs."""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import shutil
import tarfile

import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from absl import flags
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from PIL import Image
from safetensors.numpy import save_file

import data
import experiments
from benchmarks import parity
from data import folder
from data.dataset import Dataset, digests
from experiments import (
    classify,
    evaluate,
    export,
    filters,
    generate,
    import_weights,
    predict,
    prepare,
    reconstruct,
    reproduce,
    segment,
    summary,
    sweep,
)
from experiments.cli import config as configs
from experiments.cli import options, subprocesses, validation
from experiments.lecture import __main__ as lecture
from experiments.setup import (
    classification,
    generation,
    reconstruction,
    segmentation,
    source_run,
    stored_network,
    training,
)
from experiments.setup.experiment import eval_split
from models.cpu_kernels import ffi
from train import leaves, loop, workdir
from train.parallel import data_parallel
from train.parallel.devices import AXIS

COMMANDS = {
    "classify": configs.ClassifyConfig,
    "segment": configs.SegmentConfig,
    "generate": configs.GenerateConfig,
    "reconstruct": configs.ReconstructConfig,
    "evaluate": evaluate.EvaluateConfig,
    "predict": predict.PredictConfig,
    "sample": predict.PredictConfig,
    "filters": filters.FiltersConfig,
    "export": export.ExportConfig,
    "reproduce": reproduce.ReproduceConfig,
    "prepare": prepare.PrepareConfig,
    "import_weights": import_weights.ImportWeightsConfig,
    "summary": summary.SummaryConfig,
    "sweep": sweep.SweepConfig,
    "lecture": lecture.LectureConfig,
}
BASES = {
    "classify": {"workdir": "W", "model": "mlp", "hidden": (8,), "batch_size": 8, "steps": 2},
    "segment": {"workdir": "W", "dataset": "camvid", "dry_run": True, "dry_run_data": True, "image_size": "16x20"}
    | {"batch_size": 2, "steps": 2},
    "generate": {"workdir": "W", "batch_size": 2, "steps": 2},
    "reconstruct": {"workdir": "W", "batch_size": 2, "steps": 2, "code": 2, "hidden": (4,)},
    "evaluate": {"workdir": "RUN"},
    "predict": {"workdir": "RUN"},
    "sample": {"workdir": "GENERATOR", "samples": 2, "out": "W"},
    "filters": {"workdir": "RUN"},
    "export": {"workdir": "RUN", "format": "stablehlo", "out": "W"},
    "reproduce": {"run": "FINISHED", "workdir": "W"},
    "prepare": {"dataset": "folder", "source": "ARCHIVE", "data_dir": "W"},
    "import_weights": {"workdir": "W", "model": "densenet121", "weights": "WEIGHTS", "image_size": 32},
    "summary": {"model": "mlp"},
    "sweep": {"workdir": "W", "grid": "seed=0..1", "print_commands": True},
    "lecture": {"workdir": "W"},
}
SETUP = {
    "classify": classification,
    "segment": segmentation,
    "generate": generation,
    "reconstruct": reconstruction,
}
CHECKS = {
    "classify": validation.check_classify,
    "segment": validation.check_segment,
    "generate": validation.check_generate,
    "reconstruct": validation.check_reconstruct,
}
MAINS = {
    **{"classify": classify.main, "segment": segment.main, "generate": generate.main, "evaluate": evaluate.main},
    **{"filters": filters.main, "prepare": prepare.main, "import_weights": import_weights.main},
    **{"summary": summary.main, "lecture": lecture.main, "reproduce": reproduce.main},
    **{"reconstruct": reconstruct.main, "export": export.main},
}


def write_images(root, *, seed=0, classes=("cat", "dog"), splits=(("train", 6), ("test", 3))):
    """Writes a folder of random images with 10 rows and 8 columns, and returns it."""
    random = np.random.default_rng(seed)
    for split, count in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (10, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


class Places(dict):
    """Maps the placeholders of tests/flag_effects.py to paths, created on first access."""

    def __init__(self, root):
        self.root = root

    def __missing__(self, name):
        self[name] = str(getattr(self, f"make_{name.lower()}")(self.root / name.lower()))
        return self[name]

    def given(self, value):
        if isinstance(value, str) and hasattr(self, f"make_{value.lower()}"):
            return self[value]
        assert not (isinstance(value, str) and value.isupper() and len(value) > 1), f"no placeholder named {value}"
        return value

    def make_w(self, path):
        return path

    make_other = make_w

    def make_figure(self, path):
        return path.with_suffix(".png")

    def make_images(self, path):
        return write_images(path)

    def make_classes(self, path):
        return write_images(path, splits=(("", 8),))

    def make_other_images(self, path):
        return write_images(path, seed=1)

    def make_corrupt(self, path):
        (write_images(path) / "test" / "cat" / "bad.png").write_bytes(b"no image")
        return path

    def make_ten_classes(self, path):
        return write_images(path, classes="abcdefghij", splits=(("train", 1),))

    def make_run(self, path, seed=0):
        config = configs.ClassifyConfig(
            workdir=str(path),
            model="mlp",
            hidden=(8,),
            dataset="folder",
            data_dir=self["IMAGES"],
            seed=seed,
            batch_size=4,
        )
        dataset = folder.load(self["IMAGES"])
        made_run.make_run(path, classification, config, dataset, classification.dataset_info(config, dataset))
        return path

    def make_other_run(self, path):
        return self.make_run(path, seed=7)

    def make_finished(self, path, seed=0):
        (self.make_run(path, seed) / "summary.json").write_text('{"fingerprint": "f"}')
        (path / "metrics.csv").write_text("step,eval_loss\n1,1.0\n")
        return path

    def make_other_finished(self, path):
        return self.make_finished(path, seed=7)

    def make_generator(self, path, seed=0):
        config, dataset = configs.GenerateConfig(workdir=str(path), seed=seed), made("mnist5k")
        made_run.make_run(path, generation, config, dataset, generation.dataset_info(dataset))
        return path

    def make_other_generator(self, path):
        return self.make_generator(path, seed=7)

    def make_archive(self, path, seed=0):
        with tarfile.open(path.with_suffix(".tar"), "w") as archive:
            for name in ("a/0.png", "b/0.png"):
                text = io.BytesIO()
                Image.fromarray(np.full((4, 4), seed, np.uint8)).save(text, "PNG")
                entry = tarfile.TarInfo(name)
                entry.size = text.tell()
                text.seek(0)
                archive.addfile(entry, text)
        return path.with_suffix(".tar")

    def make_other_archive(self, path):
        return self.make_archive(path, seed=9)

    def make_weights(self, path, seed=0):
        random = np.random.default_rng(seed)
        shapes = parity.entry_shapes("densenet121") | {"classifier.weight": (10, 1024), "classifier.bias": (10,)}
        save_file({name: random.random(shape, np.float32) for name, shape in shapes.items()}, path)
        return path

    def make_other_weights(self, path):
        return self.make_weights(path, seed=1)


@functools.cache
def made(name):
    """A data set of random images: 40 for training, 120 for testing."""
    random, shape = np.random.default_rng(len(name)), (32, 32, 3) if name == "cifar10" else (28, 28, 1)
    splits = {
        split: (random.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count, dtype=np.int32) % 10)
        for split, count in (("train", 40), ("test", 120))
    }
    return Dataset(name, splits, tuple(map(str, range(10))))


def digest(*parts) -> str:
    """A SHA-256 digest of arrays and of the repr of other values."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


class Started:
    """A training command up to its first step; each property is one thing that a flag may change."""

    def __init__(self, command, config):
        module = SETUP[command]
        options.from_json(type(config), options.to_json(config))  # Checks the bounds of its values.
        CHECKS[command](config)
        if config.process_id is not None or config.coordinator_address or config.num_processes:
            training.start_devices(config, None)
        if command == "classify":
            config, self.dataset = source_run.load_dataset(config)
        else:
            form = source_run.image_form(config) if command == "segment" else {}
            self.dataset = module.load_dataset(config, **form)
        self.config = config
        self.split, self.devices = eval_split(self.dataset, config.eval_split), config.devices or 1
        self.info = module.dataset_info(*((config,) if command in ("classify", "segment") else ()), self.dataset)
        self.steps = training.total_steps(config, self.dataset, self.devices)
        stored_network.init_from_parts(config)
        self.experiment = module.create_experiment(config, self.info, devices=self.devices, steps=self.steps)
        self.task = self.experiment.task

    @property
    def batches(self):
        return training.batches_of(
            self.config, self.dataset, self.split, self.task, device_count=self.devices
        ).train_batches(0)

    def data(self):
        shapes = {name: tuple(images.shape) for name, (images, _) in self.dataset.splits.items()}
        return digest(self.dataset.name, self.split, self.dataset.class_names, shapes, digests(self.dataset))

    def plan(self):
        return training.plan(self.config, self.steps, float)

    @functools.cached_property
    def _program(self):
        """A digest of the traced training steps with their constants, the number of steps and the first batch."""
        batch = next(self.batches)
        state = jax.eval_shape(self.task.shard, jax.eval_shape(self.task.init, jax.random.key(0)))
        parts = [self.steps, self.task.early_steps, *(batch[name] for name in sorted(batch))]
        for step in filter(None, (self.task.train_step, self.task.early_step)):
            if self.devices > 1:
                mesh = AbstractMesh((self.devices,), (AXIS,), axis_types=(AxisType.Auto,))
                shard = functools.partial(jax.shard_map, step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P())
                step = shard(check_vma=False)
            traced = jax.make_jaxpr(step)(state, batch)
            text = re.sub(r"0x[0-9a-f]+", "", str(traced))
            parts += [text, *(np.asarray(x) for x in traced.consts if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key))]
        return digest(*parts)

    def program(self):
        return self._program

    def first(self):
        state = training.initialize(self.experiment, self.config, self.dataset, device_count=self.devices)
        return source_run.init_from(self.config, state, self.experiment, self.split)

    @functools.cached_property
    def params(self):
        """The parameters after all steps of the run."""
        steps, batches = data_parallel.DeviceSteps(self.task, self.devices), self.batches
        state = steps.shard(self.first())
        for step in range(self.steps):
            state, _ = steps.train(step)(state, next(batches))
        return leaves.to_host(steps.unshard(state).params)

    def state(self):
        return digest(*self.params.items())

    def metrics(self):
        state = self.first()
        if self.task.prepare_eval:
            return digest(*leaves.to_host(self.task.prepare_eval(state, lambda: False).batch_stats).items())
        evaluated = training.batches_of(self.config, self.dataset, self.split, self.task, device_count=self.devices)
        steps = data_parallel.DeviceSteps(self.task, self.devices)
        return digest(loop.evaluate(state, steps.evaluate, data=evaluated.eval))


@functools.lru_cache(maxsize=16)
def started(command, config):
    return Started(command, config)


def tree(*roots):
    """Paths and digests of all files below the given folders; files that record times count as empty."""
    found = []
    for root in map(pathlib.Path, filter(None, roots)):
        for path in sorted(root.rglob("*")) if root.is_dir() else [root] if root.exists() else []:
            if path.is_file() and not path.name.startswith("."):
                content = path.read_bytes()
                if path.name in ("run.json", "metrics.csv", "summary.json") or "checkpoints" in path.parts:
                    content = b""
                found.append((str(path), hashlib.sha256(content).hexdigest()))
    return found


TIMES = {"seconds", "compile_seconds", "images_per_second", "images_per_second_per_device", "workdir"}


def printed(command, config, places, capsys, monkeypatch):
    """Calls the command's main and returns what it prints and writes."""
    sizes, calls, opened, init = [], [], [], workdir.Workdir.__init__
    # A command keeps its workdir locked until the process ends; here it is closed explicitly.
    monkeypatch.setattr(workdir.Workdir, "__init__", lambda self, *given: opened.append(self) or init(self, *given))
    if command == "evaluate":
        evaluated = loop.evaluate

        def watched(state, step, *, data):
            sizes.append(len(next(data.batches())["label"]))
            return evaluated(state, step, data=data)

        monkeypatch.setattr(loop, "evaluate", watched)
    if command in ("sweep", "lecture", "reproduce"):
        ended = subprocesses.Ended(2, "", 0)
        monkeypatch.setattr(subprocesses, "run", lambda *arguments: calls.append(arguments) or ended)
    if command == "import_weights":
        shutil.rmtree(config.workdir, ignore_errors=True)  # Left by the run with the first of the two values.
    if command == "export":
        monkeypatch.setattr(ffi, "_disabled", False)  # Restored after the test.
        for path in (config.out, f"{config.out}.md"):  # Left by the run with the first of the two values.
            pathlib.Path(path).unlink(missing_ok=True)
    capsys.readouterr()
    try:
        if command in ("predict", "sample"):
            files = [f"{places['IMAGES']}/test/cat/0.png"] if command == "predict" else []
            status = predict.main(config, files)
        elif command == "sweep":
            status = sweep.main(config, ["--model=mlp"])
        else:
            status = MAINS[command](config)
    finally:
        for held in opened:
            held.close()
    assert status in (0, None) or calls
    text = capsys.readouterr().out
    if command == "evaluate":
        found = json.loads(text)
        return sizes, {name: value for name, value in found.items() if name not in TIMES}
    if command == "filters":
        return tree(f"{config.workdir}/filters_layer{config.layer}.png")[0][1]
    if command == "sample":
        return text, tree(config.out)
    if command == "export":
        return text, tree(config.out, f"{config.out}.md")
    if command == "prepare":
        return tree(config.data_dir, config.shards)
    if command == "import_weights":
        run = json.loads(pathlib.Path(config.workdir, "run.json").read_text())
        kept = {name: run[name] for name in ("task", "flags", "class_names", "image_shape")}
        return kept, parameters(config.workdir)
    return text, tree(getattr(config, "figure", None)), calls


def written(command, config, places, capsys, monkeypatch):
    try:
        return printed(command, config, places, capsys, monkeypatch)
    except data.DataError as error:
        return str(error)


def parameters(path):
    return digest(*leaves.to_host(experiments.load_run(path).state.params).items())


def refused(command, config, places, capsys, monkeypatch) -> str:
    """The error message with which the command fails."""
    from experiments.cli.app import _explain

    with pytest.raises(Exception) as caught:  # noqa: B017, PT011 - unexpected errors fail below.
        if command in SETUP:
            Started(command, config)
        else:
            printed(command, config, places, capsys, monkeypatch)
    if isinstance(caught.value, flags.Error) or (command in SETUP and type(caught.value) is ValueError):
        return str(caught.value)  # A value that the command line rejects.
    explained = _explain(caught.value)
    assert explained is not None, repr(caught.value)
    return explained[1]


def configured(command, places, *parts):
    values = {name: places.given(value) for part in parts for name, value in part.items()}
    known = {field.name for field in dataclasses.fields(COMMANDS[command])}
    return COMMANDS[command](**{name: value for name, value in values.items() if name in known})


def loaded(command, config):
    try:
        return Started(command, config).data()
    except data.DataError as error:
        return str(error)
