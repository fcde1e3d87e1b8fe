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
from experiments.lecture import deep_nets, topic
from experiments.reporting import figures
from experiments.setup import small_training
from models import layer_specs
from train import backpropagation, optimizers
from train.equality import tree_error
from train.tasks import classification

OPTIONS = {"steps": (400, "Number of training steps of lenet, with the equations and with autodiff.")}
CAPTION = (
    "LeNet, 32 digits, first step, by layer; c1, c3 and c5 are convolutions, f6 and logits dense layers; further left "
    "is closer to equal"
)
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
        grid[0, 0].imshow(digit, "gray", interpolation="nearest")
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
    from matplotlib.ticker import LogLocator

    names = [name for name in errors if name != "all"]
    with matplotlib.rc_context(figures.STYLE):
        shown = figures.new_figure(height=3.0)
        axes = shown.add_subplot()
        for place, (precision, colour) in enumerate((("single precision", "eval"), ("double precision", "train"))):
            values = [max(errors[name][place], 1e-18) for name in names]
            axes.plot(values, range(len(names)), "o", color=figures.COLOURS[colour], markersize=8)
            axes.text(values[0], -0.45, precision, ha="center", color=figures.COLOURS[colour])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(deep_nets.tick)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.9))
        axes.set_xlabel("largest difference between the gradients / largest gradient")
        axes.set_title("The equations match automatic differentiation")
    return shown


def agreeing_digits(error: float) -> float:
    """The number of decimal digits, from 0 to 16, to which values with this relative difference agree."""
    return float(np.clip(-np.log10(max(error, 1e-16)), 0, 16))


def description(errors: dict, accuracy: dict, ms: dict[str, float], *, steps: int, over: str) -> list[str]:
    """The text for students: `errors` as from `errors_by_layer`, the `mean_and_std` of the accuracies and the times of
    a step in milliseconds by way. `over` says what is averaged."""
    single, double = map(deep_nets.power_of_ten, errors["all"])
    points = 100 * abs(accuracy["backpropagation"]["mean"] - accuracy["autodiff"]["mean"])
    text = [
        "Implemented without automatic differentiation, the equations give the same gradients up to rounding. In the "
        f"first training step of LeNet, with {EXAMPLES} digits, the largest difference, as a fraction of the largest "
        f"gradient of the same layer, is {single} in single and {double} in double precision: about "
        f"{agreeing_digits(errors['all'][0]):.0f} and {agreeing_digits(errors['all'][1]):.0f} digits agree. The others "
        "are lost because the rounding errors of many additions accumulate. If an equation were wrong, double "
        "precision would not make the difference smaller.",
        f"Trained for {steps} steps, LeNet reaches "
        + (
            f"accuracies that differ by {points:.2f} percentage points. "
            if points >= 0.005
            else "the same accuracy both ways. Differences this small hardly ever change which class is most probable. "
        )
        + f"The table shows {over} (initial weights and order of the digits).",
    ]
    if ms["backpropagation"] > ms["autodiff"]:
        text.append(
            "A step takes longer with the equations: they are written to be read, with loops over the positions in the "
            "kernel, while automatic differentiation uses optimized functions for whole convolutions."
        )
    return text


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
    this_topic.figure("differences", draw_differences(errors), title=title, caption=CAPTION)
    this_topic.figure(
        "errors",
        draw_errors(images[0, ..., 0], error_maps(images, labels)),
        title="The error of each layer",
        caption="from the first layer (top) to the last with maps; an untrained LeNet; red is positive, blue negative",
    )
    accuracy = {name: topic.mean_and_std([each["accuracy"] for each in found]) for name, found in runs.items()}
    ms = {name: statistics.median(each["ms"] for each in found) for name, found in runs.items()}
    numbers = {
        "max_relative_error": errors["all"][0],
        "max_relative_error_float64": errors["all"][1],
        "accuracy_backpropagation": accuracy["backpropagation"]["mean"],
        "accuracy_autodiff": accuracy["autodiff"]["mean"],
        "std": {name: value["std"] for name, value in accuracy.items()},
        "step_ms": ms,
    }
    training = [
        [label, this_topic.percent(accuracy[way], places=2), f"{ms[way]:.1f} ms"]
        for way, label in (("backpropagation", "equations"), ("autodiff", "automatic differentiation"))
    ]
    by_layer = [
        ["all layers" if name == "all" else name, *map(deep_nets.power_of_ten, pair)] for name, pair in errors.items()
    ]
    question = (
        "Single precision stores about 7 decimal digits. To how many digits do the gradients of both ways agree, in "
        "the layer where they differ most?"
    )
    return topic.TopicResult(
        description(errors, accuracy, ms, steps=steps, over=this_topic.over_seeds("the mean ± standard deviation")),
        numbers,
        [
            ("Training both ways", ["gradients by", "test accuracy", "time of a step"], training),
            ("Relative differences", ["layer", "single precision", "double precision"], by_layer),
        ],
        [topic.Guess("differences", question, "digits", 0, 16, agreeing_digits(errors["all"][0]))],
    )


if __name__ == "__main__":
    topic.main("backpropagation", experiment, OPTIONS)
