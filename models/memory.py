"""Networks with memory for sequences [B, T, C]: an LSTM and the neural Turing machine of Graves, Wayne & Danihelka
2014, "Neural Turing machines", with one read head and one write head. Equation numbers are the paper's.

Dimensions: B examples, T steps, N rows and W columns of the memory, H units. A weighting [B, N] is a head's
distribution over the rows: positive, with sum one.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import Dense
from models.recurrent import Recurrent, lstm_step

KEEP_BIAS = 1.0  # Initial bias of the forget gates.
SHIFTS = (-1, 0, 1)  # Rows that a head can move by in one step.
TINY = 1e-12  # Keeps logarithms and roots, and their gradients, finite.
BLANK = 0.1  # Initial content of the memory. With zeros, the cosine similarity would be undefined.


class LSTM(nn.Module):
    """Sequences [B, T, C] -> logits [B, T, outputs]: one layer of `units` LSTM units and a dense layer."""

    outputs: int
    units: int

    @nn.compact
    def __call__(self, x_BTC, train: bool = False):
        del train
        return Dense(self.outputs, name="logits")(Recurrent("lstm", self.units, KEEP_BIAS, name="layer1")(x_BTC))


# --- The heads of the neural Turing machine ---


class Head(NamedTuple):
    """The addressing parameters of a head.

    Attributes:
      key: [B, W], compared with the rows; k in the paper.
      strength: [B], at least 0, sharpens the comparison; β.
      gate: [B] in [0, 1], 0 keeps the weighting of the previous step; g.
      shift: [B, 3], probabilities of moving by each of SHIFTS; s.
      power: [B], at least 1, sharpens the weighting; γ.
    """

    key: jax.Array
    strength: jax.Array
    gate: jax.Array
    shift: jax.Array
    power: jax.Array


def head(outputs, width: int) -> Head:
    """Converts a layer's unbounded outputs [B, W + 6] to the parameters of a head (paper, section 3.3)."""
    key, strength, gate, power = outputs[:, :width], *(outputs[:, width + i] for i in range(3))
    return Head(
        jnp.tanh(key),
        jax.nn.softplus(strength),
        jax.nn.sigmoid(gate),
        jax.nn.softmax(outputs[:, width + 3 :]),
        1 + jax.nn.softplus(power),
    )


def similarity(key, memory):
    """The cosine similarity [B, N] of a key [B, W] and each row of the memory [B, N, W] (equation 6)."""
    products = jnp.einsum("bw,bnw->bn", key, memory)
    return products / jnp.sqrt((key**2).sum(-1)[:, None] * (memory**2).sum(-1) + TINY)


def by_content(key, strength, memory):
    """The weighting [B, N] of rows that are similar to the key (equation 5)."""
    return jax.nn.softmax(strength[:, None] * similarity(key, memory))


def interpolated(content, before, gate):
    """Interpolates between the content weighting and the previous step's weighting, [B, N] (equation 7)."""
    return gate[:, None] * content + (1 - gate[:, None]) * before


def shifted(weighting, shift):
    """The weighting [B, N] shifted along the rows by circular convolution (equation 8)."""
    return sum(shift[:, i, None] * jnp.roll(weighting, move, axis=-1) for i, move in enumerate(SHIFTS))


def sharpened(weighting, power):
    """The weighting [B, N] raised to `power` [B] and normalized to sum one (equation 9)."""
    return jax.nn.softmax(power[:, None] * jnp.log(weighting + TINY))


def address(head: Head, before, memory):
    """The weighting [B, N] of a head (equations 5 to 9)."""
    between = interpolated(by_content(head.key, head.strength, memory), before, head.gate)
    return sharpened(shifted(between, head.shift), head.power)


def read(memory, weighting):
    """The weighted sum [B, W] of the rows (equation 2)."""
    return jnp.einsum("bn,bnw->bw", weighting, memory)


def write(memory, weighting, erase, add):
    """The memory [B, N, W] after a write that first erases, by `erase` [B, W] in [0, 1], and then adds `add` [B, W]
    (equations 3 and 4)."""
    kept = memory * (1 - weighting[:, :, None] * erase[:, None])
    return kept + weighting[:, :, None] * add[:, None]


class Tape(NamedTuple):
    """The state of a neural Turing machine: the memory [B, N, W], the heads' weightings [B, N], the vector last read
    [B, W], and the state of the controller."""

    memory: jax.Array
    reads: jax.Array
    writes: jax.Array
    seen: jax.Array
    controller: Any


class TuringCell(nn.Module):
    """One step, (Tape, input [B, C]) -> (Tape, logits [B, outputs]): the controller receives the input and the vector
    last read, then the write head writes and the read head reads."""

    outputs: int
    units: int
    width: int

    @nn.compact
    def __call__(self, tape: Tape, x):
        sums, recurrent = Recurrent("lstm", self.units, KEEP_BIAS, name="controller").gates(
            jnp.concatenate([x, tape.seen], -1)
        )
        controller = lstm_step(tape.controller, sums, recurrent)
        hidden = controller[0]
        size, width = self.width + 6, self.width
        heads = Dense(2 * size + 2 * width, name="heads")(hidden)
        for_reads, for_writes, erase, add = jnp.split(heads, (size, 2 * size, 2 * size + width), axis=-1)
        writes = address(head(for_writes, width), tape.writes, tape.memory)
        memory = write(tape.memory, writes, jax.nn.sigmoid(erase), jnp.tanh(add))
        reads = address(head(for_reads, width), tape.reads, memory)
        seen = read(memory, reads)
        logits = Dense(self.outputs, name="logits")(jnp.concatenate([hidden, seen], -1))
        return Tape(memory, reads, writes, seen, controller), logits


class NeuralTuringMachine(nn.Module):
    """Sequences [B, T, C] -> logits [B, T, outputs].

    Differences from the paper: both heads start at the first row, the memory starts with a constant, and the first
    vector read is zero; the paper learns the initial head positions and the first vector read.

    Attributes:
      outputs: Number of logits.
      units: Units of the controller.
      rows: Rows of the memory.
      width: Columns of the memory.
    """

    outputs: int
    units: int
    rows: int
    width: int

    def __call__(self, x_BTC, train: bool = False):
        del train
        return self.with_weightings(x_BTC)[0]

    @nn.compact
    def with_weightings(self, x_BTC):
        """Returns (logits [B, T, outputs], read weightings [B, T, N], write weightings [B, T, N])."""
        size = len(x_BTC)

        def step(cell, tape, x):
            tape, logits = cell(tape, x)
            return tape, (logits, tape.reads, tape.writes)

        first = jnp.zeros((size, self.rows), x_BTC.dtype).at[:, 0].set(1)
        zeros = jnp.zeros((size, self.units), x_BTC.dtype)
        blank = jnp.full((size, self.rows, self.width), BLANK, x_BTC.dtype)
        tape = Tape(blank, first, first, jnp.zeros((size, self.width), x_BTC.dtype), (zeros, zeros))
        cell = TuringCell(self.outputs, self.units, self.width, name="cell")
        over_time = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        return over_time(cell, tape, x_BTC)[1]
