"""Initial weights after Glorot and after Kaiming: python -m experiments.lecture.initialization --workdir=W

The draws against their equations; activations and gradients of a tanh net by layer, as in Glorot & Bengio 2010,
"Understanding the difficulty", figures 6 and 7; and ReLU nets of 22 and 30 layers without batch norm, as in He et al.
2015, "Delving deep into rectifiers", figures 2 and 3. He's "Xavier" is N(0, 1/m), Glorot's variance for m = n.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from experiments.cli import flags
from experiments.lecture import deep_nets, topic
from experiments.reporting import figures
from models.initializers import fans, glorot_uniform, normal

OPTIONS = {
    "steps": (800, "Training steps of each ReLU net."),
    "width": (128, "Units of a ReLU net's hidden layers."),
    "depths": ("22,30", "Layers of the ReLU nets, each number from 3 to 100."),
}
SHAPES = {"dense, 784 to 128": (784, 128), "convolution 3x3, 64 to 128": (3, 3, 64, 128)}
SLOPES = (0.0, 0.25)  # He's PReLU starts with the second.
RATE, MOMENTUM = 0.005, 0.9
WIDTH_TANH, EXAMPLES, BINS = 500, 200, 61  # Units of the tanh net, digits that it sees, bars of a histogram.

FORMULA = """<math display="block"><mrow><msub><mi>W</mi><mtext>Glorot</mtext></msub><mo>∼</mo><mi>U</mi><mo>(</mo>
<mo>±</mo><msqrt><mfrac><mn>6</mn><mrow><mi>m</mi><mo>+</mo><mi>n</mi></mrow></mfrac></msqrt><mo>)</mo><mo>,</mo>
<mspace width="1em"/><msub><mi>W</mi><mtext>Kaiming</mtext></msub><mo>∼</mo><mi>N</mi><mo>(</mo><mn>0</mn><mo>,</mo>
<mfrac><mn>2</mn><mrow><mo>(</mo><mn>1</mn><mo>+</mo><msup><mi>a</mi><mn>2</mn></msup><mo>)</mo><mi>m</mi></mrow>
</mfrac><mo>)</mo></mrow></math>"""


def kaiming(slope: float):
    """N(0, 2 / ((1 + slope^2) fan_in)), for rectifiers of the slope `slope` below zero (He et al. 2015, eq. 15)."""

    def init(key, shape, dtype=jnp.float32):
        return normal(math.sqrt(2 / ((1 + slope**2) * fans(shape)[0])))(key, shape, dtype)

    return init


def standard(key, shape, dtype=jnp.float32):
    """U(+-1 / sqrt(fan_in)), the heuristic that was common before (Glorot & Bengio 2010, eq. 1)."""
    limit = 1 / math.sqrt(fans(shape)[0])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def draws() -> list[list]:
    """Rows of kernel, what, m, n, its value by the equation and that of a draw."""
    rows, key = [], jax.random.key(0)
    for name, shape in SHAPES.items():
        m, n = fans(shape)
        said, drawn = math.sqrt(6 / (m + n)), jnp.abs(glorot_uniform(key, shape)).max()
        rows.append([name, "Glorot, largest weight", m, n, f"{said:.5f}", f"{drawn:.5f}"])
        for slope in SLOPES:
            said, drawn = 2 / ((1 + slope**2) * m), kaiming(slope)(key, shape).var()
            rows.append([name, f"Kaiming, variance for a = {slope:g}", m, n, f"{said:.5f}", f"{drawn:.5f}"])
    return rows


def at_the_start(task, model: deep_nets.DeepMLP, digits: deep_nets.Digits, *, seed: int) -> dict:
    """Activations and gradients of a fresh net: by hidden layer the standard deviation, and a histogram [layers, BINS]
    between -limit and limit, for gradients in units of the last layer's standard deviation."""
    images, labels = deep_nets.some(digits, EXAMPLES)

    params = jax.jit(task.init)(jax.random.key(seed)).params
    activations = np.asarray(deep_nets.hidden_activations(params, images, model=model))
    gradients = np.asarray(deep_nets.hidden_gradients(params, images, labels, model=model))
    found = {}
    for name, values, limit in (("activations", activations, 1), ("gradients", gradients / gradients[-1].std(), 3)):
        histograms = [np.histogram(layer, BINS, (-limit, limit), density=True)[0].tolist() for layer in values]
        found[name] = {"std": values.std((1, 2)).tolist(), "limit": limit, "histograms": histograms}
    return found


def fit(task, model: deep_nets.DeepMLP, digits: deep_nets.Digits, *, steps: int, seed: int) -> dict:
    """The `curve` of a ReLU net's training, and its `signal` at the start: the root mean square of the last hidden
    layer's activations over the first one's."""
    params, (images, _) = jax.jit(task.init)(jax.random.key(seed)).params, deep_nets.some(digits, EXAMPLES)
    seen = deep_nets.hidden_activations(params, images, model=model)
    first, last = (float(np.sqrt(np.mean(np.square(layer)))) for layer in (seen[0], seen[-1]))
    curve = deep_nets.train(task, digits, steps=steps, seed=seed, every=max(1, steps // 16))
    return {"curve": curve, "signal": last / first}


def draw_histograms(found: dict, what: str, unit: str, title: str):
    """A column an initialisation, a row a hidden layer, the first one on top; of seed 0."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False, "axes.spines.left": False}):
        figure = figures.new_figure(height=5.7)
        panels = figure.subplots(len(found["glorot"][0][what]["std"]), 2, sharex=True)
        topic.headline(figure, title, 50)
        figure.supxlabel(unit, fontsize=11)
        for column, (name, colour) in enumerate((("standard", "eval"), ("glorot", "train"))):
            kept = found[name][0][what]
            edges = np.linspace(-kept["limit"], kept["limit"], BINS + 1)
            panels[0, column].set_title(f"{name.title()} weights", fontsize=11, fontweight="normal")
            for axes, heights, std in zip(panels[:, column], kept["histograms"], kept["std"], strict=True):
                axes.stairs(heights, edges, fill=True, color=figures.COLOURS[colour])
                axes.set(
                    xmargin=0,
                    xticks=np.linspace(edges[0] / 2, edges[-1] / 2, 3),
                    yticks=[],
                    ylim=(0, 1.45 * max(heights)),
                )
                label = f"layer {kept['std'].index(std) + 1}, std {std:.2f}"
                axes.text(0.5, 0.98, label, transform=axes.transAxes, va="top", ha="center", fontsize=10)
    return figure


def half_way(curve: list[dict]) -> float | None:
    """The step at which a curve, straight from one evaluation to the next, first has half of the digits right."""
    for before, after in itertools.pairwise(curve):
        if after["accuracy"] >= 0.5:
            rise = max(after["accuracy"] - before["accuracy"], 1e-9)
            return before["step"] + max(0.0, (0.5 - before["accuracy"]) / rise) * (after["step"] - before["step"])
    return None


def half_right(net: dict) -> str:
    """How soon a net has half of the digits right; where not all seeds have them, what it does instead."""
    half = net["steps_to_half"]
    return f"is half right after {half['mean']:.0f} steps" if half else deep_nets.verdict(net["accuracy"]["mean"])


def told(numbers: dict, checked: list[list], steps: int) -> topic.TopicResult:
    """The numbers in words."""
    ten = deep_nets.power_of_ten
    spread = {k: {n: v["mean"] for n, v in each["first_over_last"].items()} for k, each in numbers["tanh"].items()}
    activations, gradients = spread["activations"], spread["gradients"]
    text = [
        "The lecture: initial weights are to keep the size of signals and gradients from layer to layer; Glorot's are "
        "made for units that are nearly linear around zero, Kaiming's make up for what a rectifier drops.",
        f"In a fresh tanh net with the older U(±1/√m), layer 5's activations spread {ten(1 / activations['standard'])} "
        f"times as far as layer 1's, and layer 1's gradients {ten(gradients['standard'])} times as far as layer 5's; "
        f"with Glorot's weights it is {ten(1 / activations['glorot'])} and {ten(gradients['glorot'])}.",
    ]
    for depth, nets in numbers["relu"].items():
        size = {name: ten(net["signal"]["mean"]) for name, net in nets.items()}
        parts = []
        for name, net in nets.items():
            mean, std = (100 * net["accuracy"][key] for key in ("mean", "std"))
            parts.append(f"{name.title()} {half_right(net)} ({mean:.1f} ± {std:.1f} % at the end)")
        text.append(
            f"A ReLU net of {depth} layers, {steps} steps: {', '.join(parts)}; before training the last hidden "
            f"layer's signal is {size['glorot']} of the first one's with Glorot (√½ a layer gives "
            f"{ten(0.5 ** (int(depth) / 2 - 1))}) and {size['kaiming']} of it with Kaiming."
        )
    seen = " and ".join(f"{name.title()} {deep_nets.verdict(net['accuracy']['mean'])}" for name, net in nets.items())
    text.append(
        f"He et al. saw 30 layers stall with Glorot's variance and learn with Kaiming's; at {depth} here {seen}."
    )
    table = ("Draws against the equations", ["kernel", "what", "m", "n", "by the equation", "drawn"], checked)
    return topic.TopicResult("Initial weights", text, FORMULA, numbers, [table])


def experiment(this_topic: topic.Topic) -> topic.TopicResult:
    steps, depths = this_topic.options["steps"], this_topic.options["depths"].split(",")
    known = all(re.fullmatch("[0-9]{1,3}", depth) and 3 <= int(depth) <= 100 for depth in depths)
    flags.require(known, f"--depths={','.join(depths)}: accepted are whole numbers from 3 to 100, with commas")
    digits, checked = deep_nets.digits(), this_topic.cached("draws", draws)
    # --- A tanh net at the start: five hidden layers, as Glorot has.
    inits, fresh = {"standard": standard, "glorot": glorot_uniform}, {}
    tasks = deep_nets.tasks(6, WIDTH_TANH, ["tanh"], digits, optax.sgd(RATE), inits)
    for (_, name), task in tasks.items():
        look = functools.partial(at_the_start, task, deep_nets.DeepMLP(6, WIDTH_TANH, "tanh"), digits)
        fresh[name] = [
            this_topic.cached(f"tanh_{name}_seed{s}", functools.partial(look, seed=s)) for s in this_topic.seeds
        ]
    numbers: dict = {"tanh": {}, "relu": {}}
    for what, unit in (("activations", "activation"), ("gradients", "gradient ∂loss/∂s over layer 5's std")):
        stds = {name: np.array([seed[what]["std"] for seed in per]) for name, per in fresh.items()}
        ratio = {name: topic.mean_and_std(std[:, 0] / std[:, -1]) for name, std in stds.items()}
        means = {name: std.mean(0).tolist() for name, std in stds.items()}
        numbers["tanh"][what] = {"first_over_last": ratio, "std_by_layer": means}
        older, newer = (f"{ratio[name]['mean']:.2g}" for name in fresh)
        title = f"Spread of layer 1's {what} over layer 5's: {older} with standard weights, {newer} with Glorot's"
        caption = f"{what} of an untrained net of tanh(s), s = Wh + b, by layer, seed 0; standard weights: U(±1/√m)"
        this_topic.figure(what, draw_histograms(fresh, what, unit, title), title=what.capitalize(), caption=caption)

    # --- Deep ReLU nets, trained.
    for depth in map(int, depths):
        model = deep_nets.DeepMLP(depth, this_topic.options["width"], "relu")
        tasks = deep_nets.tasks(depth, model.width, ["relu"], digits, optax.sgd(RATE, MOMENTUM))
        nets, curves = numbers["relu"].setdefault(str(depth), {}), {}
        for (_, name), task in tasks.items():
            work = functools.partial(fit, task, model, digits, steps=steps)
            pieces = [
                this_topic.cached(f"relu{depth}_{name}_seed{s}", functools.partial(work, seed=s))
                for s in this_topic.seeds
            ]
            curves[name] = [piece["curve"] for piece in pieces]
            last = [curve[-1] for curve in curves[name]]
            half = [half_way(curve) for curve in curves[name]]
            nets[name] = {
                "accuracy": topic.mean_and_std([row["accuracy"] for row in last]),
                "loss": topic.mean_and_std([row["loss"] for row in last]),
                "steps_to_half": None if None in half else topic.mean_and_std(half),
                "signal": topic.mean_and_std([piece["signal"] for piece in pieces]),
            }
        title = f"{depth} layers: " + ", ".join(f"{name.title()} {half_right(net)}" for name, net in nets.items())
        lines = [(curves["glorot"], "Glorot", "eval"), (curves["kaiming"], "Kaiming", "train")]
        caption = f"dense layers of ReLU, SGD of rate {RATE:g} with momentum {MOMENTUM:g}; mean and range over seeds"
        this_topic.figure(
            f"layers{depth}", deep_nets.draw_accuracy(lines, title), title=f"{depth} layers", caption=caption
        )
    return told(numbers, checked, steps)


if __name__ == "__main__":
    topic.main("initialization", experiment, OPTIONS)
