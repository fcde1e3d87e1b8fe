"""Compares logits with a peer's, for reproducibly drawn weights and input, so that no weights have to be stored:

    python -m benchmarks.parity --model=resnet34 --salt=parity-1 [--golden=FILE.json]

For each entry k of the peer's network, a generator seeded with crc32(salt/k) draws, in float32: running_var from
U(0.5, 1.5), running_mean from N(0, 0.1^2), bias from N(0, 0.05^2), one-dimensional weights from U(0.8, 1.2), other
weights from N(0, 2 / fan_in). Two images [224, 224, 3] are drawn from N(0, 1) with the seed crc32(salt/input). The
weights are converted as in experiments.import_weights. FILE contains the peer's logits: logits_first8, logits_mean,
logits_std.
"""

import json
import math
import pathlib
import zlib
from typing import Any

import jax
import numpy as np
from absl import flags as absl_flags

import models
from experiments.cli import app
from experiments.cli.compilation_cache import start_cache
from models import summary, torchvision

CLASSES = 1000


def entry_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The names of the peer's entries and their shapes, in torch's layout, derived from this project's network."""
    layout = models.spec(name).torchvision
    assert layout is not None
    return torchvision.entry_shapes(summary.variables(models.create(name, CLASSES), (224, 224, 3)), layout)


def draw(key: str, shape: tuple[int, ...], *, salt: str) -> np.ndarray:
    """The array of one entry, float32."""
    random = np.random.default_rng(zlib.crc32(f"{salt}/{key}".encode()))
    leaf = key.rpartition(".")[2]
    if leaf == "running_var":
        values = random.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        values = random.normal(0, 0.1, shape)
    elif leaf == "bias":
        values = random.normal(0, 0.05, shape)
    elif len(shape) == 1:
        values = random.uniform(0.8, 1.2, shape)
    else:
        values = random.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    return values.astype(np.float32)


def logits(name: str, salt: str) -> np.ndarray:
    """The logits [2, 1000] of this project's network in evaluation mode."""
    entries = {key: draw(key, shape, salt=salt) for key, shape in entry_shapes(name).items()}
    model, variables = models.from_torchvision(name, entries)
    random = np.random.default_rng(zlib.crc32(f"{salt}/input".encode()))
    images = random.normal(size=(2, 224, 224, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):  # By default a GPU uses 10 bits of each factor, a TPU 8.
        return np.asarray(jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, images))


def relative_error(own: np.ndarray, golden: dict) -> float:
    """max |difference| of the first eight logits, the mean and the standard deviation, divided by max |logits| of the
    image; the maximum over the two images."""
    parts = ((own[:, :8], "logits_first8"), (own.mean(1), "logits_mean"), (own.std(1), "logits_std"))
    scale = np.abs(own).max(1)
    worst = [np.abs(ours - np.asarray(golden[name])).reshape(len(own), -1).max(1) / scale for ours, name in parts]
    return float(np.max(worst))


def read_golden(path: str) -> dict:
    """Reads the peer's values. Raises UsageError if the file does not contain them."""
    try:
        golden = json.loads(pathlib.Path(path).read_text())
        shapes = [np.shape(golden[name]) for name in ("logits_first8", "logits_mean", "logits_std")]
    except (ValueError, KeyError, TypeError) as error:
        raise app.UsageError(f"--golden={path}: not a valid file of logits: {error!r}") from None
    expected = [(2, 8), (2,), (2,)]
    app.require(shapes == expected, f"--golden={path}: values have shapes {shapes}, expected {expected}")
    return golden


def define_flags() -> None:
    absl_flags.DEFINE_string("model", None, "Network: alexnet_owt, vggN, vggN_bn, resnetN or densenetN.")
    absl_flags.DEFINE_string("salt", "parity-1", "Text that seeds all draws.")
    absl_flags.DEFINE_string("golden", None, "JSON file with the peer's logits for comparison.")


def main(argv) -> int:
    name, salt, path = (absl_flags.FLAGS[flag].value for flag in ("model", "salt", "golden"))
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; parity takes no positional arguments")
    known = sorted(other for other, spec in models.MODELS.items() if spec.torchvision)
    if name not in known:
        raise app.UsageError(f"--model={name}: must be one of {', '.join(known)}")
    golden = read_golden(path) if path else None
    start_cache()
    own = logits(name, str(salt))
    result: dict[str, Any] = {"model": name, "salt": salt, "logits": own.tolist()}
    if golden:
        result["max_relative_error"] = relative_error(own, golden)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
