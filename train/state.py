"""The training state and the random-number rule."""

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """Arrays only, the same on every device. `step` [] counts finished steps; `key` is the base key: the key of a step
    is fold_in(key, step). `average` is {"params", "batch_stats"}, their moving averages, or () for none."""

    params: Any
    batch_stats: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array
    average: Any = ()


def step_key(state: State) -> jax.Array:
    """The key of the next step: fold_in(base key, step)."""
    return jax.random.fold_in(state.key, state.step)


def parameter_count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
