"""Hebb's rule, the learning rule of the Hopfield network in models/hopfield.py."""

import jax.numpy as jnp


def train_step(weights_NN, patterns_BN):
    """(weights, patterns) -> (weights, sums): adds s_i s_j of every pattern to w_ij, except that w_ii stays 0 (Hopfield
    1982, eq. 2, for units -1 and 1). A pattern of zeros changes nothing and is not counted."""
    growth = patterns_BN.T @ patterns_BN
    weights = weights_NN + growth * (1 - jnp.eye(len(growth), dtype=growth.dtype))
    return weights, {"count": jnp.any(patterns_BN != 0, axis=1).sum()}
