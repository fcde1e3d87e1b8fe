"""The lecture's four equations of backpropagation compared with automatic differentiation:
python -m experiments.lecture.backpropagation --workdir=W
"""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import data
import models
from data import augment
from data.dataset import pixel_statistics
from experiments.lecture import topic
from experiments.reporting import figures
from experiments.setup import small_training
from models import layer_specs
from train import backpropagation, optimizers
from train.equality import tree_error
from train.tasks import classification

OPTIONS = {"steps": (400, "Number of training steps of lenet, with the equations and with autodiff.")}
BATCH, EXAMPLES, MAPS, TIMED = 64, 32, 6, 15


def tasks(images) -> dict:
    """Tasks that train lenet with gradients by automatic differentiation and by the equations."""
    model, mean_std = models.create("lenet", 10), pixel_statistics(images)

    def prepare(images, keys=None):
        del keys
        return augment.normalize(images, *mean_std)

    made = functools.partial(
        classification.create,
        model=model,
        optimizer=optimizers.create("sgd", lambda step: 0.05, momentum=0.9, nesterov=False, weight_decay=0.0),
        image_shape=images.shape[1:],
        class_names=tuple("0123456789"),
        train_prepare=prepare,
        eval_prepare=prepare,
        axis=None,
    )
    layers = model.layer_specs(images.shape[1:])
    written_out = functools.partial(backpropagation.gradients, layers=layers, prepare=prepare)
    return {"autodiff": made(), "backpropagation": made(gradients=written_out)}


def both_gradients(images, labels, *, double: bool):
    """Gradients of lenet's first training step, (by the equations, by autodiff), as numpy arrays."""
    with jax.enable_x64(double):
        model, dtype = models.create("lenet", 10), np.float64 if double else np.float32
        scaled = ((images - images.mean()) / images.std()).astype(dtype)
        params = jax.jit(model.init)(jax.random.key(0), jnp.asarray(scaled[:1], jnp.float32))["params"]
        params = jax.tree.map(lambda x: np.asarray(x, dtype), jax.device_get(params))
        batch = {"image": scaled, "label": labels}

        def prepare(images, keys):
            del keys
            return images

        layers = model.layer_specs(images.shape[1:])
        ways = (
            functools.partial(backpropagation.gradients, layers=layers, prepare=prepare),
            functools.partial(classification.autodiff, model=model, prepare=prepare, smoothing=0.0, axis=None),
        )
        return [jax.device_get(jax.jit(way)(params, {}, batch, jax.random.key(0))[1]) for way in ways]


def errors_by_layer(images, labels) -> dict:
    """Returns {layer: [error in float32, error in float64]}, computed by train.equality; "all" is the whole tree."""
    found: dict[str, list[float]] = {}
    for double in (False, True):
        ours, theirs = both_gradients(images, labels, double=double)
        for name in ours:
            found.setdefault(name, []).append(tree_error(ours[name], theirs[name]))
        found.setdefault("all", []).append(tree_error(ours, theirs))
    return found


def trained(task, splits, *, seed: int, steps: int) -> dict:
    """The test accuracy after training and the median time per step in milliseconds."""
    (images, labels), (tests, answers) = splits["train"], splits["test"]
    state = small_training.train(task, images, labels, batch_size=BATCH, steps=steps, seed=seed)
    guesses = np.asarray(jax.jit(task.predict_step)(state, {"image": tests})).argmax(-1)
    step, batch, times = jax.jit(task.train_step), {"image": images[:BATCH], "label": labels[:BATCH]}, []
    for _ in range(TIMED + 2):
        began = time.perf_counter()
        jax.block_until_ready(step(state, batch))
        times.append(1e3 * (time.perf_counter() - began))
    return {"accuracy": float((guesses == answers).mean()), "ms": statistics.median(times[2:])}


def error_maps(images, labels) -> list:
    """A list of (layer, maps [H, W, M]): the error at the output of each layer of an untrained lenet, for one digit."""
    model = models.create("lenet", 10)
    layers = model.layer_specs(images.shape[1:])
    scaled = ((images[:1] - images.mean()) / images.std()).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), scaled)["params"]

    @jax.jit
    def run(params):
        logits, kept = backpropagation.forward(layers, params, scaled)
        delta = backpropagation.cross_entropy_error(logits, labels[:1])
        return backpropagation.backward(layers, params, kept, delta)[1]

    errors = jax.device_get(run(params))
    kinds = {layer_specs.Convolution: "convolution", layer_specs.AveragePooling: "pooling"}
    named = [(type(layer), error[0]) for layer, error in zip(layers, errors, strict=True)]
    return [(kinds[kind], error) for kind, error in named if kind in kinds and error.shape[0] > 1]


def draw_errors(digit, errors):
    """Plots the digit and, below it, one row of error maps per layer."""
    import matplotlib

    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        shown = figures.new_figure(height=0.95 * (len(errors) + 1) + 0.4)
        grid = shown.subplots(len(errors) + 1, MAPS, squeeze=False)
        for axes in grid.ravel():
            axes.set_axis_off()
        grid[0, 0].imshow(digit, "gray_r", interpolation="nearest")
        for row, (kind, error) in zip(grid[1:], errors, strict=True):
            limit = np.abs(error).max()
            for axes, number in zip(row, range(min(MAPS, error.shape[-1])), strict=False):
                axes.imshow(error[..., number], "RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            row[0].set_title(f"{kind}, {error.shape[0]}x{error.shape[1]}", fontsize=9)
        topic.headline(shown, "Backpropagated errors")
    return shown


def draw_differences(errors: dict):
    """Plots the differences by layer in both precisions, on a log axis."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter, LogLocator

    names = [name for name in errors if name != "all"]
    with matplotlib.rc_context(figures.STYLE):
        shown = figures.new_figure(height=3.0)
        axes = shown.add_subplot()
        for place, (precision, colour) in enumerate((("float32", "eval"), ("float64", "train"))):
            values = [max(errors[name][place], 1e-18) for name in names]
            axes.plot(values, range(len(names)), "o", color=figures.COLOURS[colour], markersize=8)
            axes.text(values[0], -0.45, precision, ha="center", color=figures.COLOURS[colour])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.9))
        axes.set_xlabel("largest difference between the gradients / largest gradient")
        axes.set_title(f"The equations match autodiff to\n{errors['all'][0]:.0e} and {errors['all'][1]:.0e}")
    return shown


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps = this_topic.options["steps"]
    splits = data.load("mnist5k").splits
    rows = np.arange(0, len(splits["train"][1]), len(splits["train"][1]) // EXAMPLES)[:EXAMPLES]
    images, labels = (part[rows] for part in splits["train"])
    errors = this_topic.cached("differences", lambda: errors_by_layer(images, labels))
    ways = tasks(splits["train"][0])
    runs: dict[str, list] = {}
    for name, task in ways.items():
        for seed in this_topic.seeds:
            make = functools.partial(trained, task, splits, seed=seed, steps=steps)
            runs.setdefault(name, []).append(this_topic.cached(f"{name}_{seed}", make))
    title = "Gradients by the equations and by automatic differentiation"
    this_topic.figure(
        "differences", draw_differences(errors), title=title, caption="lenet, 32 digits, first step, by layer"
    )
    this_topic.figure(
        "errors",
        draw_errors(images[0, ..., 0], error_maps(images, labels)),
        title="The error of each layer",
        caption="errors of an untrained lenet for the digit above; up to six maps per layer; red is positive",
    )
    accuracy = {name: topic.mean_and_std([each["accuracy"] for each in found]) for name, found in runs.items()}
    ms = {name: statistics.median(each["ms"] for each in found) for name, found in runs.items()}
    text = [
        "Four equations give all gradients of a convolutional network: the error at the output, the error of a layer "
        "from that of the next layer with the flipped kernel, and the gradients of weights and biases from the errors.",
        "Implemented without automatic differentiation, they give the same gradients: the largest difference is "
        f"{errors['all'][0]:.1e} in single and {errors['all'][1]:.1e} in double precision. After {steps} training "
        f"steps the test accuracy of lenet is {100 * accuracy['backpropagation']['mean']:.2f} % with the equations and "
        f"{100 * accuracy['autodiff']['mean']:.2f} % with autodiff; a step takes "
        f"{ms['backpropagation']:.1f} ms with the equations and {ms['autodiff']:.1f} ms with autodiff.",
        "Differences from the slides: the bias is subtracted, so its gradient is minus the sum of the errors (with the "
        "plus sign of the slide the loss would increase); the slides have one bias per position, here there is one per "
        "map, as usual; and for softmax with cross-entropy the error at the output is p - y, without the derivative of "
        "an elementwise function.",
    ]
    numbers = {
        "max_relative_error": errors["all"][0],
        "max_relative_error_float64": errors["all"][1],
        "accuracy_backpropagation": accuracy["backpropagation"]["mean"],
        "accuracy_autodiff": accuracy["autodiff"]["mean"],
        "std": {name: value["std"] for name, value in accuracy.items()},
        "step_ms": ms,
    }
    table = ("Differences by layer", ["layer", "float32", "float64"])
    rows_of = [[name, f"{single:.1e}", f"{double:.1e}"] for name, (single, double) in errors.items()]
    return topic.TopicResult(text, numbers, [(*table, rows_of)])


if __name__ == "__main__":
    topic.main("backpropagation", experiment, OPTIONS)
