"""Boltzmann machines: networks of binary units (0.0 or 1.0) in which a state s has probability exp(-E(s)) / Z.

The general machine (Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines") connects all units;
the visible ones come first. The restricted one (Smolensky 1986; Hinton 2002, "Training products of experts by
minimizing contrastive divergence") connects visible units only to hidden ones. The states of small machines can be
enumerated, so the quantities that a learning rule estimates can be computed exactly.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def all_states(count: int) -> np.ndarray:
    """All states [2^count, count] of `count` units; state n is the number n in binary, highest bit first."""
    return (np.arange(2**count)[:, None] >> np.arange(count)[None, ::-1] & 1).astype(np.float32)


# --- The general machine.
class Boltzmann(NamedTuple):
    """Symmetric weights [N, N] with a zero diagonal and biases [N]."""

    weights: jax.Array
    biases: jax.Array


def init(key, units: int, *, std: float = 0.01) -> Boltzmann:
    """Weights from N(0, std^2) and zero biases."""
    upper = jnp.triu(std * jax.random.normal(key, (units, units)), 1)
    return Boltzmann(upper + upper.T, jnp.zeros(units))


def energy(machine: Boltzmann, states_BN):
    """-1/2 sum_ij w_ij s_i s_j - sum_i b_i s_i of each state, [B]."""
    return -0.5 * ((states_BN @ machine.weights) * states_BN).sum(-1) - states_BN @ machine.biases


def on_probability(machine: Boltzmann, states_BN, unit):
    """The probability [B] that a unit is 1 given all other units: the sigmoid of its field."""
    return jax.nn.sigmoid(states_BN @ machine.weights[unit] + machine.biases[unit])


def sample(machine: Boltzmann, states_BN, key, units, *, sweeps: int):
    """The states after Gibbs sampling: each sweep samples `units` one after the other, conditioned on all other units.
    Units that are not in `units` are clamped."""

    def one_sweep(states, n):
        uniform = jax.random.uniform(jax.random.fold_in(key, n), (len(units), len(states)))

        def one_unit(states, drawn):
            unit, uniform_B = drawn
            on = uniform_B < on_probability(machine, states, unit)
            return states.at[:, unit].set(on.astype(states.dtype)), None

        return jax.lax.scan(one_unit, states, (units, uniform))[0], None

    return jax.lax.scan(one_sweep, states_BN, jnp.arange(sweeps))[0]


def log_probabilities(machine: Boltzmann, visible: int):
    """The log probability of every state of the first `visible` units, in the order of `all_states`, by enumeration."""
    units = len(machine.biases)
    scores = -energy(machine, all_states(units)).reshape(2**visible, -1)
    return jax.nn.log_softmax(jax.nn.logsumexp(scores, axis=1))


def divergence(data, log_model):
    """The Kullback-Leibler divergence of a model from the data distribution, in nats: sum p_data log(p_data / p)."""
    present = data > 0
    return jnp.where(present, data * (jnp.log(jnp.where(present, data, 1)) - log_model), 0).sum()


# --- The restricted machine.
class Restricted(NamedTuple):
    """Weights [V, H], biases of the visible units [V] and of the hidden ones [H]."""

    weights: jax.Array
    visible: jax.Array
    hidden: jax.Array


def init_restricted(key, means_V, hidden: int, *, std: float = 0.01) -> Restricted:
    """Weights from N(0, std^2), visible biases that reproduce the mean of every visible unit, hidden biases 0 (Hinton
    2010, "A practical guide to training restricted Boltzmann machines", section 8)."""
    means = jnp.clip(means_V, 0.01, 0.99)
    weights = std * jax.random.normal(key, (len(means), hidden))
    return Restricted(weights, jnp.log(means / (1 - means)), jnp.zeros(hidden))


def hidden_probabilities(machine: Restricted, visible_BV):
    """The probability [B, H] of each hidden unit given the visible ones."""
    return jax.nn.sigmoid(visible_BV @ machine.weights + machine.hidden[None])


def visible_probabilities(machine: Restricted, hidden_BH):
    """The probability [B, V] of each visible unit given the hidden ones."""
    return jax.nn.sigmoid(hidden_BH @ machine.weights.T + machine.visible[None])


def gibbs(machine: Restricted, visible_BV, key, *, steps: int):
    """The visible states after `steps` Gibbs steps, each of which samples all hidden and then all visible units; step n
    uses fold_in(key, n)."""

    def one(visible, n):
        keys = jax.random.split(jax.random.fold_in(key, n))
        hidden = jax.random.bernoulli(keys[0], hidden_probabilities(machine, visible)).astype(visible.dtype)
        drawn = jax.random.bernoulli(keys[1], visible_probabilities(machine, hidden))
        return drawn.astype(visible.dtype), None

    return jax.lax.scan(one, visible_BV, jnp.arange(steps))[0]


def free_energy(machine: Restricted, visible_BV):
    """-log sum_h exp(-E(v, h)) of each visible state, [B]."""
    fields = visible_BV @ machine.weights + machine.hidden[None]
    return -visible_BV @ machine.visible - jax.nn.softplus(fields).sum(-1)


def log_partition(machine: Restricted):
    """log Z, by enumeration of all states of the smaller layer, hidden or visible."""
    if len(machine.hidden) < len(machine.visible):  # Swap visible and hidden units.
        machine = Restricted(machine.weights.T, machine.hidden, machine.visible)
    return jax.nn.logsumexp(-free_energy(machine, all_states(len(machine.visible))))


def log_likelihood(machine: Restricted, visible_BV):
    """The log probability [B] of each visible state, in nats, by enumeration."""
    return -free_energy(machine, visible_BV) - log_partition(machine)


def exact_gradient(machine: Restricted, visible_BV) -> Restricted:
    """The gradient of the mean log likelihood, by enumeration."""
    return jax.grad(lambda machine: log_likelihood(machine, visible_BV).mean())(machine)


def statistics(machine: Restricted, visible_BV, weights_B=None) -> Restricted:
    """The batch means of v h, v and h, with probabilities in place of h: the negative derivatives of the free energy.
    With `weights_B`, which sum to 1, the means are weighted."""
    weights = jnp.full(len(visible_BV), 1 / len(visible_BV)) if weights_B is None else weights_B
    hidden = hidden_probabilities(machine, visible_BV)
    weighted = visible_BV * weights[:, None]
    return Restricted(weighted.T @ hidden, weighted.sum(0), (hidden * weights[:, None]).sum(0))


def expected_contrast(machine: Restricted, visible_BV, *, steps: int) -> Restricted:
    """The expected gradient estimate of contrastive divergence with `steps` Gibbs steps, by enumeration: the statistics
    of the data minus those of p_data T^steps, where T is the transition matrix of a Gibbs step."""
    visible, hidden = all_states(len(machine.visible)), all_states(len(machine.hidden))
    to_hidden = _probabilities(hidden_probabilities(machine, visible), hidden)
    transition = to_hidden @ _probabilities(visible_probabilities(machine, hidden), visible)
    places = (visible_BV @ (2 ** np.arange(visible.shape[1])[::-1]).astype(np.float32)).astype(jnp.int32)
    chain = jnp.zeros(len(visible)).at[places].add(1 / len(visible_BV))
    for _ in range(steps):
        chain = chain @ transition
    return jax.tree.map(jnp.subtract, statistics(machine, visible_BV), statistics(machine, visible, chain))


def _probabilities(on, states):
    """The probability [A, S] of each state [S, N] of independent units that are 1 with probability `on` [A, N]."""
    return jnp.where(states[None] > 0, on[:, None], 1 - on[:, None]).prod(-1)
