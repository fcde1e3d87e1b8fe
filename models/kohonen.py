"""The self-organizing map: units on a grid, each with a weight vector in the input space (Kohonen 1982, "Self-organized
formation of topologically correct feature maps")."""

import jax.numpy as jnp
from jax import lax

from models.rbf import squared_distances


def nearest(weights_RCD, x_BD, count: int = 1):
    """The `count` units closest to each input, closest first. Returns (squared distances, unit indices in row-major
    order), both [B, count]."""
    distances = squared_distances(x_BD, weights_RCD.reshape(-1, weights_RCD.shape[-1]))
    closest, units = lax.top_k(-distances, count)
    return -closest, units


def neighbourhood(rows: int, columns: int, unit, radius):
    """exp(-d^2 / (2 radius^2)) [R, C], where d is a unit's distance on the grid to the unit with index `unit` []."""
    down = jnp.arange(rows)[:, None] - unit // columns
    across = jnp.arange(columns)[None] - unit % columns
    return jnp.exp(-(down**2 + across**2) / (2 * radius**2))


def are_adjacent(units, others, columns: int):
    """Whether two units are neighbors on the grid, including diagonal neighbors; elementwise."""
    down = jnp.abs(units // columns - others // columns)
    return (down <= 1) & (jnp.abs(units % columns - others % columns) <= 1)
