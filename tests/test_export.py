"""Tests of the command export, of the model card, and of weights in torchvision's names."""

import json
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from commands import ROOT
from made_run import make_run
from safetensors.numpy import load_file, save_file
from test_torchvision import entries

import experiments
import models
from data import weights
from experiments.cli import config as configs
from experiments.reporting import model_card
from experiments.setup import classification, exported, generation, reconstruction, segmentation
from models import torchvision
from train.state import State
from train.workdir import WorkdirError, read_json

# A folder with this file as models, train, data and experiments makes importing the project fail.
ABSENT = "raise ModuleNotFoundError('the project is not installed')\n"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/export.md").read_text(), flags=re.M | re.S)


@pytest.fixture
def without_project(tmp_path, environment):
    """run(code) runs a program in a folder, in a Python that can't import the project, and returns its output."""
    for name in ("models", "train", "data", "experiments"):
        (tmp_path / "absent").mkdir(exist_ok=True)
        (tmp_path / "absent" / f"{name}.py").write_text(ABSENT)

    def run(code, folder):
        names = environment | {"PYTHONPATH": str(tmp_path / "absent")}
        done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, env=names, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def block(start: str) -> str:
    (found,) = (block for block in BLOCKS if block.startswith(start))
    return found


def trained(path, model="lenet", task="classify", info=(), **flags):
    """The workdir of an untrained run on mnist5k or digit scenes."""
    kinds = {"classify": (configs.ClassifyConfig, classification), "segment": (configs.SegmentConfig, segmentation)}
    kinds["generate"] = configs.GenerateConfig, generation
    kinds["reconstruct"] = configs.ReconstructConfig, reconstruction
    config_class, module = kinds[task]
    config = config_class(workdir=str(path), model=model, **flags)
    dataset = module.load_dataset(config)
    given = (dataset,) if task in ("generate", "reconstruct") else (config, dataset)
    make_run(path, module, config, dataset, module.dataset_info(*given))
    return path


# --- Errors ---


@pytest.mark.parametrize(
    "flags, status, message",
    [
        (["--format=pickle"], 2, "--format=pickle: value should be one of <stablehlo|onnx|safetensors>"),
        ([], 2, "--format must be given: stablehlo or onnx or safetensors"),
        (["--format=onnx", "--names=torchvision"], 2, "--names=torchvision has no effect with --format=onnx"),
        (["--format=onnx", "--out=none/F"], 2, "/none does not exist"),
        (["--format=onnx", "--out=."], 2, "is a folder; give the name of a file in it"),
        (["--format=onnx", "--out=old"], 2, "/old already exists; choose a new --out"),
        (["--format=onnx", "--out=card"], 2, "/card.md already exists; choose a new --out"),
        (["--format=onnx"], 1, "does not contain a run: no readable run.json"),
    ],
)
def test_invalid_flags_are_one_line(start, tmp_path, flags, status, message):
    (tmp_path / "old").touch()
    (tmp_path / "card.md").touch()
    out = [] if any("--out" in flag for flag in flags) else ["--out=F"]
    done = start("export", "--workdir=W", *out, *flags, folder=tmp_path)
    assert done.returncode == status and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"old", "card.md"}


def test_differences_above_the_tolerance_are_an_error():
    x = np.array([[2.0, -4.0], [1.0, 0.0]], np.float32)

    def shifted(array):
        return array + np.float32(1e-4) * (len(array) == 1)  # Only for a single image.

    with pytest.raises(
        FloatingPointError, match=r"logits differ from the run's own by 2\.5e-05 of the largest \(xla\)"
    ):
        exported.check(shifted, [x], {"xla": x}, output="logits")
    found = exported.check(shifted, [x], {"cpu_kernels": x}, output="logits")
    assert found == {"cpu_kernels": pytest.approx(2.5e-5, rel=1e-2)}
    with pytest.raises(FloatingPointError, match=r"differ from the run's own by nan"):
        exported.check(lambda array: array, [x * np.nan], {"xla": x * np.nan}, output="logits")
    with pytest.raises(FloatingPointError, match=r"differ from the run's own by nan"):
        exported.check(lambda array: array * np.nan, [x], {"xla": x}, output="logits")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(monkeypatch, name):
    pytest.importorskip("onnxruntime")
    run = types.SimpleNamespace(config=configs.ClassifyConfig(workdir="w"))
    exported.check_onnx(run)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(exported.UsageError, match=rf"needs the package {name}: run `pip install -e '\.\[onnx\]'`, or"):
        exported.check_onnx(run)


def test_averaged_weights_are_exported():
    step = types.SimpleNamespace(predict_step=lambda state, batch: state.params["w"] * batch["image"])
    run = types.SimpleNamespace(task="classification", info=types.SimpleNamespace(image_shape=(2, 2, 1)))
    state = State({"w": np.float32(2)}, {}, {"m": 0}, 5, None, {"params": {"w": np.float32(3)}, "batch_stats": {}})
    for average, expected in ((state.average, 3), ((), 2)):
        program = exported.program(run, types.SimpleNamespace(task=step), state._replace(average=average, key=()))
        assert program.weights == State({"w": expected}, {}, {}, 5, (), ())
        assert program(np.ones((1, 2, 2, 1), np.uint8)).max() == expected


# --- The model card ---


def test_text_of_the_card_is_escaped():
    assert model_card.escaped("a|b*c\n`d` <e> [f]_") == r"a\|b\*c \`d\` \<e\> \[f\]\_"
    assert model_card.code("--a=b c") == "`--a=b c`"
    assert model_card.code("a|`") == r"a\|\`"


@pytest.mark.parametrize("text", ["", '{"acc', "[]"])
def test_a_damaged_summary_is_named(tmp_path, text):
    assert read_json(tmp_path / "summary.json") is None
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(WorkdirError, match=f"{tmp_path}/summary.json is damaged: "):
        read_json(tmp_path / "summary.json")


def test_the_line_that_loads_the_file_has_its_name():
    program = types.SimpleNamespace(inputs={"images": None}, output="logits")
    for name in ("😀.onnx", 'a"b\\.onnx'):
        lines = model_card.snippet("onnx", "own", name, program, run=None)
        opened = []
        runtime = types.SimpleNamespace(InferenceSession=opened.append)
        exec(lines[2], {"onnxruntime": runtime})
        assert opened == [name]


def test_the_scores_are_those_of_the_checkpoint():
    record, summary = {"steps": 9}, {"split": "val", "step": 9, "accuracy": 0.5, "examples": 1200, "loss": 2}
    summary |= {"test_accuracy": 0.25, "test_examples": 10, "accuracy_top5": None}
    last = "split val (1,200 images): accuracy 0.5000, loss 2.0000; split test (10 images): accuracy 0.2500"
    assert model_card.score(record, summary, [], 9) == last
    rows = [{"step": step, "train_loss": 3.0, "eval_loss": step, "eval_accuracy": 1 / step} for step in (3.0, 4.0, 9.0)]
    rows.append({"step": 5.0, "train_loss": 3.0, "eval_loss": None, "eval_accuracy": None})
    found = model_card.score(record, summary, rows, 4)
    assert found == "split val (1,200 images): accuracy 0.2500, loss 4.0000"
    for step in (5, 6):
        assert model_card.score(record, summary, rows, step) == f"none: the run was not evaluated at step {step}"
    assert model_card.score(record, None, rows, 4) == "none: the run has not finished (step 4 of 9)"


# --- Weights in torchvision's names ---


def test_weights_return_to_torchvisions_names_and_layouts():
    given = entries("resnet18")
    model, variables = models.from_torchvision("resnet18", given)
    found = models.to_torchvision("resnet18", model, variables, batches=7)
    counts = {name: array for name, array in found.items() if name.endswith(".num_batches_tracked")}
    norms = {name.removesuffix(".running_mean") for name in given if name.endswith(".running_mean")}
    assert counts.keys() == {f"{name}.num_batches_tracked" for name in norms} and len(counts) == 20
    assert all(array == 7 and array.dtype == np.int64 and array.shape == () for array in counts.values())
    assert found.keys() - counts.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_dense_layer_after_flattening_returns_to_torchs_order():
    layout = torchvision.TorchvisionLayout({"fc6": "f"}, {"fc6": 3})
    weight = np.arange(5 * 3 * 2 * 2, dtype=np.float32).reshape(5, 12)
    shapes = {"params": {"fc6": {"kernel": jax.ShapeDtypeStruct((12, 5), "float32")}}}
    variables = torchvision.variables({"f.weight": weight}, shapes, layout=layout)
    np.testing.assert_array_equal(torchvision.entries(variables, layout=layout)["f.weight"], weight)


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("lenet", {}, models.ModelError, "not supported by --model=lenet; supported by: alexnet_owt, densenet121"),
        (
            "resnet50",
            {"v1_5": False},
            models.ModelError,
            "torchvision's resnet50 has v1_5 True, this network has False",
        ),
        ("alexnet_owt", {"local_response_norm": True}, models.ModelError, "has local_response_norm False, this"),
    ],
)
def test_networks_that_torchvision_does_not_have_are_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        models.to_torchvision(name, models.create(name, 10, **options), {})


def test_weights_of_another_image_size_are_refused():
    model = models.create("vgg11", 10)
    variables = models.summary.variables(model, (32, 32, 3))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    with pytest.raises(models.StateDictError, match=r"classifier\.0\.weight is \[4096, 512\], in torchvision's vgg11"):
        models.to_torchvision("vgg11", model, variables)


# --- Exports ---


def run_export(start, workdir, form, out, *flags, **options):
    done = start("export", f"--workdir={workdir}", f"--format={form}", f"--out={out}", *flags, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_the_documented_lines_run_an_export_without_the_project(start, tmp_path, without_project, mnist5k, form):
    """Also binary tasks with one logit and test-time views, and a batch size that was not checked."""
    flags = {"positive": "3", "negative": "8", "augment": "flip_shift", "tta": "flip_shift"}
    workdir = trained(tmp_path / "w", model="logistic", **flags)
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    found = run_export(start, workdir, form, tmp_path / f"network.{form}", "--checkpoint=best")
    assert found["inputs"] == {"images": ["batch", 28, 28, 1]} and found["step"] == 0
    images = mnist5k.splits["test"][0][:7]
    np.save(tmp_path / "images.npy", images)
    lines = block({"stablehlo": "from jax import export", "onnx": "import onnxruntime"}[form])
    code = f"import numpy as np\nimages = np.load('images.npy')\n{lines}\nnp.save('logits.npy', logits)"
    for name in ("models", "experiments"):
        code += f"\ntry:\n    import {name}\nexcept ModuleNotFoundError:\n    print('absent')"
    assert without_project(code, tmp_path) == "absent\nabsent\n"
    logits = np.load(tmp_path / "logits.npy")
    expected = experiments.load_run(str(workdir), "best").predict(images)
    assert logits.shape == (7, 2) and logits.dtype == np.float32
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), expected, rtol=1e-4, atol=1e-6)
    # The lines of the card are those of the document.
    card = (tmp_path / f"network.{form}.md").read_text()
    (in_card,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S)
    assert re.sub(r"  # pip.*", "", in_card) == lines
    install = f"pip install 'jax>={jax.__version__}' flatbuffers" if form == "stablehlo" else "pip install onnxruntime"
    assert f"  # {install}\n" in in_card
    assert "| Classes | 2: 8, 3 |" in card and "step 0 of 1" in card and "none: the run has not finished" in card
    assert "split test" not in card and "License | not recorded" in card


NETWORKS = {
    "lstm": ("classify", {"model": "lstm", "hidden": (4, 3)}),
    "vit_tiny": ("classify", {"model": "vit_tiny", "blocks": 1}),
    "segnet_small": ("segment", {"model": "segnet_small"}),
    "dcgan": ("generate", {"model": "dcgan", "conditional": True, "ema": 0.9}),
    "variational": ("reconstruct", {"model": "variational", "hidden": (4,), "code": 2}),
    "sparse": ("reconstruct", {"model": "sparse", "code": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_runs_of_all_tasks_are_exported(start, tmp_path, name):
    pytest.importorskip("onnxruntime")
    task, flags = NETWORKS[name]
    workdir = trained(tmp_path / "w", task=task, **flags)
    for form in ("onnx", "safetensors")[: 2 if task == "generate" else 1]:
        found = run_export(start, workdir, form, tmp_path / form)
        assert found["differences"].keys() == {"xla", "cpu_kernels"} and max(found["differences"].values()) < 1e-5
    assert found["output"] == {"generate": "images", "reconstruct": "reconstructions"}.get(task, "logits")
    card = (tmp_path / "onnx.md").read_text()
    shown = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, flags=re.M)).get
    if task == "reconstruct":
        assert shown("Normalization") == "image / 255; inside the file"
        bounds = {"sparse": "pixels: 0 is black, 1 is white; not bounded", "variational": "pixels, 0 to 1"}
        assert shown("Output").endswith(f"; {bounds[name]}")
    if task != "generate":
        return
    latents, labels = r"latents: float32 \[B, 100\], standard normal", r"labels: int32 \[B\], indices of the classes"
    assert shown("Input") == f"{latents}; {labels} from 0" and shown("Normalization") is None
    arrays, state = load_file(tmp_path / "safetensors"), experiments.load_run(str(workdir)).state
    averages = {name: {"generator": tree} for name, tree in state.opt_state["average"].items()}
    assert len(arrays) == len(jax.tree.leaves(averages))
    for path, leaf in jax.tree_util.tree_leaves_with_path(averages):
        np.testing.assert_array_equal(arrays["/".join(part.key for part in path)], leaf)


@pytest.mark.slow
def test_the_documented_lines_create_the_network_of_a_run_of_classify(start, tmp_path, mnist5k):
    workdir = trained(tmp_path / "w", model="mlp", hidden=(4, 3), activation="tanh")
    run_export(start, workdir, "safetensors", tmp_path / "network.safetensors")
    images = mnist5k.splits["test"][0][:7]
    np.save(tmp_path / "images.npy", images)
    code = f"import numpy as np\nimages = np.load('images.npy')\n{block('import json')}\nnp.save('logits.npy', logits)"
    done = start(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = experiments.load_run(str(workdir)).predict(images)
    np.testing.assert_allclose(jax.nn.softmax(np.load(tmp_path / "logits.npy")), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_exported_torchvision_weights_are_imported_again(start, tmp_path):
    """export --names=torchvision, then import_weights: the same parameters and statistics, bit by bit."""
    source = entries("resnet18")
    source["fc.weight"], source["fc.bias"] = source["fc.weight"][:3], source["fc.bias"][:3]
    save_file(source, tmp_path / "source")

    def imported(file, workdir):
        flags = [f"--weights={tmp_path / file}", f"--workdir={tmp_path / workdir}"]
        return start("import_weights", "--model=resnet18", "--image_size=32", *flags).returncode

    assert imported("source", "v") == 0
    found = run_export(start, tmp_path / "v", "safetensors", tmp_path / "F", "--names=torchvision")
    assert max(found["differences"].values()) < 1e-5
    stored = weights.read(str(tmp_path / "F"))
    assert {name: array for name, array in stored.items() if "num_batches" not in name}.keys() == source.keys()
    for name, array in source.items():
        np.testing.assert_array_equal(stored[name], array)
    assert stored["bn1.num_batches_tracked"].shape == () and stored["bn1.num_batches_tracked"].dtype == np.int64
    assert imported("F", "w") == 0
    card = (tmp_path / "F.md").read_text()
    assert "torchvision.models.resnet18(num_classes=3)" in card and card.count("none: imported weights") == 2
    refused = start("export", f"--workdir={tmp_path / 'v'}", "--format=safetensors", f"--out={tmp_path / 'F'}")
    assert refused.returncode == 2 and "already exists" in refused.stderr


@pytest.mark.slow
def test_a_run_that_cannot_be_exported_leaves_no_file(start, tmp_path):
    pytest.importorskip("onnxruntime")
    workdir = trained(tmp_path / "w", dtype="bfloat16")
    flags = [f"--workdir={workdir}", f"--out={tmp_path / 'F'}"]
    cases = [
        (["--format=onnx"], 2, "--format=onnx: this run has --dtype=bfloat16; ONNX Runtime computes in float32"),
        (["--format=safetensors", "--names=torchvision"], 2, "are not supported by --model=lenet; supported by"),
    ]
    for given, status, message in cases:
        done = start("export", *flags, *given)
        assert done.returncode == status and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("F*"))
    shutil.rmtree(workdir / "checkpoints")
    done = start("export", *flags, "--format=stablehlo")
    assert done.returncode == 1 and "contains no checkpoint" in done.stderr
    assert not list(tmp_path.glob("F*"))
