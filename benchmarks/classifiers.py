"""Compares training steps with a peer's: python -m benchmarks.classifiers --peer=torch_step.py --peer_python=PYTHON

benchmarks.twins describes the method; without --peer, only this project is measured. For the CIFAR networks, "input
path" is the time of a step with the project's batches, flipped and shifted on the device, divided by the time of a step
with one fixed batch.
"""

import functools
import itertools

import flax.linen as nn
import jax
import numpy as np
from absl import flags as absl_flags

import models
from benchmarks import segmentation, tasks, twins
from data import augment, batches
from experiments.cli import app
from models import initializers, layers

MODELS = absl_flags.DEFINE_list(
    "models",
    ["mlp", "vgg_like", "resnet20", "densenet40", "alexnet", "resnet18", "segnet_basic"],
    "Networks to measure.",
)
IMAGE_SHAPE, CLASSES, EXAMPLES, MEAN, STD = (32, 32, 3), 10, 50_000, (127.5,), (74.0,)  # CIFAR-10's sizes, for noise.
LARGE_SHAPE, LARGE_CLASSES = (224, 224, 3), 1000


class VGGLike(nn.Module):
    """Three pairs of 3x3 convolutions with max pooling and a hidden layer of 256, [B, H, W, C] -> logits [B, 10]."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in (64, 128, 256):
            for _ in range(2):
                x = layers.relu(layers.Conv(width, (3, 3), padding=((1, 1), (1, 1)))(x))
            x = layers.max_pool(x, 2)
        x = layers.relu(layers.Dense(256, kernel_init=initializers.kaiming_normal)(x.reshape(x.shape[0], -1)))
        return layers.Dense(CLASSES)(x)


NETWORKS: dict[str, tuple[nn.Module, int]] = {  # The peer's name: (this project's network, batch size).
    "mlp": (models.create("mlp", CLASSES, hidden=(1024, 1024, 1024)), 128),
    "vgg_like": (VGGLike(), 128),
    "resnet20": (models.create("cifar_resnet20", CLASSES), 128),
    "densenet40": (models.create("densenet", CLASSES), 64),
    "densenet100_bc": (models.create("densenet", CLASSES, depth=100, bottleneck=True, compression=0.5), 64),
}
LARGE = {  # The same for images of 224x224 pixels.
    "alexnet": (models.create("alexnet_owt", LARGE_CLASSES), 64),
    "resnet18": (models.create("resnet18", LARGE_CLASSES), 16),
}


def prepare(images, keys):
    """Normalizes and augments uint8 images, as the input path does; float32 images are already normalized."""
    return augment.flip_shift(augment.normalize(images, MEAN, STD), keys) if images.dtype == np.uint8 else images


def small_twin(name: str, images: np.ndarray) -> twins.Twin:
    module, batch_size = NETWORKS[name]
    task = tasks.classifier(module, IMAGE_SHAPE, CLASSES, train_prepare=prepare)
    batch_size = twins.BATCH.value or batch_size
    labels = np.arange(EXAMPLES, dtype=np.int32) % CLASSES
    source = functools.partial(batches.train_batches, images, labels, batch_size=batch_size, seed=0)
    raw = jax.device_put(next(source()))
    fixed = raw | {"image": augment.normalize(raw["image"], MEAN, STD)}
    if twins.FORWARD.value:
        return twins.Twin(task, fixed)
    return twins.Twin(task, fixed, {"input path": source, "augmentation": lambda: itertools.repeat(raw)})


def large_twin(name: str) -> twins.Twin:
    module, batch_size = LARGE[name]
    batch_size = twins.BATCH.value or batch_size
    images = np.random.default_rng(0).normal(size=(batch_size, *LARGE_SHAPE)).astype(np.float32)
    batch = {"image": images, "label": np.arange(batch_size, dtype=np.int32) % LARGE_CLASSES}
    return twins.Twin(tasks.classifier(module, LARGE_SHAPE, LARGE_CLASSES), jax.device_put(batch))


def check_models() -> None:
    accepted = [*NETWORKS, *LARGE, "segnet_basic"]
    for name in MODELS.value or [""]:
        app.require(name in accepted, f"--models={name}: must be one of {', '.join(accepted)}")


def make_twins() -> dict[str, twins.Twin]:
    """Returns the twins of --models."""
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, *IMAGE_SHAPE), np.uint8)
    made = {}
    for name in MODELS.value:
        small = name in NETWORKS
        made[name] = small_twin(name, images) if small else large_twin(name) if name in LARGE else segmentation.twin()
    return made


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; classifiers takes no positional arguments")
    check_models()
    twins.check()
    twins.compare(make_twins())
    return 0


if __name__ == "__main__":
    app.run(main)
