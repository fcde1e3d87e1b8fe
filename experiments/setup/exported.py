"""A trained network as a function of arrays alone, its export, and the check of an export against the network."""

import functools
import importlib.util
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import models
from data import ArgumentError, DataError, stream
from data.weights import read_safetensors
from experiments.cli import options
from experiments.cli.app import UsageError, require
from experiments.setup import classification, evaluation_data, generation, reconstruction, segmentation
from experiments.setup.experiment import Experiment, scoring_split
from experiments.setup.saved_run import SavedRun
from models.errors import StateDictError
from train.averaging import evaluation_weights
from train.messages import say
from train.state import State
from train.tasks import gan

PLATFORMS = ("cpu", "cuda", "tpu")
OUTPUTS = {"classification": "logits", "segmentation": "logits", "reconstruction": "reconstructions"}
CHECKED = {"segmentation": 2}  # Number of images of each kind in a check; MOST for the other tasks.
MOST = 16
# The largest difference from the network's outputs that an export may have, relative to the largest output.
TOLERANCE = {"xla": 1e-5, "cpu_kernels": 1e-4}


class Program(NamedTuple):
    """A trained network.

    Attributes:
        inputs: Name -> shape without the batch axis, and type of each input.
        output: Name of the output.
        weights: Its state, with the average in place of the weights if there is one, without the optimizer's.
        function: (state, *inputs) -> output.
    """

    inputs: dict[str, jax.ShapeDtypeStruct]
    output: str
    weights: State
    function: Callable[..., Any]

    def __call__(self, *inputs) -> np.ndarray:
        """The outputs, compiled in the current setting of the CPU kernels."""
        return np.asarray(jax.jit(lambda weights, *arrays: self.function(weights, *arrays))(self.weights, *inputs))


def program(run: SavedRun, experiment: Experiment, state: State) -> Program:
    """The network of a run: uint8 images [B, H, W, C] -> logits or reconstructions, with the run's normalization and
    test-time crops inside; for a run of generate, latent vectors [B, L] (and labels [B]) -> images in [0, 1]."""
    step = experiment.task.predict_step
    if run.task == "generation":
        own = gan.sampler(state)
        state = State({"generator": own["params"]}, {"generator": own["batch_stats"]}, {}, state.step, state.key)
        form = generation.form(run.config, run.info, experiment.input_shape[0], as_uint8=False)
        draw = functools.partial(step, form=form)
        latent = jax.eval_shape(generation.latents(run.config), jax.random.split(jax.random.key(0), 1)).shape[1:]
        inputs = {"latents": jax.ShapeDtypeStruct(latent, np.float32)}
        if run.config.conditional:
            inputs["labels"] = jax.ShapeDtypeStruct((), np.int32)

        def images(state, latents, labels=None):
            labels = jnp.zeros(latents.shape[0], jnp.int32) if labels is None else labels
            return draw(state, {"latent": latents, "label": labels})

        return Program(inputs, "images", state, images)
    inputs = {"images": jax.ShapeDtypeStruct(tuple(run.info.image_shape), np.uint8)}
    params, batch_stats = evaluation_weights(state)
    state = state._replace(params=params, batch_stats=batch_stats, opt_state={}, average=())
    return Program(inputs, OUTPUTS[run.task], state, lambda state, images: step(state, {"image": images}))


# --- Inputs for the check ---


def test_images(run: SavedRun) -> np.ndarray | None:
    """Images of the run's own test split, always the same ones; None, with a message, if its data is not here."""
    config, count = run.config, CHECKED.get(run.task, MOST)
    try:
        if run.task == "segmentation":
            config = segmentation.for_evaluation(run, dataset=None, data_dir=None)
            form = {"channels": run.info.image_shape[2], "class_names": run.info.class_names}
            dataset = segmentation.load_dataset(config, split="test", **form)
        elif run.task == "reconstruction":
            dataset = reconstruction.load_dataset(config)
        else:
            own, shape = evaluation_data.for_evaluation(run, dataset=None, data_dir=None, tta=None)
            dataset = classification.load_dataset(own.config, shape=shape)
        images, _ = dataset.splits[scoring_split(dataset)]
        found = np.asarray(images[stream.sample(len(images), count)])
    except (DataError, ArgumentError, UsageError) as error:
        say(f"the export is checked with random images only, because the run's data can't be read: {error}")
        return None
    if found.shape[1:] != tuple(run.info.image_shape):
        say("the export is checked with random images only, because the run's data has changed its size")
        return None
    return found


def examples(run: SavedRun, program: Program) -> list[np.ndarray]:
    """The inputs of the check: test images, if the run has any, then random ones."""
    count, random = CHECKED.get(run.task, MOST), np.random.default_rng(0)
    if run.task == "generation":
        keys = jax.random.split(jax.random.key(0), count)
        latents = np.asarray(generation.latents(run.config)(keys))
        return [latents, np.arange(count, dtype=np.int32) % len(run.info.class_names)][: len(program.inputs)]
    (shape,) = (spec.shape for spec in program.inputs.values())
    images, noise = test_images(run), random.integers(0, 256, (count, *shape), dtype=np.uint8)
    return [noise if images is None else np.concatenate([images, noise])]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """max |difference| divided by the largest |expected|; NaN if a value is not finite."""
    largest = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (largest or 1.0)) if np.isfinite(expected).all() else float("nan")


def check(
    network: Callable[..., np.ndarray], inputs: list[np.ndarray], expected: dict[str, np.ndarray], *, output: str
) -> dict[str, float]:
    """Calls an exported network with all the inputs and with the first alone, and returns its largest difference from
    each of the `expected` outputs ("xla", and "cpu_kernels" if the run used them). Raises FloatingPointError if one
    exceeds TOLERANCE."""
    many, one = network(*inputs), network(*(array[:1] for array in inputs))
    found = {}
    for name, outputs in expected.items():
        found[name] = max(difference(many, outputs), difference(one, outputs[:1]))
        if not found[name] <= TOLERANCE[name]:  # Also if it is NaN.
            limit = f"at most {TOLERANCE[name]:g} of the largest is accepted; nothing was written"
            raise FloatingPointError(
                f"the exported network's {output} differ from the run's own by {found[name]:.3g} of the largest "
                f"({name}); {limit}"
            )
    return found


# --- The formats ---


def symbolic(program: Program) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """(the symbolic batch size, the program's inputs with it as the first axis)."""
    (batch,) = export.symbolic_shape("batch")
    return batch, {
        name: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype) for name, spec in program.inputs.items()
    }


def stablehlo(program: Program) -> tuple[bytes, Callable[..., np.ndarray]]:
    """(a serialized StableHLO program for any batch size, the network that it contains). The CPU kernels must be
    disabled."""
    _, inputs = symbolic(program)
    function = jax.jit(functools.partial(program.function, program.weights))
    content = bytes(export.export(function, platforms=PLATFORMS)(*inputs.values()).serialize())
    network = export.deserialize(bytearray(content))
    return content, lambda *arrays: np.asarray(network.call(*arrays))


def check_onnx(run: SavedRun) -> None:
    """Raises UsageError if the packages for ONNX are not installed, or ONNX Runtime lacks the run's data type."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    install = "run `pip install -e '.[onnx]'`, or `pip install onnx onnxruntime`"
    require(not missing, f"--format=onnx needs the package {' and '.join(missing)}: {install}")
    dtype = run.config.dtype
    require(
        dtype == "float32", f"--format=onnx: this run has --dtype={dtype}; ONNX Runtime computes in float32 on CPUs"
    )


def onnx(program: Program, metadata: dict[str, str]) -> tuple[bytes, Callable[..., np.ndarray]]:
    """(an ONNX model for any batch size, the network that it contains, run by ONNX Runtime). The CPU kernels must be
    disabled. Raises UsageError if the network can't be converted."""
    import onnxruntime

    from experiments.setup import onnx_converter, onnx_graph

    batch, inputs = symbolic(program)
    function = functools.partial(program.function, program.weights)
    try:
        model = onnx_converter.convert(function, inputs, output=program.output, batch=batch, metadata=metadata)
    except onnx_graph.UnsupportedError as error:
        raise UsageError(f"--format=onnx can't convert this network: {error} is not supported; use stablehlo") from None
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda *arrays: session.run(None, dict(zip(inputs, arrays, strict=True)))[0]


def variables(weights: State) -> dict[str, Any]:
    return {"params": weights.params, **({"batch_stats": weights.batch_stats} if weights.batch_stats else {})}


def torchvision_entries(run: SavedRun, weights: State) -> tuple[dict[str, np.ndarray], Any]:
    """(the weights with torchvision's names and layouts, the layout). Raises UsageError if torchvision has no such
    network."""
    model, info = run.config.model, run.info
    flag = "--names=torchvision"
    require(run.task == "classification", f"{flag} is supported only for runs of classify")
    network = classification.network(run.config, len(info.class_names))
    try:
        entries = models.to_torchvision(model, network, variables(weights), batches=int(weights.step))
    except (StateDictError, models.ModelError) as error:
        raise UsageError(f"{flag}: {error}") from None
    return entries, models.spec(model).torchvision


def safetensors(
    program: Program, entries: dict[str, np.ndarray], metadata: dict[str, str], restore: Callable[[dict], Any]
) -> tuple[bytes, Callable[..., np.ndarray]]:
    """(a safetensors file, the network with the weights in it). `restore` is the inverse of the function that made the
    `entries` from the variables."""
    from safetensors.numpy import save

    content = save({name: np.asarray(array, order="C") for name, array in entries.items()}, metadata)
    found = restore(read_safetensors(content))
    weights = program.weights._replace(params=found["params"], batch_stats=found.get("batch_stats", {}))
    return content, program._replace(weights=weights).__call__


def metadata(run: SavedRun, experiment: Experiment, step: int) -> dict[str, str]:
    """Facts for the file's own metadata: text, JSON where a value is not text."""
    info, specs = run.info, options.specs(type(run.config))
    network = {name: getattr(run.config, name) for name in sorted(specs) if specs[name].network}
    given = {name: value for name, value in network.items() if value is not None}
    return {
        "model": run.config.model,
        "task": run.task,
        "options": json.dumps(given),
        "class_names": json.dumps(info.class_names),
        "image_shape": json.dumps(info.image_shape),
        "input_shape": json.dumps(experiment.input_shape),
        "mean": json.dumps(info.mean),
        "std": json.dumps(info.std),
        "step": str(step),
    }
