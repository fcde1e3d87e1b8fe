"""The learning rules of Boltzmann machines: statistics of the data minus those of the model.

Every step is (state, batch) -> (state, sums), with batches [B, V] of visible states. A step draws random numbers with
fold_in(key, step).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import boltzmann
from models.boltzmann import Boltzmann, Restricted


class State(NamedTuple):
    """`chains` are the states of the persistent Markov chains: of all units [C, N] for a general machine, of the
    visible units [C, V] for a restricted machine, of shape [0, V] for rules without chains. `step` and `key` are as in
    train/state.py."""

    params: Any
    chains: jax.Array
    step: jax.Array
    key: jax.Array


def init(key, params, chains) -> State:
    """The state before the first step."""
    return State(params, chains, jnp.zeros((), jnp.int32), key)


def _step_key(state: State):
    return jax.random.fold_in(state.key, state.step)


def _ascend(state: State, gradient, rate, chains) -> State:
    params = jax.tree.map(lambda p, g: p + rate * g, state.params, gradient)
    return State(params, chains, state.step + 1, state.key)


def _sums(gradient, batch) -> dict:
    squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient))
    return {"gradient_norm": jnp.sqrt(squares), "count": jnp.float32(len(batch))}


def pair_statistics(states_BN) -> Boltzmann:
    """The batch means of s_i s_j, 0 for i = j, and of s_i."""
    pairs = states_BN.T @ states_BN / len(states_BN)
    return Boltzmann(pairs * (1 - jnp.eye(len(pairs))), states_BN.mean(0))


def boltzmann_step(state: State, batch, *, rate, sweeps: int):
    """Ackley, Hinton & Sejnowski 1985: w_ij grows with <s_i s_j> while the visible units are clamped to the data, and
    falls with <s_i s_j> while all units run freely.

    The paper reaches equilibrium by annealing. Here, the hidden units of the clamped phase are initialized at random,
    and the free phase continues from the previous step's states (Neal 1992, "Connectionist learning of belief
    networks"); both take `sweeps` sweeps of Gibbs sampling.
    """
    keys, machine = jax.random.split(_step_key(state), 3), state.params
    visible, units = batch.shape[1], len(machine.biases)
    hidden = jax.random.bernoulli(keys[0], 0.5, (len(batch), units - visible)).astype(batch.dtype)
    start = jnp.concatenate([batch, hidden], axis=1)
    clamped = boltzmann.sample(machine, start, keys[1], jnp.arange(visible, units), sweeps=sweeps)
    free = boltzmann.sample(machine, state.chains, keys[2], jnp.arange(units), sweeps=sweeps)
    gradient = jax.tree.map(jnp.subtract, pair_statistics(clamped), pair_statistics(free))
    return _ascend(state, gradient, rate, free), _sums(gradient, batch)


def contrast(machine: Restricted, batch, samples) -> Restricted:
    """An estimate of the gradient of the log likelihood: the statistics of the batch minus those of samples [C, V]."""
    of_data, of_model = (boltzmann.statistics(machine, states) for states in (batch, samples))
    return jax.tree.map(jnp.subtract, of_data, of_model)


def cd_step(state: State, batch, *, rate, steps: int = 1):
    """Contrastive divergence, CD-k (Hinton 2002): the samples start at the data and take k = `steps` Gibbs steps."""
    samples = boltzmann.gibbs(state.params, batch, _step_key(state), steps=steps)
    gradient = contrast(state.params, batch, samples)
    return _ascend(state, gradient, rate, state.chains), _sums(gradient, batch)


def pcd_step(state: State, batch, *, rate, steps: int = 1):
    """Persistent contrastive divergence (Tieleman 2008, "Training restricted Boltzmann machines using approximations to
    the likelihood gradient"): the samples continue from the samples of the previous step."""
    samples = boltzmann.gibbs(state.params, state.chains, _step_key(state), steps=steps)
    gradient = contrast(state.params, batch, samples)
    return _ascend(state, gradient, rate, samples), _sums(gradient, batch)


def exact_step(state: State, batch, *, rate):
    """Gradient ascent on the mean log likelihood, by enumeration. The other rules for a restricted machine estimate
    this gradient."""
    gradient = boltzmann.exact_gradient(state.params, batch)
    return _ascend(state, gradient, rate, state.chains), _sums(gradient, batch)
