"""Compares DCGAN's step with PyTorch's: python -m benchmarks.gan --peer_python=PYTHON [--rounds=3]

benchmarks.twins describes the method; PyTorch's step is in dcgan_in_torch.py. Batches have 64 images, of 32x32 pixels
with one channel or 64x64 pixels with three. Without --peer_python, only this project is measured.
"""

import pathlib

import jax
import numpy as np
from absl import flags as absl_flags

import models
from benchmarks import tasks, twins
from experiments.cli import app

MODELS = absl_flags.DEFINE_list("models", ["dcgan32", "dcgan64"], "Networks; the number is the side of the images.")
SHAPES = {"dcgan32": (32, 32, 1), "dcgan64": (64, 64, 3)}
BATCH_SIZE = 64


def twin(name: str) -> twins.Twin:
    shape = SHAPES[name]
    model = models.create("dcgan", 10, size=shape[0], channels=shape[2])
    random, batch_size = np.random.default_rng(0), twins.BATCH.value or BATCH_SIZE
    images = random.uniform(-1, 1, (batch_size, *shape)).astype(np.float32)
    return twins.Twin(
        tasks.generator(model, shape), jax.device_put({"image": images, "label": np.zeros(batch_size, np.int32)})
    )


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; gan takes no positional arguments")
    for name in MODELS.value or [""]:
        app.require(name in SHAPES, f"--models={name}: must be one of {', '.join(SHAPES)}")
    if twins.PEER_PYTHON.present:
        absl_flags.FLAGS["peer"].value = str(pathlib.Path(__file__).with_name("dcgan_in_torch.py"))
    app.require(not twins.FORWARD.value, "--forward_only: not supported; only a GAN's full step is measured")
    twins.check()
    twins.compare({name: twin(name) for name in MODELS.value})
    return 0


if __name__ == "__main__":
    app.run(main)
