"""Deep feed-forward, convolutional and residual networks compared with shallow, dense or plain networks of similar
size."""

import functools
from typing import Any

import jax
import matplotlib
import numpy as np
import optax

import data
import models
from experiments.lecture import narrow_nets, points, topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.digits import learn, percent
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from train.tasks import losses

RATE = 0.003  # Learning rate of the networks on digits.

# --- Three hidden layers and one ---

POINTS, TURNS, NOISE = 400, 3.0, 0.02  # Training points on two spirals, turns of each spiral, noise.
EDGE = 2.3  # The largest coordinate shown in the figure.
# Hidden layers with similar numbers of parameters: on digits 53,706 and 53,275, in the plane 374 and 372.
HIDDEN: dict[str, dict[str, tuple[int, ...]]] = {
    "three": {"digits": (64, 32, 32), "plane": (12, 12, 12)},
    "one": {"digits": (67,), "plane": (74,)},
}


def spirals(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [count, 2] on two intertwined spirals, and their classes [count], 0 or 1."""
    random, labels = np.random.default_rng(seed), np.arange(count) % 2
    radius = np.sqrt(random.uniform(0.01, 1, count))  # The square root spaces points evenly along the spiral.
    angle = 2 * np.pi * TURNS * radius + np.pi * labels
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + NOISE * random.standard_normal((count, 2))
    return 2 * x.astype(np.float32), labels.astype(np.int32)


def plane_net(hidden: tuple[int, ...]):
    return models.create("mlp", 2, hidden=hidden, activation="tanh")


@functools.partial(jax.jit, static_argnames=("hidden", "steps"))
def fit_plane(key, x_N2, y_N, *, hidden: tuple[int, ...], steps: int):
    """The parameters after `steps` full-batch steps of Adam."""
    model, optimizer = plane_net(hidden), optax.adam(optax.cosine_decay_schedule(0.01, steps))
    params = model.init(key, x_N2)["params"]

    def one_step(_, carry):
        params, state = carry
        gradients = jax.grad(lambda p: losses.cross_entropy(model.apply({"params": p}, x_N2), y_N).mean())(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, steps, one_step, (params, optimizer.init(params)))[0]


def run_deep_feed_forward(seed: int, *, steps: int = 800, plane_steps: int = 3000, pixels: int = 100) -> dict[str, Any]:
    (x, y), (new_x, new_y) = spirals(2 * seed, POINTS), spirals(2 * seed + 1, 1000)
    side = np.linspace(-EDGE, EDGE, pixels, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    found: dict[str, Any] = {"points": x.astype(float).round(3).tolist(), "classes": y.tolist()}
    for name, hidden in HIDDEN.items():
        params = fit_plane(jax.random.key(seed), x, y, hidden=hidden["plane"], steps=plane_steps)
        logits = jax.jit(functools.partial(plane_net(hidden["plane"]).apply, {"params": params}))
        regions = np.asarray(jax.nn.softmax(logits(grid))[:, 1]).reshape(pixels, pixels)
        digits = learn(models.create("mlp", 10, hidden=hidden["digits"]), steps=steps, seed=seed, rate=RATE)
        found[name] = {
            "spirals": float(np.mean(np.asarray(logits(new_x)).argmax(-1) == new_y)),
            "regions": [[round(float(value), 2) for value in row] for row in regions],
            "digits": digits.curve[-1][1],
        }
    return found


def compared(kind: str, deep: dict, shallow: dict) -> str:
    """A sentence on the test accuracy of three hidden layers and of one."""
    gain = deep["mean"] - shallow["mean"]
    verdict = "helps" if gain > 0.01 else "hurts" if gain < -0.01 else "makes no difference of more than 1 point"
    return (
        f"On {kind} three hidden layers reach {percent(deep)} and one hidden layer with a similar number of parameters "
        f"{percent(shallow)}: depth {verdict}."
    )


def report_deep_feed_forward(results: list[dict[str, Any]]) -> Findings:
    right = {
        name: {on: topic.mean_and_std([r[name][on] for r in results]) for on in ("spirals", "digits")}
        for name in HIDDEN
    }
    text = " ".join(
        compared(kind, right["three"][on], right["one"][on])
        for on, kind in (("spirals", "two spirals"), ("digits", "digits"))
    )
    numbers, baseline = ({f"test_accuracy_{on}": value for on, value in each.items()} for each in right.values())
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=3.3)
        x, classes = np.array(results[0]["points"]), np.array(results[0]["classes"])
        for axes, name in zip(figure.subplots(1, 2), ("one", "three"), strict=True):
            found = results[0][name]
            extent = (-EDGE, EDGE, -EDGE, EDGE)
            axes.imshow(found["regions"], points.OUTPUTS, vmin=0, vmax=1, extent=extent, origin="lower")
            for label, (colour, marker) in enumerate(points.CLASSES):
                axes.scatter(*x[classes == label].T, s=5, c=colour, marker=marker, linewidths=0)
            axes.set_axis_off()
            layers = {"one": "1 hidden layer", "three": "3 hidden layers"}[name]
            axes.set_title(f"{layers}: {100 * found['spirals']:.0f} %", fontsize=11)
        figure.legend(handles=points.class_handles(), loc="outside lower center", ncols=2, frameon=False)
    caption = "points of two spirals, with the output of each network as background, and its test accuracy; first seed"
    return Findings(text, numbers, baseline, figure, caption, "one hidden layer")


DEEP_FEED_FORWARD = Card(
    name="deep_feed_forward",
    title="Deep feed forward (DFF)",
    diagram=Diagram((Layer("input", 3), Layer("hidden", 4), Layer("hidden", 4), Layer("output", 2))),
    idea="The network has several hidden layers in sequence. Each layer combines the features of the previous one, so "
    "that few units can form complicated decision boundaries.",
    formula=r"h_l = f(W_l h_{l-1} + b_l), \quad h_0 = x",
    rule="Backpropagation through all layers, here with Adam.",
    reference="Kevin Lang and Michael Witbrock, 1988, “Learning to tell two spirals apart”",
    run=run_deep_feed_forward,
    report=report_deep_feed_forward,
    command="python -m experiments.classify --model=mlp --hidden=64,32,32 --workdir=NEW",
)


# --- Convolutions and a dense layer ---

MOVES = range(6)  # Shifts of the test digits in pixels.
FAR = 2  # The shift that is reported.
NETS: dict[str, dict[str, Any]] = {
    "lenet": {"activation": "relu"},
    "mlp": {"hidden": (77,)},
}  # 61,706 and 61,225 parameters.


def moved(images: np.ndarray, pixels: int) -> np.ndarray:
    """Shifts images [B, H, W, C] right and down, with zero padding."""
    edges = ((0, 0), (pixels, 0), (pixels, 0), (0, 0))
    return np.pad(images, edges)[:, : images.shape[1], : images.shape[2]]


def run_deep_convolutional(seed: int, *, steps: int = 800) -> dict[str, Any]:
    images, labels = data.load("mnist5k").splits["test"]
    found = {}
    for name, options in NETS.items():
        net = learn(models.create(name, 10, **options), steps=steps, seed=seed, rate=RATE)
        found[name] = [float(np.mean(net.logits(moved(images, n)).argmax(-1) == labels)) for n in MOVES]
    return found


def report_deep_convolutional(results: list[dict[str, Any]]) -> Findings:
    curves = {name: np.array([result[name] for result in results]) for name in NETS}
    numbers, baseline = (
        {
            "test_accuracy": topic.mean_and_std(values[:, 0]),
            f"test_accuracy_moved_{FAR}_pixels": topic.mean_and_std(values[:, FAR]),
        }
        for values in curves.values()
    )
    (still, far), (dense_still, dense_far) = numbers.values(), baseline.values()
    better = still["mean"] > dense_still["mean"] and far["mean"] > dense_far["mean"]
    text = (
        f"LeNet classifies {percent(still)} of the test digits correctly and {percent(far)} if they are shifted by "
        f"{FAR} pixels right and down; a dense network with a similar number of parameters reaches "
        f"{percent(dense_still)} and {percent(dense_far)}. Convolutions are "
        f"{'better at both' if better else 'not better at both'}."
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=3.2)
        axes, ends = figure.add_subplot(), []
        for name, label, part in (("lenet", "LeNet", "train"), ("mlp", "dense", "eval")):
            ends.append((topic.draw_spread(axes, list(MOVES), 100 * curves[name], part)[-1], label, part))
        axes.set(xlim=(0, MOVES[-1]), ylim=(0, 100), ylabel="test accuracy, %")
        axes.set_xlabel("shift right and down, pixels")
        axes.set_title(figures.wrapped(f"Shifted by {FAR} pixels: LeNet {percent(far)}, dense {percent(dense_far)}"))
        figure.draw_without_rendering()  # The label positions depend on the final layout.
        figures.label_ends(axes, ends, gap=16)
    caption = "test accuracy on shifted digits, without shifts in training; mean and standard deviation over seeds"
    return Findings(text, numbers, baseline, figure, caption, "dense network")


DEEP_CONVOLUTIONAL = Card(
    name="deep_convolutional",
    title="Deep convolutional network (DCN)",
    diagram=Diagram(
        (
            Layer("input", 5),
            Layer("kernel", 5, "near"),
            Layer("pool", 4, "near"),
            Layer("pool", 3, "near"),
            Layer("hidden", 3),
            Layer("hidden", 3),
            Layer("output", 2),
        )
    ),
    idea="A small filter is applied at every position of the image to detect the same pattern, and pooling keeps its "
    "position only roughly. So the network needs few weights and does not have to learn a pattern again at each "
    "position.",
    formula=r"h_{ijk} = f\left( \sum_{a,b,c} w_{abck} x_{i+a,j+b,c} + b_k \right)",
    rule="Backpropagation; the gradient of a shared weight is the sum over all positions.",
    reference="Yann LeCun, Léon Bottou, Yoshua Bengio and Patrick Haffner, 1998, “Gradient-based learning applied to "
    "document recognition”",
    run=run_deep_convolutional,
    report=report_deep_convolutional,
    command="python -m experiments.classify --model=lenet --workdir=NEW",
)


# --- Shortcuts ---

DEEP = {"residual": "residual-56", "plain": "plain-56"}


def run_deep_residual(seed: int, *, steps: int = 250, maps: int = 8, pool: int = 4) -> dict[str, Any]:
    dataset, found = data.load("mnist5k"), {}
    for kind, net in DEEP.items():
        task = narrow_nets.create_task(dataset, net, maps=maps, pool=pool, steps=steps)
        init, step = jax.jit(task.init), jax.jit(task.train_step)
        found[kind] = narrow_nets.training_errors(init, step, *dataset.splits["train"], steps=steps, seed=seed)
    return found


def report_deep_residual(results: list[dict[str, Any]]) -> Findings:
    steps = len(results[0]["plain"])
    window = max(1, steps // 10)
    errors = {kind: np.array([result[kind] for result in results]) for kind in DEEP}
    curves = {DEEP[kind]: 100 * narrow_nets.moving_average(values, window) for kind, values in errors.items()}
    final = {kind: topic.mean_and_std(curves[net][:, -1] / 100) for kind, net in DEEP.items()}
    better = final["residual"]["mean"] < final["plain"]["mean"]
    text = (
        f"After {steps} steps the training error of 56 layers is {percent(final['residual'])} with shortcuts and "
        f"{percent(final['plain'])} without: shortcuts {'make' if better else 'do not make'} the deep network easier "
        "to train here."
    )
    title = f"56 layers: residual {percent(final['residual'])}, plain {percent(final['plain'])}"
    figure = narrow_nets.draw(curves, window, title)
    caption = f"error rate on the training batches, mean of the last {window} steps; digits downsampled to 7x7 pixels"
    key = "training_error_56_layers"
    return Findings(text, {key: final["residual"]}, {key: final["plain"]}, figure, caption, "without shortcuts")


DEEP_RESIDUAL = Card(
    name="deep_residual",
    title="Deep residual network (DRN)",
    diagram=Diagram(
        (Layer("input", 3), *(Layer("hidden", 4),) * 5, Layer("output", 3)), skips=((1, 3), (2, 4), (3, 5))
    ),
    idea="A shortcut adds the input of two layers to their output. The layers only have to learn the residual, and "
    "gradients reach the first layers directly.",
    formula=r"y = F(x) + x",
    rule="Backpropagation; the shortcut propagates the gradient unchanged.",
    reference="Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, 2016, “Deep residual learning for image "
    "recognition”",
    run=run_deep_residual,
    report=report_deep_residual,
    command="python -m experiments.lecture.plain_vs_residual --workdir=NEW",
)

CARDS = (DEEP_FEED_FORWARD, DEEP_CONVOLUTIONAL, DEEP_RESIDUAL)
