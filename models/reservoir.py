"""Networks with fixed random weights; only a linear readout of their state is fitted.

Extreme learning machine (Huang, Zhu & Siew 2006, "Extreme learning machine"), echo state network (Jaeger 2001, "The
echo state approach"), liquid state machine (Maass, Natschlaeger & Markram 2002, "Real-time computing without stable
states"). train/tasks/least_squares.py fits the readout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _float32(*arrays) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


class Hidden(NamedTuple):
    """A dense layer: kernel [D, N], bias [N]."""

    kernel: jax.Array
    bias: jax.Array


def random_hidden(random: np.random.Generator, inputs: int, units: int) -> Hidden:
    """Kernel from N(0, 1 / inputs), biases from U(-1, 1)."""
    kernel = random.standard_normal((inputs, units)) / np.sqrt(inputs)
    return Hidden(*_float32(kernel, random.uniform(-1, 1, units)))


def hidden_features(params: Hidden, x_BD):
    """ReLU features [B, N]."""
    return jax.nn.relu(x_BD @ params.kernel + params.bias[None])


class EchoState(NamedTuple):
    """Recurrent weights [N, N] of spectral radius 1, input weights [D, N], biases [N]."""

    recurrent: jax.Array
    inputs: jax.Array
    bias: jax.Array


def random_echo_state(
    random: np.random.Generator, inputs: int, units: int, *, density: float = 0.1, scale: float = 0.1
) -> EchoState:
    """A fraction `density` of the recurrent weights is nonzero. Input weights and biases are from U(-scale, scale)."""
    recurrent = random.standard_normal((units, units)) * (random.uniform(size=(units, units)) < density)
    radius = np.abs(np.linalg.eigvals(recurrent)).max()
    reached = random.uniform(-scale, scale, (inputs, units))
    return EchoState(*_float32(recurrent / radius, reached, random.uniform(-scale, scale, units)))


def echo_states(params: EchoState, inputs_TD, radius, start_N=None):
    """The states [T, N] x(t) = tanh(radius W x(t - 1) + W_in u(t) + b), starting from `start_N` (None: zeros). `radius`
    [] is the spectral radius of the recurrent weights."""
    start = jnp.zeros(len(params.bias)) if start_N is None else start_N
    driven = inputs_TD @ params.inputs + params.bias[None]

    def step(x, drive):
        x = jnp.tanh(radius * (x @ params.recurrent) + drive)
        return x, x

    return lax.scan(step, start, driven)[1]


class Liquid(NamedTuple):
    """Synapses between neurons [N, N], from row to column, and from inputs to neurons [D, N]."""

    recurrent: jax.Array
    inputs: jax.Array


class Times(NamedTuple):
    """Time constants of a liquid, in steps: of the membrane, the synapses and the readout traces, and the refractory
    period after a spike."""

    membrane: float = 20.0
    synapse: float = 3.0
    trace: float = 12.0
    silent: int = 2


TIMES = Times()


# Probability of a synapse between neighbors, by (from, to); excitatory neurons come first (Maass et al. 2002).
CONNECTED = np.array([[0.3, 0.2], [0.4, 0.1]])
REACH = 2.0  # Distance at which the probability falls to 1 / e.


def random_liquid(
    random: np.random.Generator,
    inputs: int,
    shape: tuple[int, int, int],
    *,
    recurrent: float = 0.05,
    driven: float = 0.3,
    density: float = 0.3,
) -> Liquid:
    """Neurons on a grid of `shape`; a fifth of them are inhibitory. Neurons are connected with probability
    CONNECTED exp(-(distance / REACH)^2). Synaptic weights are |N(0, recurrent^2)|, negated from inhibitory neurons.
    Each input is connected to a fraction `density` of the neurons, with weights from N(0, driven^2)."""
    count = int(np.prod(shape))
    places = np.stack(np.unravel_index(np.arange(count), shape), -1)
    apart = ((places[:, None] - places[None]) ** 2).sum(-1)
    inhibitory = (random.permutation(count) < count // 5).astype(int)
    chance = CONNECTED[inhibitory[:, None], inhibitory[None]] * np.exp(-apart / REACH**2) * (1 - np.eye(count))
    sizes = recurrent * np.abs(random.standard_normal((count, count))) * (1 - 2 * inhibitory[:, None])
    between = np.where(random.uniform(size=(count, count)) < chance, sizes, 0)
    reached = random.uniform(size=(inputs, count)) < density
    return Liquid(*_float32(between, np.where(reached, driven * random.standard_normal((inputs, count)), 0)))


def liquid_states(params: Liquid, currents_TBD, times: Times = TIMES):
    """Spikes and traces of leaky integrate-and-fire neurons that start at rest, both [T, B, N].

    At a step the membrane potential decays and adds the input current and the synaptic current of earlier spikes. A
    neuron whose potential reaches 1 spikes: its potential becomes 0 and stays there for `times.silent` steps. A trace
    is the sum of a neuron's spikes, each decaying exponentially.
    """
    membrane, synapse, trace = (float(np.exp(-1 / t)) for t in times[:3])
    rest = jnp.zeros((currents_TBD.shape[1], params.recurrent.shape[0]))

    def step(carry, current):
        potential, synaptic, traces, silent = carry
        potential = membrane * potential + current @ params.inputs + synaptic @ params.recurrent
        potential = jnp.where(silent > 0, 0.0, potential)
        spikes = (potential >= 1).astype(jnp.float32)
        silent = jnp.where(spikes > 0, float(times.silent), jnp.maximum(silent - 1, 0))
        traces = trace * traces + spikes
        return (potential * (1 - spikes), synapse * synaptic + spikes, traces, silent), (spikes, traces)

    return lax.scan(step, (rest, rest, rest, rest), currents_TBD)[1]
