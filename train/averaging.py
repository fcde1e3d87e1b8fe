"""Exponential moving averages of a network's weights, which evaluations use in place of the weights."""

import jax
import jax.numpy as jnp

from train.state import State


def moving_average(average, new, *, step, decay: float):
    """The exponential moving average after a step that follows `step` finished ones and results in the tree `new`. The
    decay is smaller at first, so that the average soon forgets the initial weights. The average of a constant, such as
    a frozen weight, is exactly that constant."""
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, x: a + share * (x - a), average, new)


def _weights(state: State) -> dict:
    return {"params": state.params, "batch_stats": state.batch_stats}


def next_average(state: State, params, batch_stats, *, decay: float):
    """`State.average` after a step from `state` to new parameters and batch statistics; () if `decay` is 0."""
    new = {"params": params, "batch_stats": batch_stats}
    return moving_average(state.average, new, step=state.step, decay=decay) if decay else ()


def restarted(state: State) -> State:
    """The state with an average, if it has one, that starts from its weights. The weights are copied, because the
    training step reuses the memory of each leaf."""
    return state._replace(average=jax.tree.map(jnp.copy, _weights(state))) if state.average else state


def evaluation_variables(state: State) -> dict:
    """{"params", "batch_stats"} for evaluation and prediction: the average if there is one."""
    return state.average or _weights(state)


def evaluation_weights(state: State) -> tuple:
    """(params, batch_stats) of `evaluation_variables`."""
    weights = evaluation_variables(state)
    return weights["params"], weights["batch_stats"]
