"""The learning rule of the Markov chain in models/markov_chain.py: counting."""

import jax.numpy as jnp

from models.markov_chain import Counts, contexts


def train_step(counts: Counts, text_T):
    """(counts, text) -> (counts, sums): adds 1 to the counts of orders 0 .. K for each symbol of the text that has K
    symbols before it. count(context, symbol) / count(context) is the maximum-likelihood estimate."""
    places = contexts(text_T, len(counts) - 1)
    counted = tuple(table.at[places[len(places) - table.ndim :]].add(1) for table in counts)
    return counted, {"count": jnp.float32(len(places[0]))}
