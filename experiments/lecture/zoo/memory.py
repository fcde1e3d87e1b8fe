"""The neural Turing machine on the copy task, compared with an LSTM with a similar number of weights.

The input is a sequence of random bit vectors and an end marker; then the network has to output the sequence from memory
(Graves, Wayne & Danihelka 2014, "Neural Turing machines", section 4.1). Networks are trained on sequences of 1 to
LONGEST vectors and tested on sequences of LONGEST and 2 LONGEST vectors.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.digits import percent
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from models.memory import LSTM, NeuralTuringMachine
from train import optimizers
from train.state import parameter_count
from train.tasks import gradient_descent

BITS, LONGEST = 6, 8  # Bits per vector; maximum number of vectors in a training sequence.
BATCH_SIZE, RATE, CLIP = 16, 0.003, 10.0  # With a learning rate of 0.006 one of three seeds does not learn.
TESTS = 200  # Test sequences per length.
COPIED = 0.2  # With fewer wrong bits than this fraction, a network counts as copying; guessing has half of them wrong.
EVERY = 100  # Steps compiled as one loop; each point of the curves is a mean over them.


class Sequences(NamedTuple):
    """Sequences of the copy task.

    Attributes:
      inputs: [B, T, BITS + 1], the bits of each vector; the last channel is 1 at the end marker.
      targets: [B, T, BITS], the bits to output.
      mask: [B, T], 1.0 at the steps with targets.
    """

    inputs: jax.Array
    targets: jax.Array
    mask: jax.Array


@functools.partial(jax.jit, static_argnames=("count", "longest", "shortest", "bits"))
def sequences(key, *, count: int, longest: int, shortest: int | None = None, bits: int = BITS) -> Sequences:
    """Random sequences of `shortest` (default: `longest`) to `longest` vectors; T = 2 longest + 1."""
    length_key, bit_key = jax.random.split(key)
    lengths = jax.random.randint(length_key, (count, 1), longest if shortest is None else shortest, longest + 1)
    vectors = jax.random.bernoulli(bit_key, 0.5, (count, longest, bits)).astype(jnp.float32)
    times = jnp.arange(2 * longest + 1)[None]
    late = times - lengths - 1  # The index of the target vector.
    mask = ((late >= 0) & (late < lengths)).astype(jnp.float32)
    early = (times < lengths).astype(jnp.float32)[:, :, None]
    padded = jnp.pad(vectors, ((0, 0), (0, longest + 1), (0, 0)))
    inputs = jnp.concatenate([padded * early, (times == lengths).astype(jnp.float32)[:, :, None]], -1)
    targets = jnp.take_along_axis(vectors, jnp.clip(late, 0, longest - 1)[:, :, None], axis=1) * mask[:, :, None]
    return Sequences(inputs, targets, mask)


def autodiff(params, batch_stats, batch: Sequences, key, *, model):
    """Returns ((loss, (batch_stats, sums)), gradients) for the mean cross-entropy of the target bits, in nats."""
    del key

    def loss_fn(params):
        logits = model.apply({"params": params}, batch.inputs)
        weight = jnp.broadcast_to(batch.mask[:, :, None], logits.shape)
        loss = (optax.sigmoid_binary_cross_entropy(logits, batch.targets) * weight).sum()
        wrong = (((logits > 0) != (batch.targets > 0.5)) * weight).sum()
        sums = {"loss": loss, "wrong": wrong, "count": weight.sum()}
        return loss / weight.sum(), (batch_stats, sums)

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def train(model, *, steps: int, seed: int, longest: int) -> tuple[Any, list[float]]:
    """Returns the parameters after `steps` steps and the fraction of wrong training bits, one value per EVERY steps."""
    rate = optimizers.schedule("cosine", learning_rate=RATE, steps=steps)
    adam = optimizers.create("adam", rate, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=CLIP)
    shape = (2 * longest + 1, BITS + 1)
    init = jax.jit(functools.partial(gradient_descent.init, model=model, optimizer=adam, image_shape=shape))
    state = init(jax.random.key(seed))
    grad_fn = functools.partial(autodiff, model=model)

    def step(state, _):
        batch = sequences(jax.random.fold_in(state.key, state.step), count=BATCH_SIZE, longest=longest, shortest=1)
        return gradient_descent.train_step(state, batch, optimizer=adam, grad_fn=grad_fn)

    loop, curve = jax.jit(lambda state: jax.lax.scan(step, state, length=EVERY)), []
    for _ in range(steps // EVERY):
        state, sums = loop(state)
        curve.append(float(sums["wrong"].sum() / sums["count"].sum()))
        if not np.isfinite(float(sums["loss"].sum())):
            raise FloatingPointError(f"the loss is not finite after {int(state.step)} steps")
    return state.params, curve


def networks(longest: int) -> dict[str, Any]:
    """The two networks by name, with similar numbers of weights."""
    rows = 3 * longest  # Enough for sequences of twice the length.
    return {"machine": NeuralTuringMachine(BITS, 32, rows, 10), "lstm": LSTM(BITS, 41)}


def wrong_bits(logits, batch: Sequences) -> np.ndarray:
    """The number of wrong bits [B] of each sequence."""
    wrong = (np.asarray(logits) > 0) != (np.asarray(batch.targets) > 0.5)
    return (wrong * np.asarray(batch.mask)[:, :, None]).sum((1, 2))


def run(seed: int, *, steps: int = 4000, longest: int = LONGEST, tests: int = TESTS) -> dict[str, Any]:
    net: dict[str, Any]
    found: dict[str, Any] = {"steps": steps, "longest": longest}
    for name, model in networks(longest).items():
        params, curve = train(model, steps=steps, seed=seed, longest=longest)
        apply, net = jax.jit(model.apply), {"curve": [round(share, 5) for share in curve]}
        for length in (longest, 2 * longest):
            # This key differs from those of all training steps.
            batch = sequences(jax.random.fold_in(jax.random.key(seed), 2**31 + length), count=tests, longest=length)
            logits = apply({"params": params}, batch.inputs)
            net[f"length_{length}"] = float(wrong_bits(logits, batch).mean())
        one = slice(0, 1)  # The sequence in the figure, of length 2 longest.
        output = np.asarray(jax.nn.sigmoid(logits[one]) * batch.mask[one, :, None], np.float64)[0]
        found[name] = {**net, "weights": parameter_count(params), "output": output.round(3).tolist()}
        if name == "machine":
            with_weightings = jax.jit(functools.partial(model.apply, method="with_weightings"))
            _, reads, writes = with_weightings({"params": params}, batch.inputs[one])
            found["reads"], found["writes"] = (np.asarray(x, np.float64)[0].round(3).tolist() for x in (reads, writes))
            found["input"] = np.asarray(batch.inputs)[0].astype(int).tolist()
    return found


def draw(found: dict[str, Any]):
    """Plots one of the longest sequences: input, outputs of both networks, and the machine's head weightings."""
    panels = (
        ("input", np.array(found["input"]).T, 1),
        ("output of the Turing machine", np.array(found["machine"]["output"]).T, 1),
        ("output of the LSTM", np.array(found["lstm"]["output"]).T, 1),
        ("write weighting over memory rows", np.array(found["writes"]).T, 2.4),
        ("read weighting over memory rows", np.array(found["reads"]).T, 2.4),
    )
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        figure = figures.new_figure(height=6.4)
        rows = figure.subplots(len(panels), 1, sharex=True, height_ratios=[height for *_, height in panels])
        for axes, (title, values, _) in zip(rows, panels, strict=True):
            axes.imshow(values, "Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_title(title, fontsize=11, fontweight="normal")
            axes.set_yticks([])
            axes.axvline(2 * found["longest"], color=figures.COLOURS["eval"], linewidth=1)
        rows[-1].set_xlabel("step; the line is the end marker")
    return figure


def report(results: list[dict[str, Any]]) -> Findings:
    longest, names = results[0]["longest"], ("machine", "lstm")
    lengths = (longest, 2 * longest)
    wrong = {
        name: {n: topic.mean_and_std([result[name][f"length_{n}"] for result in results]) for n in lengths}
        for name in names
    }
    share = {name: {n: wrong[name][n]["mean"] / (n * BITS) for n in lengths} for name in names}
    numbers, baseline = (
        {f"wrong_bits_of_{n * BITS}": wrong[name][n] for n in lengths} | {"weights": results[0][name]["weights"]}
        for name in names
    )
    short, long = share["machine"].values()
    if short >= 0.01:
        verdict = "The machine did not learn to copy in this run."
    elif long >= share["lstm"][2 * longest] / 2:
        verdict = "The memory gives no advantage on the longer sequences here."
    elif long >= COPIED:
        verdict = "On longer sequences the machine makes fewer errors than the LSTM, but it does not copy them."
    else:
        verdict = (
            f"The machine generalizes to longer sequences{', with some errors' if long >= 0.01 else ''}; the LSTM "
        )
        verdict += "does not." if share["lstm"][2 * longest] >= COPIED else "makes more errors."
    said = {name: {n: percent(share[name][n]) for n in lengths} for name in names}
    text = (
        f"After {results[0]['steps']} training steps on sequences of 1 to {longest} vectors, the neural Turing machine "
        f"outputs {said['machine'][longest]} wrong bits on sequences of {longest} vectors and "
        f"{said['machine'][2 * longest]} on sequences of {2 * longest}; an LSTM with a similar number of weights "
        f"outputs {said['lstm'][longest]} and {said['lstm'][2 * longest]}. {verdict}"
    )
    caption = f"a sequence of {2 * longest} vectors, twice the longest in training; first seed"
    return Findings(text, numbers, baseline, draw(results[0]), caption, "LSTM")


NEURAL_TURING = Card(
    name="neural_turing",
    title="Neural Turing machine (NTM)",
    diagram=Diagram(
        (Layer("input", 3), Layer("hidden", 3), Layer("memory", 4), Layer("hidden", 3), Layer("output", 3))
    ),
    idea="A small network, the controller, reads and writes a memory through heads, which access all rows at once with "
    "different weights. All operations are differentiable, so it can learn algorithms such as copying.",
    formula=(
        r"\begin{array}{l} r_t = \sum_i w_t(i) M_t(i) \\ "
        r"M_t(i) = M_{t-1}(i) (1 - w_t(i) e_t) + w_t(i) a_t \end{array}"
    ),
    rule="Backpropagation through time, including heads and memory, with Adam and gradient clipping.",
    reference="Alex Graves, Greg Wayne and Ivo Danihelka, 2014, “Neural Turing machines”",
    run=run,
    report=report,
)

CARDS = (NEURAL_TURING,)
