"""Random recurrent networks with a linear readout: an echo state network predicts NARMA-10, and a spiking liquid state
machine reads digits row by row."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings, rounded
from experiments.lecture.zoo.digits import TEST_NOISE
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.lecture.zoo.flat_digits import accuracy, flat_digits, one_hot
from experiments.reporting import figures
from models import reservoir
from train.tasks import least_squares

RADII = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5)
UNITS, WASHOUT, TRAIN, VALIDATION, TEST = 200, 200, 2000, 1000, 2000  # Units; steps of the parts of the sequence.
ECHO_PENALTY = 1e-6
DELAYS = 20  # Number of inputs of the linear baseline: the current one and the previous ones.
SHOWN = 80  # Steps in the figure.

LIQUID_SHAPE, STEPS_PER_ROW = (5, 5, 10), 3
READ = (7, 14, 21, 28)  # The traces are read after these rows.
PENALTY = 100.0  # Tuned on training digits, the same for each readout.
CHUNK = 250  # Digits that are simulated in parallel.
RASTER = 120  # Neurons in the figure.


def narma10(random: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs u [steps] from U(0, 0.5) and NARMA-10 (Atiya & Parlos 2000): y(t + 1) = 0.3 y(t) + 0.05 y(t) (y(t) + ... +
    y(t - 9)) + 1.5 u(t - 9) u(t) + 0.1, returned as the targets y(t + 1) [steps]. Sequences that diverge are drawn
    again."""
    while True:
        u, y = random.uniform(0, 0.5, steps), np.zeros(steps + 1)
        for t in range(9, steps):
            y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * y[t - 9 : t + 1].sum() + 1.5 * u[t - 9] * u[t] + 0.1
            if y[t + 1] > 2:
                break
        else:
            return u, y[1:]


def nrmse(predicted, target) -> float:
    """The root mean square error divided by the target's standard deviation; 1 for predicting the mean."""
    return float(np.sqrt(np.mean(np.square(np.asarray(predicted, np.float64) - target))) / np.std(target))


def run_echo_state(seed: int, radii=RADII, units: int = UNITS, train: int = TRAIN, test: int = TEST) -> dict[str, Any]:
    ends = np.cumsum([WASHOUT, train, VALIDATION, test])
    random = np.random.default_rng(seed)
    u, y = narma10(random, int(ends[-1]))
    inputs = (4 * u - 1)[:, None].astype(np.float32)
    network = reservoir.random_echo_state(random, 1, units)
    spans = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def states(radius, start):
        return reservoir.echo_states(network, inputs, radius, start)

    def scores(features) -> tuple[list[float], np.ndarray]:
        """The training, validation and test errors, and the test predictions."""
        rows = least_squares.with_constant(features)
        weights = least_squares.fit(rows[spans[0]], y[spans[0], None], ECHO_PENALTY)
        predicted = [(rows[span] @ weights)[:, 0] for span in spans]
        return [nrmse(part, y[span]) for part, span in zip(predicted, spans, strict=True)], predicted[-1]

    runs = np.asarray(states(np.asarray(radii), np.zeros(units)))
    started = random.uniform(-1, 1, units)
    differences = np.asarray(states(np.asarray(radii), started))[:, WASHOUT - 1] - runs[:, WASHOUT - 1]
    apart = np.linalg.norm(differences, axis=-1) / np.linalg.norm(started)
    found = [scores(np.concatenate([features, inputs], 1)) for features in runs]
    validation = [errors[1] for errors, _ in found]
    best = int(np.argmin(validation))
    # np.roll wraps inputs around only into steps of the washout.
    delayed = np.stack([np.roll(inputs[:, 0], delay) for delay in range(DELAYS)], -1)
    return {
        "radii": list(radii),
        "train": [errors[0] for errors, _ in found],
        "validation": validation,
        "test": [errors[2] for errors, _ in found],
        "apart": apart.tolist(),
        "best": best,
        "delays": scores(delayed)[0][2],
        "target": rounded(y[spans[-1]][:SHOWN]),
        "predicted": rounded(found[best][1][:SHOWN]),
    }


FORGOTTEN = 1e-3  # Remaining fraction of the distance between two initial states after WASHOUT steps.


def report_echo_state(results: list[dict[str, Any]]) -> Findings:
    radii = results[0]["radii"]
    test = np.array([result["test"] for result in results])
    apart = np.array([result["apart"] for result in results]).max(0)
    best = topic.mean_and_std([result["test"][result["best"]] for result in results])
    chosen = topic.mean_and_std([radii[result["best"]] for result in results])
    delays = topic.mean_and_std([result["delays"] for result in results])
    mean = test.mean(0)
    ratio = mean[[0, -1]] / best["mean"]
    edges = f"{ratio[0]:.1f} times as large at {radii[0]:g} and {ratio[1]:.1f} times at {radii[-1]:g}"
    forgetting = [radius for radius, left in zip(radii, apart, strict=True) if left < FORGOTTEN]
    memory = (
        f"The network forgets its initial state within {WASHOUT} steps for radii up to {max(forgetting):g}"
        if forgetting
        else f"The network does not forget its initial state within {WASHOUT} steps for any of the radii"
    )
    beyond = [radius for radius in forgetting if radius > 1]
    memory += (
        ": even above 1, where the network without inputs and biases would not forget it."
        if beyond
        else ", but for no radius above 1."
        if forgetting
        else "."
    )
    compared = "below" if best["mean"] < delays["mean"] else "not below"
    text = (
        f"At the spectral radius chosen on validation data, {chosen['mean']:.2f}, the error on NARMA-10, a "
        "nonlinear function of the last ten inputs and outputs, is "
        f"{best['mean']:.2f} standard deviations of the target, {compared} the {delays['mean']:.2f} of a linear "
        f"function of the last {DELAYS} inputs. The error is {edges}. {memory}"
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.4)
        above, middle, below = figure.subplots(3, 1, height_ratios=(2, 1.2, 1.6))
        topic.draw_spread(above, radii, test, "test")
        above.axhline(delays["mean"], color=figures.COLOURS["eval"], linestyle="--")
        above.annotate(
            f"linear in {DELAYS} inputs",
            (radii[-1], delays["mean"]),
            (-2, -12),
            ha="right",
            textcoords="offset points",
            fontsize=9,
            color=figures.COLOURS["eval"],
        )
        above.set(ylabel="test error", ylim=(0, None), xlim=(radii[0], radii[-1]))
        above.set_title("NARMA-10 error by spectral radius", fontsize=11)
        middle.plot(radii, np.maximum(apart, 1e-8), color=figures.COLOURS["train"])
        middle.set_yscale("log")
        middle.set_ylim(1e-9, 10)
        middle.set_yticks([1e-8, 1e-4, 1], ["10⁻⁸", "10⁻⁴", "1"])
        middle.minorticks_off()
        middle.set(xlabel="spectral radius", ylabel="distance", xlim=(radii[0], radii[-1]))
        below.plot(results[0]["target"], color="#666666", label="NARMA-10")
        below.plot(results[0]["predicted"], color=figures.COLOURS["test"], linestyle="--", label="network")
        below.set(xlabel="step of the test", xlim=(0, len(results[0]["target"]) - 1))
        below.set_ylim(top=max(results[0]["target"]) + 0.25)
        below.legend(loc="upper right", fontsize=9, ncols=2)
    numbers = {
        "test_error": best,
        "spectral_radius": chosen,
        f"test_error_at_radius_{radii[0]:g}": topic.mean_and_std(test[:, 0]),
        f"test_error_at_radius_{radii[-1]:g}": topic.mean_and_std(test[:, -1]),
        "largest_radius_that_forgets": max(forgetting, default=0.0),
    }
    baseline = {"test_error": delays, "test_error_of_the_mean": 1.0}
    caption = (
        "Top: error in units of the target's standard deviation. Middle: remaining fraction of the distance between "
        f"two initial states after {WASHOUT} steps. Bottom: a part of the test sequence."
    )
    return Findings(text, numbers, baseline, figure, caption, f"linear in {DELAYS} inputs")


@functools.partial(jax.jit, static_argnames="steps")
def _simulate(liquid, pixels_B, steps):
    """The neurons' traces after each row, [28, B, N], and their spikes [T, B, N]."""
    rows = jnp.repeat(pixels_B.reshape(-1, 28, 28).transpose(1, 0, 2), steps, axis=0)
    spikes, traces = reservoir.liquid_states(liquid, rows)
    return traces[steps - 1 :: steps], spikes


def traces(liquid, pixels, steps: int) -> tuple[np.ndarray, float]:
    """Features [B, len(READ) * N] of digits [B, 784], and the mean number of spikes per neuron and step."""
    found, spikes = [], []
    chunk = min(CHUNK, len(pixels))
    for start in range(0, len(pixels), chunk):
        part = pixels[start : start + chunk]
        padded = np.pad(part, ((0, chunk - len(part)), (0, 0)))
        after, fired = _simulate(liquid, padded, steps)
        picked = np.asarray(after[np.array(READ) - 1])[:, : len(part)]
        found.append(picked.transpose(1, 0, 2).reshape(len(part), -1))
        spikes.append(float(fired[:, : len(part)].mean()))
    return np.concatenate(found), float(np.mean(spikes))


def row_traces(pixels, steps: int) -> np.ndarray:
    """The traces of neurons whose spikes are the input rows themselves: features [B, len(READ) * 28]."""
    decay = np.exp(-steps / reservoir.TIMES.trace)
    rows, level, found = pixels.reshape(-1, 28, 28), np.zeros((len(pixels), 28), np.float32), []
    for row in range(28):
        level = decay * level + rows[:, row]
        if row + 1 in READ:
            found.append(level)
    return np.concatenate(found, 1).astype(np.float32)


def run_liquid_state(
    seed: int, shape=LIQUID_SHAPE, examples: int | None = None, steps: int = STEPS_PER_ROW
) -> dict[str, Any]:
    digits = flat_digits(examples)
    liquid = reservoir.random_liquid(np.random.default_rng(seed), 28, shape)

    def score(train, test) -> float:
        train, test = (least_squares.with_constant(x) for x in (train, test))
        return accuracy(test @ least_squares.fit(train, one_hot(digits.train_labels), PENALTY), digits.test_labels)

    found, rates = {}, {}
    for name, network in (("liquid", liquid), ("unconnected", liquid._replace(recurrent=0 * liquid.recurrent))):
        (train, rates[name]), (test, _) = (traces(network, pixels, steps) for pixels in (digits.train, digits.test))
        found[name] = score(train, test)
    example = int(np.flatnonzero(digits.test_labels == 3)[0])
    _, spikes = _simulate(liquid, digits.test[example : example + 1], steps)
    shown = np.argwhere(np.asarray(spikes)[:, 0, :RASTER])
    return {
        "neurons": int(np.prod(shape)),
        "steps": steps,
        **found,
        "pixels": score(digits.train, digits.test),
        "row_traces": score(row_traces(digits.train, steps), row_traces(digits.test, steps)),
        "spikes_per_step": rates["liquid"],
        "raster": shown.tolist(),
        "image": np.round(255 * digits.test[example]).astype(int).tolist(),
    }


def report_liquid_state(results: list[dict[str, Any]]) -> Findings:
    names = {
        "liquid": ("spiking liquid", "train"),
        "unconnected": ("without recurrent synapses", "train"),
        "pixels": ("input rows (all pixels)", "eval"),
        "row_traces": ("traces of the input rows", "eval"),
    }
    scores = {name: topic.mean_and_std([result[name] for result in results]) for name in names}
    mean = {name: 100 * score["mean"] for name, score in scores.items()}
    text = (
        f"The readout of {results[0]['neurons']} spiking neurons has a test accuracy of {mean['liquid']:.1f} %, "
        f"{'more' if mean['liquid'] > mean['pixels'] else 'not more'} than the {mean['pixels']:.1f} % of the same "
        f"readout of the input rows. Without the recurrent synapses it is {mean['unconnected']:.1f} %: "
    )
    gains = topic.mean_and_std([100 * (result["liquid"] - result["unconnected"]) for result in results])
    noise = max(100 * TEST_NOISE, 2 * gains["std"]) / len(results) ** 0.5
    text += (
        "the connections between the neurons help."
        if gains["mean"] > noise
        else "the connections between the neurons even hurt."
        if gains["mean"] < -noise
        else "a benefit of the connections was not confirmed, because the difference is within the random variation."
    )
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.2)
        raster, bars = figure.subplots(2, 1, height_ratios=(2, 1))
        steps = results[0]["steps"]
        image = np.array(results[0]["image"]).reshape(28, 28)
        spikes = np.array(results[0]["raster"]).reshape(-1, 2)
        top = RASTER + 42
        raster.imshow(image.T, cmap="gray_r", extent=(0, 28 * steps, top, RASTER + 4), aspect="auto")
        raster.scatter(spikes[:, 0] + 0.5, spikes[:, 1], s=7, color=figures.COLOURS["train"], marker="|")
        raster.set(xlim=(0, 28 * steps), ylim=(-2, top), xlabel="step", ylabel="neuron", yticks=[0, 40, 80, 120])
        raster.set_title("A 3, presented row by row, and the spikes", fontsize=11)
        raster.grid(False)
        for place, (name, (label, part)) in enumerate(names.items()):
            bars.barh(place, mean[name], color=figures.COLOURS[part])
            bars.text(1, place, f"{label}: {mean[name]:.1f} %", va="center", color="white", fontsize=10)
        bars.set(xlim=(0, 100), yticks=[], xlabel="test accuracy, %")
        bars.invert_yaxis()
        bars.grid(False)
    numbers = {
        "test_accuracy": scores["liquid"],
        "test_accuracy_without_recurrent_synapses": scores["unconnected"],
        "neurons": results[0]["neurons"],
        "spikes_per_neuron_and_step": topic.mean_and_std([result["spikes_per_step"] for result in results]),
    }
    baseline = {"test_accuracy": scores["pixels"], "test_accuracy_linear_in_row_traces": scores["row_traces"]}
    caption = (
        "Above: a test digit as input of the liquid, and spikes. Below: test accuracy of the same linear readout of "
        "different features."
    )
    return Findings(text, numbers, baseline, figure, caption, "linear in the input rows")


ECHO_FORMULA = r"x(t) = \tanh(\rho W x(t - 1) + W_{\text{in}} u(t) + b)"
LIQUID_FORMULA = (
    r"\begin{array}{l} v(t) = e^{-1/\tau} v(t - 1) + W_{\text{in}} u(t) + W s(t) \\ "
    r"s(t) = e^{-1/\tau_s} s(t - 1) + o(t - 1) \\ "
    r"o_i(t) = 1 \text{ (a spike) and } v_i(t) \leftarrow 0 \text{ where } v_i(t) \ge 1 \text{, else } 0 \end{array}"
)

CARDS = (
    Card(
        name="liquid_state",
        title="Liquid state machine (LSM)",
        diagram=Diagram((Layer("input", 3), Layer("spiking", 9), Layer("output", 3)), form="scattered"),
        idea="Inputs drive randomly connected spiking neurons, whose activity depends on the current and on recent "
        "inputs. Only a linear readout of this activity is trained.",
        formula=LIQUID_FORMULA,
        rule="All synapses are random and fixed; ridge regression fits the readout of the neurons' spike traces.",
        reference="Maass, Natschläger & Markram, 2002, “Real-time computing without stable states”",
        run=run_liquid_state,
        report=report_liquid_state,
    ),
    Card(
        name="echo_state",
        title="Echo state network (ESN)",
        diagram=Diagram((Layer("input", 3), Layer("recurrent", 9), Layer("output", 3)), form="scattered"),
        idea="The state of a random recurrent network depends on past inputs, with decreasing influence of older ones, "
        "and only a linear readout is trained. The spectral radius ρ determines how slowly the memory fades.",
        formula=ECHO_FORMULA,
        rule="The recurrent and input weights are random and fixed; ridge regression fits the readout.",
        reference="Jaeger, 2001, “The ‘echo state’ approach to analysing and training recurrent neural networks”",
        run=run_echo_state,
        report=report_echo_state,
    ),
)
