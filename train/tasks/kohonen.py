"""Kohonen's rule: the unit closest to an input, and its neighbors on the grid, move toward the input."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models import kohonen


class State(NamedTuple):
    """Weight vectors of the units [R, C, D] and the number [] of finished steps."""

    weights: jax.Array
    step: jax.Array


def init(key, rows: int, columns: int, mean_D, std_D) -> State:
    """Weight vectors drawn from N(mean_D, std_D^2)."""
    drawn = jax.random.normal(key, (rows, columns, len(mean_D)))
    return State(mean_D[None, None] + std_D[None, None] * drawn, jnp.zeros((), jnp.int32))


def step(state: State, batch, *, rate: Callable, radius: Callable) -> tuple[State, dict]:
    """Processes the inputs {"input": [B, D]} one after the other: w += rate * neighbourhood * (x - w). `rate` and
    `radius` are functions of the number of finished steps. "loss" is the sum of the inputs' distances to their closest
    units, each before its own update."""
    rows, columns, _ = state.weights.shape
    now_rate, now_radius = rate(state.step), radius(state.step)

    def one(weights, x):
        closest, unit = kohonen.nearest(weights, x[None])
        near = kohonen.neighbourhood(rows, columns, unit[0, 0], now_radius)
        return weights + now_rate * near[..., None] * (x[None, None] - weights), jnp.sqrt(closest[0, 0])

    weights, distances = lax.scan(one, state.weights, batch["input"])
    sums = {"loss": distances.sum(), "count": jnp.asarray(len(distances), jnp.float32)}
    return State(weights, state.step + 1), sums


def scores(weights_RCD, x_BD) -> dict:
    """Sums over the inputs: "quantization", the distance to the closest unit; "topographic", 1 if the two closest units
    are not adjacent on the grid; "count"."""
    closest, units = kohonen.nearest(weights_RCD, x_BD, 2)
    apart = ~kohonen.are_adjacent(units[:, 0], units[:, 1], weights_RCD.shape[1])
    return {"quantization": jnp.sqrt(closest[:, 0]).sum(), "topographic": apart.sum(), "count": jnp.asarray(len(x_BD))}
