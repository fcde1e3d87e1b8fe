"""A Markov chain over characters, trained on a book in the public domain (text.txt)."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.lecture import topic
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from models import markov_chain
from train.tasks import markov_chain as counting

SYMBOLS = " abcdefghijklmnopqrstuvwxyz.,;:!?'-"
ORDERS = (0, 1, 2, 3)
STRENGTH = 3.0  # Smoothing strength, as pseudo-observations per context.


def book() -> str:
    """The text in lower case without the lines that name its source. Characters not in SYMBOLS become spaces, and
    consecutive spaces are merged."""
    lines = (pathlib.Path(__file__).parent / "text.txt").read_text(encoding="utf-8").splitlines()
    text = " ".join(line for line in lines if not line.startswith("#")).lower()
    return " ".join("".join(character if character in SYMBOLS else " " for character in text).split())


def encode(text: str) -> np.ndarray:
    """The indices of a text's characters in SYMBOLS."""
    return np.array([SYMBOLS.index(character) for character in text], np.int32)


def decode(symbols) -> str:
    return "".join(SYMBOLS[symbol] for symbol in np.asarray(symbols))


def split(text: np.ndarray, seed: int, *, blocks: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the text into `blocks` consecutive parts of equal length and holds out `held_out` random ones for testing:
    (training [blocks - held_out, T], test [held_out, T])."""
    length = len(text) // blocks
    parts = text[: blocks * length].reshape(blocks, length)
    order = np.random.default_rng(seed).permutation(blocks)
    return parts[np.sort(order[held_out:])], parts[np.sort(order[:held_out])]


def share_of_words(sample: str, text: str) -> float:
    """The fraction of a sample's words that occur in the text, without the first and last, which may be truncated."""
    known = set("".join(c if c.isalpha() else " " for c in text).split())
    words = "".join(c if c.isalpha() else " " for c in sample).split()[1:-1]
    return sum(word in known for word in words) / max(1, len(words))


def run(seed: int, *, orders=ORDERS, blocks: int = 20, held_out: int = 4, length: int = 3000) -> dict[str, Any]:
    """For each order, counts transitions, measures the cross-entropy and draws samples."""
    text = book()
    train, test = split(encode(text), seed, blocks=blocks, held_out=held_out)
    most, key = max(orders), jax.random.key(seed)
    measure = jax.jit(markov_chain.bits)
    counts, count = markov_chain.no_counts(len(SYMBOLS), most), jax.jit(counting.train_step)
    for block in train:
        counts, _ = count(counts, block)
    result: dict[str, Any] = {
        "orders": list(orders),
        "characters": int(train.size),
        "bits": [],
        "samples": {},
        "words": {},
    }
    for order in orders:
        table = jax.jit(markov_chain.probabilities)(counts[: order + 1], strength=STRENGTH)

        # The same symbols are scored at every order.
        scored = {"train": train[:, most - order :], "test": test[:, most - order :]}
        bits = {name: np.mean([measure(table, block) for block in parts]) for name, parts in scored.items()}
        result["bits"].append({name: float(value) for name, value in bits.items()})
        start = jnp.asarray(encode("the rabbit ")[-order:] if order else [], jnp.int32)
        sample = jax.jit(functools.partial(markov_chain.sample, length=length))
        drawn = decode(sample(table, start, jax.random.fold_in(key, order)))
        result["samples"][str(order)] = drawn[:240]
        result["words"][str(order)] = share_of_words(drawn, text)
    return result


def draw(results: list[dict]):
    first = results[0]
    orders = first["orders"]
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.new_figure(height=5.6)
        halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        above, below = halves
        axes = above.subplots()
        for split_name, colour, label in (
            ("test", "eval", "held-out text"),
            ("train", "train", "training text"),
        ):
            values = np.array([[at[split_name] for at in result["bits"]] for result in results])
            topic.draw_spread(axes, orders, values, colour, label=label)
            axes.lines[-1].set_marker("o")
        axes.axhline(np.log2(len(SYMBOLS)), color="#666666", linewidth=1, linestyle=":")
        axes.annotate("all characters equally likely", (orders[0], np.log2(len(SYMBOLS))), va="bottom", fontsize=9)
        axes.set(xlabel="order: context characters", ylabel="bits per character", xticks=orders, ylim=(0, 5.8))
        axes.legend(fontsize=9, loc="lower left")
        axes = below.subplots()
        axes.set_axis_off()
        place = 1.0
        for order in orders[1:]:
            sample = figures.wrapped(first["samples"][str(order)][:150].strip(), 50)
            axes.text(0, place, f"order {order}", fontweight="bold", fontsize=9, va="top")
            axes.text(0, place - 0.075, sample, family="DejaVu Sans Mono", fontsize=8.5, va="top")
            place -= 0.35
    return figure


def report(results: list[dict]) -> Findings:
    first = results[0]

    def over_seeds(read) -> dict:
        return topic.mean_and_std([read(result) for result in results])

    test, train = (
        {order: over_seeds(lambda r, n=n, s=s: r["bits"][n][s]) for n, order in enumerate(first["orders"])}
        for s in ("test", "train")
    )
    words = {order: over_seeds(lambda r, order=order: r["words"][str(order)]) for order in first["orders"]}
    chains = [order for order in first["orders"] if order > 0]
    numbers = {f"bits_order_{order}": test[order] for order in chains}
    numbers |= {f"known_words_order_{order}": words[order] for order in chains}
    numbers["bits_of_counted_text"] = train[chains[-1]]
    baseline = {
        "bits_all_characters_equal": float(np.log2(len(SYMBOLS))),
        "bits_order_0": test[0],
        "known_words_order_0": words[0],
    }
    means = [test[order]["mean"] for order in first["orders"]]
    falls = all(after < before for before, after in zip(means, means[1:], strict=False))
    best = min(test, key=lambda order: test[order]["mean"])
    longest = chains[-1]
    text = (
        f"Each character of context {'lowers' if falls else 'does not always lower'} the cross-entropy on held-out "
        f"text: {', '.join(f'{mean:.2f}' for mean in means)} bits per character at orders {first['orders'][0]} to "
        f"{longest}, lowest at order {best}. On the training text it is {train[longest]['mean']:.2f} at order "
        f"{longest}, a lower value than on held-out text: some of the contexts counted in {first['characters']:,} "
        "characters are specific to that text. Of the sampled words "
        f"{words[longest]['mean']:.0%} occur in the book, compared with "
        f"{words[chains[0]]['mean']:.0%} at order {chains[0]}."
    )
    caption = (
        "above: cross-entropy by order, mean and standard deviation over random splits of “Alice's Adventures in "
        "Wonderland”, chapters I and II; below: text sampled from chains of three orders, seed 0"
    )
    return Findings(text, numbers, baseline, draw(results), caption)


MARKOV_CHAIN = Card(
    name="markov_chain",
    title="Markov chain (MC)",
    diagram=Diagram((Layer("probabilistic", 8),), form="circle"),
    idea="The next character of a text is drawn with probabilities that depend only on the last few characters. It "
    "learns by counting transitions; it is not a neural network, but a precursor of networks with a state.",
    formula=(
        r"p(x_t | x_{t-k} \dots x_{t-1}) = "
        r"\frac{n(x_{t-k} \dots x_t) + \lambda \, p(x_t | x_{t-k+1} \dots)}{n(x_{t-k} \dots x_{t-1}) + \lambda}"
    ),
    rule="Transitions are counted, and the counts of a context are smoothed with the probabilities for a shorter one.",
    reference="Markov, 1913, An example of statistical investigation of the text Eugene Onegin concerning the "
    "connection of samples in chains",
    run=run,
    report=report,
)

CARDS = (MARKOV_CHAIN,)
