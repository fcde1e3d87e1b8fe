"""Markov chains over symbols 0 .. A - 1: the probability of a symbol depends on the k symbols before it, its context
(Markov 1913, "An example of statistical investigation of the text Eugene Onegin"; Shannon 1948, "A mathematical theory
of communication", section 3).

A chain of order K is learned by counting (train/tasks/markov_chain.py). Its counts are K + 1 arrays: counts[k], of
shape [A] * (k + 1), is how often each symbol (last axis) followed each context of k symbols (the other axes, oldest
first).
"""

import jax
import jax.numpy as jnp

Counts = tuple[jax.Array, ...]


def no_counts(symbols: int, order: int) -> Counts:
    """Zero counts, for a chain before training."""
    return tuple(jnp.zeros((symbols,) * (k + 1)) for k in range(order + 1))


def contexts(text_T, order: int) -> tuple:
    """The context and the symbol at each position of a text, without the first `order` positions: order + 1 arrays
    [T - order], which can index counts or probabilities."""
    return tuple(text_T[k : len(text_T) - order + k] for k in range(order + 1))


def probabilities(counts: Counts, *, strength: float):
    """The probability of each symbol (last axis) after each context of K symbols, [A] * (K + 1).

    The distribution after a context of k symbols is smoothed with the distribution after its k - 1 latest symbols,
    which has the weight of `strength` observations (MacKay & Peto 1995, "A hierarchical Dirichlet language model"). The
    distribution after the empty context is smoothed with the uniform distribution.
    """
    symbols = counts[0].shape[-1]
    smoothed = jnp.full(symbols, 1 / symbols)
    for order, table in enumerate(counts):
        shorter = smoothed[None] if order else smoothed
        smoothed = (table + strength * shorter) / (table.sum(-1, keepdims=True) + strength)
    return smoothed


def bits(probabilities, text_T):
    """-log2 of the probability of each symbol of a text after its context, [T - K]."""
    return -jnp.log2(probabilities[contexts(text_T, probabilities.ndim - 1)])


def sample(probabilities, start_K, key, *, length: int):
    """Samples `length` symbols that continue a text ending in `start_K` [K]. Symbol n is drawn with fold_in(key, n)."""

    def one(context, n):
        drawn = jax.random.categorical(jax.random.fold_in(key, n), jnp.log(probabilities[tuple(context)]))
        return jnp.append(context, drawn)[1:], drawn

    return jax.lax.scan(one, start_K, jnp.arange(length))[1]
