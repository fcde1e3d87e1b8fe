"""The model card of an exported network, Markdown: facts from run.json and summary.json, and how to load the file."""

import hashlib
import json
import pathlib
import re
import shlex
from typing import Any

import jax

import models
from experiments.reporting.report import read_metrics
from experiments.setup.saved_run import COMMANDS, SavedRun
from train.workdir import read_json

TITLES = {"accuracy": "accuracy", "accuracy_top5": "top-5 accuracy", "loss": "loss", "mean_iou": "mean IoU",
          "global_accuracy": "global accuracy", "psnr": "PSNR in dB", "classifier_fid": "classifier_fid"}  # fmt: skip
MOST_CLASSES = 200  # A card lists at most this many class names.
FORMATS = {
    "stablehlo": "StableHLO program (jax.export), for any batch size, on CPU, CUDA and TPU",
    "onnx": "ONNX model, for any batch size",
    "safetensors": "safetensors, the weights alone; input, output and check are those of the whole network",
}
NORMALIZED = "(image - mean) / std for each channel, on pixel values of 0 to 255"


def escaped(value: Any) -> str:
    """Text for Markdown, also inside a table: on one line, with all special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~!$])", r"\\\1", " ".join(str(value).split()))


def code(text: str) -> str:
    """Text as a line of code in a table; "|" would end the cell and a backtick the code."""
    return f"`{text}`" if not set(text) & set("|`\n") else escaped(text)


def shape(name: str, sizes, kind: str) -> str:
    return f"{name}: {kind} [{', '.join(['B', *map(str, sizes)])}]"


def score(run: dict, summary: dict | None, rows: list[dict], step: int) -> str:
    """The scores of a checkpoint, with their split: those of the summary if the run ended at this step, else of the
    evaluation at this step among the `rows` of metrics.csv."""
    if not summary or "split" not in summary:
        return f"none: the run has not finished (step {step:,} of {run['steps']:,})"
    scores = summary
    if summary.get("step") != step:
        evaluated = {row["step"]: row for row in rows}.get(step, {})
        scores = {name.removeprefix("eval_"): value for name, value in evaluated.items() if name.startswith("eval_")}
        scores["examples"] = summary.get("examples")
    parts = []
    for prefix, split in (("", summary["split"]), ("test_", "test")):
        values = [
            f"{title} {scores[prefix + name]:.4f}"
            for name, title in TITLES.items()
            if isinstance(scores.get(prefix + name), int | float)
        ]
        examples = scores.get(f"{prefix}examples")
        if values and examples:
            parts.append(f"split {split} ({examples:,} images): {', '.join(values)}")
    return "; ".join(parts) or f"none: the run was not evaluated at step {step:,}"


def snippet(form: str, names: str, file: str, program, *, run: SavedRun) -> list[str]:
    """The lines that load and run the file."""
    arguments, quoted = ", ".join(program.inputs), json.dumps(file, ensure_ascii=False)
    if form == "stablehlo":
        return [
            f"from jax import export  # pip install 'jax>={jax.__version__}' flatbuffers",
            "",
            f'network = export.deserialize(open({quoted}, "rb").read())',
            f"{program.output} = network.call({arguments})",
        ]
    if form == "onnx":
        given = ", ".join(f'"{name}": {name}' for name in program.inputs)
        return [
            "import onnxruntime  # pip install onnxruntime",
            "",
            f"session = onnxruntime.InferenceSession({quoted})",
            f"({program.output},) = session.run(None, {{{given}}})",
        ]
    if names == "torchvision":
        name = run.config.model.replace("alexnet_owt", "alexnet")
        return [
            "import torchvision  # pip install torchvision safetensors",
            "from safetensors.torch import load_file",
            "",
            f"network = torchvision.models.{name}(num_classes={len(run.info.class_names)}).eval()",
            f"network.load_state_dict(load_file({quoted}))",
            f"logits = network(x)  # x: {NORMALIZED}, as float32 [B, C, H, W]",
        ]
    return [
        "from safetensors.numpy import load_file  # pip install safetensors",
        "",
        f'weights = load_file({quoted})  # "params/LAYER/kernel" and so on -> array',
    ]


def card(
    *,
    run: SavedRun,
    program,
    content: bytes,
    path: pathlib.Path,
    form: str,
    names: str,
    step: int,
    output: tuple[int, ...],
    differences: dict[str, float],
) -> str:
    """The card of the file `path` with `content`; `output` is the shape of the network's output without the batch."""
    record = json.loads((run.workdir / "run.json").read_text())
    summary = read_json(run.workdir / "summary.json")
    ended = not summary or summary.get("step") == step
    rows_of_metrics = [] if ended else read_metrics(run.workdir / "metrics.csv")
    info, classes = run.info, list(map(str, run.info.class_names))
    more = f" and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    inputs = [shape(name, spec.shape, str(spec.dtype)) for name, spec in program.inputs.items()]
    statistics = f"mean {list(info.mean)}, standard deviation {list(info.std)}"
    inside = "not in the file" if form == "safetensors" else "inside the file"
    normalization: str | None = None
    if run.task == "generation":
        inputs[0] += f", {'uniform in -1 to 1' if run.config.authors else 'standard normal'}"
        inputs[1:] = [f"{text}, indices of the classes from 0" for text in inputs[1:]]
    elif run.task == "reconstruction":
        normalization = f"image / 255; {inside}"
    else:
        normalization = "none: the network takes pixel values"
        if not models.spec(run.config.model).raw_pixels:
            normalization = f"{NORMALIZED}; {statistics}; {inside}"
    command = record.get("command") or [""]
    splits = ", ".join(f"{name} {count:,}" for name, count in record.get("splits", {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items() if version)
    commit = f"; commit {record['commit']}{', changed' if record.get('dirty') else ''}" if record.get("commit") else ""
    against = {"xla": "XLA", "cpu_kernels": "the CPU kernels"}
    checked = ", ".join(f"{value:.1e} ({against[name]})" for name, value in differences.items())
    arguments = shlex.join(["python", "-m", f"experiments.{COMMANDS[run.task]}", *command[1:]])
    meaning = {
        "logits": "their softmax over the last axis gives the class probabilities",
        "reconstructions": "pixels, 0 to 1",
        "images": "pixels, 0 to 1",
    }[program.output]
    if run.config.model == "sparse":  # Its decoder is linear.
        meaning = "pixels: 0 is black, 1 is white; not bounded"
    rows = {
        "File": f"{code(path.name)}, {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}",
        "Format": FORMATS[form] + (f", {names}'s names and layouts" if names == "torchvision" else ""),
        "Network": f"{escaped(run.config.model)}, {record['parameters']:,} parameters, "
        f"{record.get('multiply_adds', 0):,} multiply-adds per image",
        "Data": f"{escaped(record.get('dataset'))}" + (f"; images per split: {escaped(splits)}" if splits else ""),
        "Classes": f"{len(classes)}: {', '.join(map(escaped, classes[:MOST_CLASSES]))}{more}",
        "Input": escaped("; ".join(inputs)),
        "Output": escaped(f"{shape(program.output, output, 'float32')}; {meaning}"),
        "Normalization": normalization and escaped(normalization),
        "Checkpoint": f"step {step:,} of {record['steps']:,}",
        "Scores": escaped(score(record, summary, rows_of_metrics, step)),
        "Check": f"largest difference from the run's own {program.output}, relative to the largest: {checked}",
        "Training command": code(arguments) if len(command) > 1 else "none: imported weights",
        "Trained": escaped(f"{record.get('start')} to {record.get('end')}, seed {record.get('seed')}"),
        "Versions": escaped(versions + commit),
        "License": "not recorded in the run",
    }
    if command[0].endswith("import_weights.py"):
        rows |= {"Training command": "none: imported weights", "Scores": "none: imported weights", "Checkpoint": None}
    table = [f"| {name} | {text} |" for name, text in rows.items() if text is not None]
    lines = [f"# {escaped(run.config.model)}, trained on {escaped(record.get('dataset'))}", "", "| | |", "|---|---|"]
    lines += [*table, "", "## How to load it", "", "```python"]
    return "\n".join([*lines, *snippet(form, names, path.name, program, run=run), "```", ""])
