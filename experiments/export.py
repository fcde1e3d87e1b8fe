"""Exports a trained network: python -m experiments.export --workdir=W --format=stablehlo --out=F

stablehlo    a program for JAX (jax.export), loaded without this project
onnx         a model for ONNX Runtime and other programs; needs the packages onnx and onnxruntime
safetensors  the weights alone, with this project's names or torchvision's

stablehlo and onnx take uint8 images in batches of any size; normalization and test-time crops are included. A model
card, F.md, states data, classes, scores and how to load F. Nothing is written if the exported network's outputs
differ from the run's own.
"""

import dataclasses
import functools
import json
import pathlib

from experiments.cli import app
from experiments.cli.app import require
from experiments.cli.options import option

FORMATS = ("stablehlo", "onnx", "safetensors")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Export"""

    workdir: str = option(None, "Folder of the run.", needed="the folder of the run", path=True)
    format: str = option(None, "Format of the file.", needed=" or ".join(FORMATS), choices=FORMATS)
    out: str = option(None, "New file; its model card is OUT.md.", needed="the file to write", path=True)
    names: str = option("own", "safetensors: names and layouts of the weights.", choices=("own", "torchvision"))
    checkpoint: str = option("latest", "Checkpoint to export.", choices=("latest", "best"))


def check_paths(path: pathlib.Path, card: pathlib.Path) -> None:
    """Raises UsageError if the folder of --out does not exist, or one of the two files does."""
    require(path.parent.is_dir(), f"--out={path}: the folder {path.parent} does not exist")
    require(not path.is_dir(), f"--out={path} is a folder; give the name of a file in it")
    for file in (path, card):
        require(not file.exists(), f"{file} already exists; choose a new --out")


def main(config: ExportConfig) -> int:
    from experiments.setup import saved_run

    path, form = pathlib.Path(config.out), config.format
    card = path.with_name(f"{path.name}.md")
    check_paths(path, card)
    names = config.names
    require(names == "own" or form == "safetensors", f"--names={names} has no effect with --format={form}")
    run = saved_run.read(config.workdir)

    import jax
    from flax import traverse_util

    from experiments.cli.compilation_cache import start_cache
    from experiments.reporting import model_card
    from experiments.setup import exported, stored_network
    from models import torchvision
    from models.cpu_kernels import ops
    from train.messages import say
    from train.workdir import write_atomically

    if form == "onnx":
        exported.check_onnx(run)
    start_cache()
    experiment = stored_network.experiment_from_run(run)
    state = stored_network.restore(experiment, run, config.checkpoint)
    # Other devices may compute in lower precision, which the check would report as a difference.
    with jax.default_device(jax.devices("cpu")[0]):
        program = exported.program(run, experiment, jax.device_get(state))
        step, weights = int(state.step), program.weights
        facts = exported.metadata(run, experiment, step)
        inputs, expected = exported.examples(run, program), {}
        if run.config.cpu_kernels and ops.use_cpu_kernels():
            expected["cpu_kernels"] = program(*inputs)
        ops.disable()
        expected["xla"] = program(*inputs)
        if form == "stablehlo":
            content, network = exported.stablehlo(program)
        elif form == "onnx":
            content, network = exported.onnx(program, facts)
        elif names == "torchvision":
            entries, layout = exported.torchvision_entries(run, weights)
            shapes = exported.variables(weights)

            def restore(found):
                return torchvision.variables(found, shapes, layout=layout)

            content, network = exported.safetensors(program, entries, facts, restore)
        else:
            entries = traverse_util.flatten_dict(exported.variables(weights), sep="/")
            unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")
            content, network = exported.safetensors(program, entries, facts, unflatten)
        differences = exported.check(network, inputs, expected, output=program.output)
    text = model_card.card(
        run=run,
        program=program,
        content=content,
        path=path,
        form=form,
        names=names,
        step=step,
        output=expected["xla"].shape[1:],
        differences=differences,
    )
    write_atomically(card, text)
    try:
        write_atomically(path, content)
    except OSError:
        card.unlink()
        raise
    say(f"model card: {card}")
    shapes = {name: ["batch", *spec.shape] for name, spec in program.inputs.items()}
    result = {"model": run.config.model, "format": form, "out": str(path), "bytes": len(content), "step": step}
    print(json.dumps(result | {"inputs": shapes, "output": program.output, "differences": differences}))
    return 0


if __name__ == "__main__":
    app.run(main, ExportConfig)
