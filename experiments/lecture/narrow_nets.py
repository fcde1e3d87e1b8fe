"""Narrow plain and residual networks with batch norm, like the CIFAR-10 networks of He, Zhang, Ren & Sun 2016, "Deep
residual learning for image recognition", section 4.2, and their training errors."""

import functools

import flax.linen as nn
import jax
import matplotlib
import numpy as np

from data import augment, batches
from data.dataset import Dataset, pixel_statistics
from experiments.lecture import topic
from experiments.reporting import figures
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, avg_pool, norm_relu
from models.resnet_cifar import Block
from train import optimizers

NETS = {"plain-20": (20, False), "plain-56": (56, False), "residual-20": (20, True), "residual-56": (56, True)}
BATCH_SIZE = 64
# For Adam; with the paper's SGD, residual-56 is still slightly behind residual-20 after so few steps.
LEARNING_RATE, MOMENTUM = 0.003, 0.9


class NarrowNet(nn.Module):
    """[B, H, W, C] -> logits [B, num_classes]: models.resnet_cifar.CifarResNet with `maps`, 2 * maps and 4 * maps
    instead of 16, 32 and 64, for `depth` = 14, 20, 26, ...

    Identical blocks of a stage are a scan over stacked weights, so that XLA compiles 56 layers as fast as 20.
    """

    num_classes: int
    depth: int
    residual: bool
    maps: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        block = functools.partial(Block, residual=self.residual)
        x = Conv(self.maps, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name="conv1")(x)
        x = norm_relu(BatchNorm(use_running_average=not train, name="bn1"), x)
        for stage, alike in enumerate(((self.depth - 2) // 6, (self.depth - 8) // 6, (self.depth - 8) // 6), 1):
            width = self.maps * 2 ** (stage - 1)
            if stage > 1:  # This block halves the resolution and doubles the maps.
                x = block(width=width, stride=2, name=f"stage{stage}_first")(x, train)
            loop = nn.scan(
                lambda block, x, _: (block(x, train), None),
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True},
                length=alike,
            )
            x, _ = loop(block(width=width, name=f"stage{stage}_rest"), x, None)
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))


def create_task(dataset: Dataset, net: str, *, maps: int, pool: int, steps: int):
    """The classification task of one of NETS."""
    images = dataset.splits["train"][0]
    mean, std = pixel_statistics(images)
    _, height, width, channels = images.shape
    depth, residual = NETS[net]

    def prepare(images):
        return avg_pool(augment.normalize(images, mean, std), pool)

    schedule = optimizers.schedule("cosine", learning_rate=LEARNING_RATE, steps=steps)
    return topic.create(
        NarrowNet(len(dataset.class_names), depth, residual, maps),
        optimizers.create("adam", schedule, momentum=MOMENTUM, nesterov=False, weight_decay=0.0),
        image_shape=(height // pool, width // pool, channels),
        class_names=dataset.class_names,
        prepare=prepare,
    )


def training_errors(init, step, images, labels, *, steps: int, seed: int) -> list[float]:
    """The error rate on the batch of each step, before its update. `init` and `step` are compiled functions, shared by
    all seeds."""
    state, errors = init(jax.random.key(seed)), []
    source = batches.train_batches(images, labels, batch_size=BATCH_SIZE, seed=seed)
    for done in range(steps):
        state, sums = step(state, next(source))
        errors.append(1.0 - float(sums["correct"]) / float(sums["count"]))
        if not np.isfinite(float(sums["loss"])):
            raise FloatingPointError(f"the loss is {float(sums['loss'])} at step {done + 1}")
    return errors


def moving_average(values, window: int) -> np.ndarray:
    """Means of `window` consecutive values: [..., N] -> [..., N - window + 1]."""
    total = np.cumsum(np.insert(np.asarray(values, np.float64), 0, 0.0, axis=-1), axis=-1)
    return (total[..., window:] - total[..., :-window]) / window


def draw(curves: dict[str, np.ndarray], window: int, title: str):
    """Plots the training error of each network in percent, [seeds, N], against the last step of each averaging window,
    as mean and standard deviation over seeds."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=4.6)
        axes = figure.add_subplot()
        topic.headline(figure, title, 50)
        for net, values in curves.items():
            depth, residual = NETS[net]
            part, style = "train" if residual else "eval", "-" if depth == 56 else (0, (3, 1.5))
            steps = window + np.arange(values.shape[1])
            topic.draw_spread(axes, steps, values, part, linestyle=style, label=net.replace("-", ", ") + " layers")
        axes.set(xlim=(0, steps[-1]), ylim=(-2, 100))  # Lines at 0 are visible.
        axes.set(xlabel="training steps", ylabel="training error, %")
        figure.legend(loc="outside lower center", ncols=2)
    return figure
