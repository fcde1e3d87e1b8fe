"""Degradation of plain deep networks: python -m experiments.lecture.plain_vs_residual --workdir=W

The training error of plain and residual networks of 20 and 56 layers with batch norm (He, Zhang, Ren & Sun 2016, "Deep
residual learning for image recognition", section 4.2 and figure 6), with narrow layers and on downsampled images.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import matplotlib
import numpy as np

import data
from data import augment, batches, cifar10, store
from data.dataset import Dataset, pixel_statistics
from experiments.cli import app
from experiments.lecture import topic
from experiments.reporting import figures
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, avg_pool, norm_relu
from models.resnet_cifar import Block
from train import optimizers

DATASETS = ("auto", "cifar10", "mnist5k")
OPTIONS = {
    "dataset": ("auto", "cifar10, mnist5k or auto; auto is cifar10 if it was prepared, else mnist5k."),
    "steps": (700, "Number of training steps per network, at least 20."),
    "maps": (8, "Maps in the first third of the layers, doubled in each further third; the paper has 16."),
    "pool": (4, "Window in pixels for downsampling images by averaging, 1 to 4; the paper has 1."),
}
NETS = {"plain-20": (20, False), "plain-56": (56, False), "residual-20": (20, True), "residual-56": (56, True)}
BATCH_SIZE = 64
# For Adam; with the paper's SGD, residual-56 is still slightly behind residual-20 after so few steps.
LEARNING_RATE, MOMENTUM = 0.003, 0.9

FORMULA = """<math display="block"><mrow><mtext>plain:</mtext><mspace width="0.4em"/><mi>y</mi><mo>=</mo><mi>F</mi>
<mo>(</mo><mi>x</mi><mo>)</mo><mo>,</mo><mspace width="1.5em"/><mtext>residual:</mtext><mspace width="0.4em"/><mi>y</mi>
<mo>=</mo><mi>F</mi><mo>(</mo><mi>x</mi><mo>)</mo><mo>+</mo><mi>x</mi></mrow></math>"""


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


def choose(dataset: str) -> Dataset:
    """Loads the data set; "auto" means cifar10 if a store of it exists, even a damaged one, else mnist5k. Raises
    DataError if cifar10 is missing or damaged."""
    if dataset == "auto":
        dataset = "cifar10" if store.exists(cifar10.default_dir(), "cifar10") else "mnist5k"
    return data.load(dataset)


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


def gap(deep: np.ndarray, shallow: np.ndarray, images: int) -> dict[str, float]:
    """How much larger the errors [seeds] of the deep networks are, and its standard error: by the deviation over seeds
    or, if larger, by that of error rates on so many images, since three seeds may agree by chance."""
    of_seeds = topic.mean_and_std(deep - shallow)
    counted = sum((share * (1 - share)).mean() for share in (deep, shallow)) / images
    return of_seeds | {"standard_error": float(np.sqrt(max(of_seeds["std"] ** 2, counted) / len(deep)))}


def moving_average(values, window: int) -> np.ndarray:
    """Means of `window` consecutive values: [..., N] -> [..., N - window + 1]."""
    total = np.cumsum(np.insert(np.asarray(values, np.float64), 0, 0.0, axis=-1), axis=-1)
    return (total[..., window:] - total[..., :-window]) / window


def draw(curves: dict[str, np.ndarray], window: int, title: str):
    """The training error in percent of each network [seeds, N] against the last step of its window, as mean and
    standard deviation over seeds."""
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=4.4)
        axes, ends = figure.add_subplot(), []
        topic.headline(figure, title, 50)
        for net, values in curves.items():
            depth, residual = NETS[net]
            part, style = "train" if residual else "eval", "-" if depth == 56 else (0, (3, 1.5))
            steps = window + np.arange(values.shape[1])
            mean = topic.draw_spread(axes, steps, values, part, linestyle=style)
            ends.append((mean[-1], net, part))
        axes.set(xlim=(0, steps[-1]), ylim=(-8, 100), yticks=range(0, 101, 20))  # Leaves room for labels of lines at 0.
        axes.set(xlabel="training steps", ylabel="training error, %")
        figure.draw_without_rendering()  # The label positions depend on the final layout.
        ends.sort()
        cuts = np.flatnonzero(np.diff([value for value, *_ in ends]) > 20) + 1
        for low, high in itertools.pairwise((0, *cuts, len(ends))):  # Separates only neighbouring labels.
            figures.label_ends(axes, ends[low:high])
    return figure


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, maps, pool, wanted = (this_topic.options[name] for name in ("steps", "maps", "pool", "dataset"))
    app.require(wanted in DATASETS, f"--dataset={wanted}: must be one of {', '.join(DATASETS)}")
    app.require(steps >= 20, f"--steps={steps}: must be at least 20")
    app.require(pool <= 4, f"--pool={pool}: must be between 1 and 4")
    dataset = choose(wanted)
    images, labels = dataset.splits["train"]
    window = steps // 10
    errors: dict[str, Any] = {}
    for net in NETS:
        task = create_task(dataset, net, maps=maps, pool=pool, steps=steps)
        train = functools.partial(training_errors, jax.jit(task.init), jax.jit(task.train_step), images, labels)
        errors[net] = [
            this_topic.cached(f"{dataset.name}_{net}_seed{seed}", functools.partial(train, steps=steps, seed=seed))
            for seed in this_topic.seeds
        ]
    curves = {net: 100 * moving_average(values, window) for net, values in errors.items()}
    final = {net: values[:, -1] / 100 for net, values in curves.items()}
    gaps = {kind: gap(final[f"{kind}-56"], final[f"{kind}-20"], window * BATCH_SIZE) for kind in ("plain", "residual")}
    side = images.shape[1] // pool
    numbers: dict[str, Any] = {"dataset": dataset.name, "pixels_a_side": side, "maps": maps, "steps": steps}
    numbers["window_steps"] = window
    numbers["training_error"] = {net: topic.mean_and_std(values) for net, values in final.items()}
    numbers["56_minus_20_layers"] = gaps

    said = {net: f"{100 * values.mean():.1f}\N{NO-BREAK SPACE}%" for net, values in final.items()}
    title = (
        f"Training error with 20 and 56 layers: plain {said['plain-20']} and {said['plain-56']}, "
        f"residual {said['residual-20']} and {said['residual-56']}"
    )
    caption = (
        f"error rate on the training batches, averaged over the last {window} steps; line and band: mean and "
        f"standard deviation over {len(this_topic.seeds)} seeds"
    )
    this_topic.figure("training_error", draw(curves, window, title), title="Training error", caption=caption)
    worse = {kind: gap["mean"] > 2 * gap["standard_error"] for kind, gap in gaps.items()}
    text = [
        "The lecture: beyond some depth a plain network gets worse even on its training data, although the deeper one "
        "could copy the shallower one and pass its output on; with shortcuts around every two layers depth does not "
        "hurt. "
        f"After {steps} steps the plain networks have a training error of {said['plain-20']} with 20 layers and "
        f"{said['plain-56']} with 56, the residual ones {said['residual-20']} and {said['residual-56']}: degradation "
        f"is {'seen' if worse['plain'] else 'not seen'} without shortcuts and {'seen' if worse['residual'] else 'not'} "
        "with them, by differences of more than two standard errors.",
        f"Reduced to run in minutes: {dataset.name} averaged to {side}x{side} pixels, {maps}, {2 * maps} and "
        f"{4 * maps} maps, and Adam for few steps; He et al. train on CIFAR-10 at 32x32 pixels with 16, 32 and 64 maps "
        "for 64,000 steps of SGD with momentum. So this shows how hard a deep plain network is to train, not its "
        "final error.",
    ]
    return topic.TopicResult("Plain and residual networks: degradation", text, FORMULA, numbers)


if __name__ == "__main__":
    topic.main("plain_vs_residual", experiment, OPTIONS)
