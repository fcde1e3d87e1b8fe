"""The Hopfield network (Hopfield 1982, "Neural networks and physical systems with emergent collective computational
abilities").

Units are -1.0 or 1.0. Weights [N, N] are symmetric with a zero diagonal. Hebb's rule (train/tasks/hebb.py) gives
integer weights, as in the paper, so that fields and energies below 2^24 are exact in float32.
"""

import jax
import jax.numpy as jnp


def energy(weights_NN, states_BN):
    """-1/2 sum_ij w_ij s_i s_j of each state, [B]."""
    return -0.5 * ((states_BN @ weights_NN) * states_BN).sum(-1)


def update(weights_NN, states_BN, unit):
    """Returns the states after setting one unit to the sign of its field sum_j w_ij s_j. A unit whose field is 0 keeps
    its state."""
    field_B = states_BN @ weights_NN[unit]
    return states_BN.at[:, unit].set(jnp.where(field_B == 0, states_BN[:, unit], jnp.sign(field_B)))


def sweep(weights_NN, states_BN, order_N):
    """Returns the states after updating the units one after the other in the given order, so that the energy never
    rises. Simultaneous updates could alternate between two states forever."""
    return jax.lax.scan(lambda states, unit: (update(weights_NN, states, unit), None), states_BN, order_N)[0]


def recall(weights_NN, states_BN, key, *, limit: int = 100):
    """Sweeps in random order until no unit changes, at most `limit` times. Sweep n draws its order from
    fold_in(key, n). Returns (states, number of sweeps)."""

    def unfinished(carry):
        _, done, changed = carry
        return changed & (done < limit)

    def one_more(carry):
        states, done, _ = carry
        order = jax.random.permutation(jax.random.fold_in(key, done), states.shape[1])
        after = sweep(weights_NN, states, order)
        return after, done + 1, jnp.any(after != states)

    states, done, _ = jax.lax.while_loop(unfinished, one_more, (states_BN, jnp.zeros((), jnp.int32), jnp.array(True)))
    return states, done
