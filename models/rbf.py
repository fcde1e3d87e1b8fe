"""Radial basis functions: each hidden unit responds to inputs near its center (Broomhead & Lowe 1988,
"Multivariable functional interpolation and adaptive networks").

The output is a linear function of `features`; train/tasks/least_squares.py fits it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RBF(NamedTuple):
    """Hidden units: their centers [K, D] and their common width [], in the unit of the inputs."""

    centres: jax.Array
    width: jax.Array


def squared_distances(x_BD, z_KD):
    """|x - z|^2 of each pair, [B, K], by one matrix product."""
    norms = jnp.sum(x_BD**2, -1)[:, None] + jnp.sum(z_KD**2, -1)[None]
    return jnp.maximum(norms - 2 * x_BD @ z_KD.T, 0)  # Rounding can make the distance of equal points negative.


def create(centres_KD) -> RBF:
    """Units at the given centers; at least two must differ. The width is the root mean square distance between two
    centers."""
    centres = jnp.asarray(centres_KD, jnp.float32)
    count = len(centres)
    return RBF(centres, jnp.sqrt(squared_distances(centres, centres).sum() / (count * (count - 1))))


def features(params: RBF, x_BD):
    """exp(-|x - center|^2 / (2 width^2)) for each unit, [B, K]."""
    return jnp.exp(-squared_distances(x_BD, params.centres) / (2 * params.width**2))
