"""Recurrent networks, which read an image row by row: Elman's, long short-term memory, gated recurrent unit."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.errors import ModelError
from models.initializers import glorot_uniform
from models.layers import Dense
from models.model_spec import ModelSpec

State = tuple[jax.Array, ...]  # (h,) or (h, c), [B, H] each.


def rnn_step(state: State, s_BG, u_HG) -> State:
    """h' = tanh(x W + b + h U) (Elman 1990, "Finding structure in time", with tanh)."""
    (h,) = state
    return (jnp.tanh(s_BG + h @ u_HG),)


def lstm_step(state: State, s_BG, u_HG) -> State:
    """c' = f c + i tanh(g), h' = o tanh(c') (Hochreiter & Schmidhuber 1997, "Long short-term memory", with the forget
    gate f of Gers, Schmidhuber & Cummins 2000, "Learning to forget").

    The columns of x W + b + h U belong to the gates i, f and o, which pass through a sigmoid, and to g. The papers
    scale tanh to [-2, 2] at the input of the cell.
    """
    h, c = state
    i, f, o, g = jnp.split(s_BG + h @ u_HG, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru_step(state: State, s_BG, u_HG) -> State:
    """h' = z h + (1 - z) tanh(x W + b + (r h) U) (Cho et al. 2014, "Learning phrase representations", eq. 5 to 8, with
    biases).

    The columns of `s_BG` and `u_HG` belong to the gates r and z, which pass through a sigmoid, and to the candidate.
    """
    (h,) = state
    gates = 2 * h.shape[-1]
    r, z = jnp.split(jax.nn.sigmoid(lax.slice_in_dim(s_BG, 0, gates, axis=1) + h @ u_HG[:, :gates]), 2, axis=-1)
    candidate = jnp.tanh(lax.slice_in_dim(s_BG, gates, None, axis=1) + (r * h) @ u_HG[:, gates:])
    return (z * h + (1 - z) * candidate,)


class Cell(NamedTuple):
    """A cell with H units.

    Attributes:
      step: (state, s, U) -> next state, for s = x W + b [B, parts * H] and U [H, parts * H].
      parts: Number of gates and candidates, each with H columns of s.
      keeps: Index of the gate that keeps the state when open (forget or update gate); None if there is none.
      states: Number of arrays in the state; the first is the output h.
    """

    step: Callable[..., State]
    parts: int = 1
    keeps: int | None = None
    states: int = 1


CELLS = {"rnn": Cell(rnn_step), "lstm": Cell(lstm_step, 4, 1, 2), "gru": Cell(gru_step, 3, 1)}


def unroll(cell: Cell, s_BTG, u_HG):
    """The outputs h [B, T, H] at all time steps, starting from a zero state, for s = x W + b [B, T, parts * H]."""
    zeros = jnp.zeros_like(s_BTG, shape=(s_BTG.shape[0], len(u_HG)))

    def one(state, s_BG):
        state = cell.step(state, s_BG, u_HG)
        return state, state[0]

    _, h_TBH = lax.scan(one, (zeros,) * cell.states, s_BTG.swapaxes(0, 1))
    return h_TBH.swapaxes(0, 1)


def by_part(init: Callable, parts: int) -> Callable:
    """An initializer of kernels [in, parts * H] that draws each part [in, H] with `init`, so that the fan-out is the
    size of one gate, not of the whole kernel."""

    def draw(key, shape, dtype=jnp.float32):
        part = (shape[0], shape[1] // parts)
        return jnp.concatenate([init(jax.random.fold_in(key, i), part, dtype) for i in range(parts)], axis=1)

    return draw


class Recurrent(nn.Module):
    """One recurrent layer, sequences [B, T, D] -> h [B, T, units].

    Kernels of x and h are initialized by Glorot's rule for each gate. Biases are zero, except for the gate that keeps
    the state, whose biases are `keep_bias`.
    """

    cell: str
    units: int
    keep_bias: float = 0.0

    def __call__(self, x_BTD):
        return unroll(CELLS[self.cell], *self.gates(x_BTD))

    @nn.compact
    def gates(self, x):
        """Returns s = x W + b [..., parts * units] and U [units, parts * units] for `Cell.step`, from x [..., D]."""
        cell = CELLS[self.cell]
        init = by_part(glorot_uniform, cell.parts)

        def bias_init(key, shape, dtype=jnp.float32):
            bias = jnp.zeros((cell.parts, self.units), dtype)
            return (bias if cell.keeps is None else bias.at[cell.keeps].set(self.keep_bias)).reshape(shape)

        s = Dense(cell.parts * self.units, kernel_init=init, bias_init=bias_init, name="input")(x)
        return s, self.param("recurrent", init, (self.units, cell.parts * self.units))

    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Multiply-adds of h U for one sequence; `shape` is the output shape [T, units]."""
        return shape[0] * shape[1] * CELLS[self.cell].parts * shape[1]


class RowReader(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes]. An image is a sequence of its rows, from top to bottom.

    | layer  | output for 28x28x1 pixels  | multiply-adds: rnn | lstm      | gru       |
    |--------|----------------------------|--------------------|-----------|-----------|
    | layer1 | 28x128                     | 559,104            | 2,236,416 | 1,677,312 |
    | logits | num_classes, from last h   | 1,280              | 1,280     | 1,280     |

    For 28x28x1 pixels and ten classes there are 21,386 parameters (rnn), 81,674 (lstm) or 61,578 (gru). Raises
    ModelError if `hidden` is empty.

    Attributes:
      num_classes: Number of classes.
      cell: Name of the cell, as in CELLS.
      hidden: Units of the stacked recurrent layers.
      keep_bias: Initial bias of the gate that keeps the state: lstm's forget gate, gru's update gate. With 1, an lstm
        remembers longer at the start of training (Jozefowicz, Zaremba & Sutskever 2015, "An empirical exploration").
    """

    num_classes: int
    cell: str
    hidden: Sequence[int] = (128,)
    keep_bias: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if not self.hidden:
            raise ModelError(f"{self.cell} needs at least one hidden layer, not hidden={tuple(self.hidden)}")
        x_BTD = x.reshape(*x.shape[:2], -1)
        for i, units in enumerate(self.hidden, 1):
            x_BTD = Recurrent(self.cell, units, self.keep_bias, name=f"layer{i}")(x_BTD)
        return Dense(self.num_classes, name="logits")(lax.index_in_dim(x_BTD, -1, 1, keepdims=False))


SPECS = {
    "rnn": ModelSpec(module=functools.partial(RowReader, cell="rnn", keep_bias=0.0)),
    "lstm": ModelSpec(module=functools.partial(RowReader, cell="lstm", keep_bias=1.0)),
    "gru": ModelSpec(module=functools.partial(RowReader, cell="gru", keep_bias=0.0)),
}
