"""Recurrent networks: digits read row by row, the adding problem, and gradient norms over time."""

import functools
from typing import Any

import matplotlib
import numpy as np

import models
from experiments.lecture import topic
from experiments.lecture.deep_nets import power_of_ten, tick
from experiments.lecture.zoo import adding, digits
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures

LENGTHS = (30, 60)  # Lengths of the adding problem's sequences.
TITLES = {"rnn": "Recurrent network", "lstm": "Long short-term memory", "gru": "Gated recurrent unit"}


def run(
    seed: int, *, cell: str, digit_steps: int = 900, adding_steps: int = 1200, units: int = 64, lengths=LENGTHS
) -> dict[str, Any]:
    """The results of the cell and its baseline: the plain RNN for gated cells, a perceptron on digits for the RNN."""

    def accuracy(name: str, **options) -> float:
        return digits.learn(
            models.create(name, 10, **options), seed=seed, steps=digit_steps, rate=0.005, augmented=True
        ).accuracy

    def learn(name: str) -> dict[str, Any]:
        learned = [adding.learn(name, length, seed=seed, steps=adding_steps) for length in lengths]
        return {"accuracy": accuracy(name, hidden=(units,)), "adding": learned}

    other = {"accuracy": accuracy("perceptron")} if cell == "rnn" else learn("rnn")
    return {"cell": cell, "lengths": list(lengths), "own": learn(cell), "other": other}


def _numbers(results: list[dict], whose: str) -> dict[str, Any]:
    """The digit accuracy and, if the network was trained on the adding problem, its accuracy there and log10 of the
    ratio between the gradient norms with respect to the first and the last state."""
    found = {"test_accuracy": topic.mean_and_std([result[whose]["accuracy"] for result in results])}
    for i, length in enumerate(results[0]["lengths"]) if "adding" in results[0][whose] else ():
        each = [result[whose]["adding"][i] for result in results]
        found[f"adding_{length}_right"] = topic.mean_and_std([one["right"] for one in each])
        found[f"adding_{length}_squared_error"] = topic.mean_and_std([one["loss"] for one in each])
        for when, name in (("before", "untrained"), ("after", "trained")):
            logs = np.log10(np.maximum([one[when][0] for one in each], 1e-300))
            found[f"adding_{length}_log10_gradient_{name}"] = topic.mean_and_std(logs)
    return found


def verdict(right: float, guess: float) -> str:
    """Describes an accuracy on the adding problem; always guessing 0.5 has the accuracy `guess`."""
    if right >= 0.9:
        return "solves"
    return "fails on" if right < 2 * guess else "partly solves"


def draw(results: list[dict], title: str):
    """Plots accuracy on the adding problem by training step for each length, and the gradient norm by step of the
    longest sequences."""
    cell, lengths = results[0]["cell"], results[0]["lengths"]
    nets = [("own", cell.upper(), "train")] + ([("other", "RNN", "eval")] if cell != "rnn" else [])
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.6)
        grid = figure.add_gridspec(2, len(lengths))
        topic.headline(figure, title, 50)
        for i, length in enumerate(lengths):
            axes = figure.add_subplot(grid[0, i])
            for whose, label, colour in nets:
                curves = np.array([result[whose]["adding"][i]["curve"] for result in results])
                topic.draw_spread(axes, curves[0, :, 0], 100 * curves[:, :, 1], colour)
                axes.lines[-1].set_label(label)
            guess = np.mean([result["own"]["adding"][i]["guess"] for result in results])
            steps = int(curves[0, -1, 0])
            axes.axhline(100 * guess, color=figures.COLOURS["test"], linestyle=":", label="guess 0.5")
            axes.set(ylim=(0, 102), xlim=(0, steps), xticks=(0, steps // 2, steps), xlabel="training step")
            axes.set_title(f"{length} steps", fontweight="normal", fontsize=11)
            if i == 0:
                axes.set_ylabel("accuracy, %")
                axes.legend(frameon=False, fontsize=9, loc="center right")
        axes = figure.add_subplot(grid[1, :])
        for whose, label, colour in nets:
            for when, style in (("before", ":"), ("after", "-")):
                norms = np.array([result[whose]["adding"][-1][when] for result in results])
                mean = np.exp(np.log(np.maximum(norms, 1e-30)).mean(0))
                text = f"{label}, {'untrained' if when == 'before' else 'trained'}"
                axes.plot(np.arange(1, lengths[-1] + 1), mean, style, color=figures.COLOURS[colour], label=text)
        axes.set(yscale="log", xlim=(1, lengths[-1]), xlabel=f"step of the sequence of {lengths[-1]}")
        axes.set_ylabel("gradient norm, last step = 1")
        axes.yaxis.set_major_formatter(tick)
        axes.legend(frameon=False, fontsize=9)
    return figure


def report(results: list[dict]) -> Findings:
    cell, lengths = results[0]["cell"], results[0]["lengths"]
    numbers, baseline = _numbers(results, "own"), {}
    guesses = [np.mean([result["own"]["adding"][i]["guess"] for result in results]) for i in range(len(lengths))]
    own, other = (numbers["test_accuracy"], _numbers(results, "other"))
    name, versus = cell.upper(), "a perceptron on all pixels" if cell == "rnn" else "the plain RNN"
    baseline = dict(other)
    if cell == "rnn":
        baseline |= {f"adding_{n}_right": float(guess) for n, guess in zip(lengths, guesses, strict=True)}
    said, held = [], True
    for length, guess in zip(lengths, guesses, strict=True):
        right = numbers[f"adding_{length}_right"]["mean"]
        word = verdict(right, guess)
        line = f"{word} sequences of {length} steps (accuracy {100 * right:.0f} %; guessing 0.5: {100 * guess:.0f} %"
        if cell == "rnn":
            held &= word == "fails on"
        else:
            plain = baseline[f"adding_{length}_right"]["mean"]
            line += f"; plain RNN: {100 * plain:.0f} %"
            held &= word == "solves" and verdict(plain, guess) == "fails on"
        said.append(f"{line})")
    first = {
        name: 10 ** numbers[f"adding_{lengths[-1]}_log10_gradient_{name}"]["mean"] for name in ("untrained", "trained")
    }
    claim = {
        "rnn": "that plain recurrent networks forget inputs from many steps ago",
        "lstm": "that the memory cell bridges time lags at which the plain network fails",
        "gru": "that two gates without a separate memory cell are enough to bridge such time lags",
    }[cell]
    text = (
        f"Reading digits row by row, the {name} has a test accuracy of {100 * own['mean']:.1f} %, "
        f"compared with {100 * other['test_accuracy']['mean']:.1f} % for {versus}. In the adding problem it "
        f"{' and '.join(said)}; "
        f"the gradient norm at the first of {lengths[-1]} steps is {power_of_ten(first['trained'])} times that at the "
        f"last after training and {power_of_ten(first['untrained'])} times before. "
        f"The claim {claim} was {'' if held else 'not '}confirmed."
    )
    accuracies = [numbers[f"adding_{length}_right"]["mean"] for length in lengths]
    shown = " and ".join(
        f"{100 * right:.0f} % for {length} steps" for right, length in zip(accuracies, lengths, strict=True)
    )
    figure = draw(results, f"Adding problem: accuracy of the {name} {shown}")
    caption = (
        "Above: accuracy (error below 0.04) on test sequences of the adding problem, whose second half is noise. "
        "Below: the norm of the loss gradient with respect to the network's state, by step of the sequence."
    )
    if cell != "rnn":
        caption += f" The gate that keeps the state starts nearly open, with a bias of {adding.KEEP_BIAS:g}."
    versus = "perceptron; guessing 0.5" if cell == "rnn" else "plain RNN"
    return Findings(text, numbers, baseline, figure, caption, versus)


RNN_FORMULA = r"h_t = \tanh(W x_t + U h_{t-1} + b)"
LSTM_FORMULA = (
    r"\begin{array}{l} i, f, o = \sigma(W x_t + U h_{t-1} + b) \\ "
    r"c_t = f \odot c_{t-1} + i \odot \tanh(W_g x_t + U_g h_{t-1} + b_g) \\ h_t = o \odot \tanh(c_t) \end{array}"
)
GRU_FORMULA = (
    r"\begin{array}{l} r, z = \sigma(W x_t + U h_{t-1} + b) \\ "
    r"h_t = z \odot h_{t-1} + (1 - z) \odot \tanh(W_c x_t + U_c (r \odot h_{t-1}) + b_c) \end{array}"
)
RULE = (
    "Backpropagation through time: the network is unrolled into one layer per step, all with the same weights, and the "
    "gradients of the steps are summed; Adam with gradients clipped to norm 1."
)


def _card(cell: str, kind: str, idea: str, formula: str, reference: str, command: str = "") -> Card:
    diagram = Diagram((Layer("input", 3), Layer(kind, 4), Layer(kind, 4), Layer("output", 3)))
    title, work = f"{TITLES[cell]} ({cell.upper()})", functools.partial(run, cell=cell)
    return Card(cell, title, diagram, idea, formula, RULE, reference, work, report, command)


CARDS = (
    _card(
        "rnn",
        "recurrent",
        "A network reads a sequence step by step: its hidden units receive the new input and their own values of the "
        "previous step. Long-term dependencies are hard to learn, because the gradient vanishes or explodes over time.",
        RNN_FORMULA,
        "Elman 1990, Finding structure in time",
    ),
    _card(
        "lstm",
        "memory",
        "Each unit has a memory cell with additive updates, and three gates that learn when to write, erase and output "
        "it. While the forget gate is open, the gradient passes each step nearly unchanged.",
        LSTM_FORMULA,
        "Hochreiter and Schmidhuber 1997, Long short-term memory; Gers, Schmidhuber and Cummins 2000, Learning to "
        "forget: continual prediction with LSTM",
        "python -m experiments.classify --flagfile=experiments/recipes/lstm.flags --workdir=NEW",
    ),
    _card(
        "gru",
        "gated",
        "A simpler gated unit: one gate controls how much of the old state is kept, another how much of it enters the "
        "new candidate state. It has no separate memory cell and three quarters of the weights of an LSTM.",
        GRU_FORMULA,
        "Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio 2014, Learning phrase representations "
        "using RNN encoder-decoder for statistical machine translation",
    ),
)
