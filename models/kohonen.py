"""The self-organizing map: units on a grid, each with a point of the input space (Kohonen 1982, "Self-organized
formation of topologically correct feature maps")."""

import jax.numpy as jnp
from jax import lax

from models.rbf import squared_distances


def nearest(weights_RCD, x_BD, count: int = 1):
    """The units closest to each input, the closest first: squared distances and numbers in row-major order, both
    [B, count]."""
    distances = squared_distances(x_BD, weights_RCD.reshape(-1, weights_RCD.shape[-1]))
    closest, units = lax.top_k(-distances, count)
    return -closest, units


def neighbourhood(rows: int, columns: int, unit, radius):
    """exp(-d^2 / (2 radius^2)) [R, C], where d is a unit's distance on the grid to unit number `unit` []."""
    down = jnp.arange(rows)[:, None] - unit // columns
    across = jnp.arange(columns)[None] - unit % columns
    return jnp.exp(-(down**2 + across**2) / (2 * radius**2))


def are_adjacent(units, others, columns: int):
    """Whether two units touch on the grid, also at a corner, elementwise."""
    down = jnp.abs(units // columns - others // columns)
    return (down <= 1) & (jnp.abs(units % columns - others % columns) <= 1)
