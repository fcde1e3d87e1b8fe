"""Soft-margin support-vector machines: stochastic gradient descent in the primal, pairwise steps in the dual.

Both minimize |w|^2 / 2 + cost * sum of max(0, 1 - y f(x)) over the examples, with labels y of -1 or 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.support_vector import linear_scores


class PrimalState(NamedTuple):
    """Weights [D + 1, K] of K linear machines, whose last row are the biases; their average over the steps; the number
    [] of finished steps."""

    weights: jax.Array
    average: jax.Array
    step: jax.Array


def primal_init(inputs: int, machines: int) -> PrimalState:
    zeros = jnp.zeros((inputs + 1, machines))
    return PrimalState(zeros, zeros, jnp.zeros((), jnp.int32))


def primal_objective(weights_DK, x_BD, y_BK, cost):
    """The objective of each machine [K]. The bias is penalized too, which makes the objective strongly convex."""
    hinge = jnp.maximum(0, 1 - y_BK * linear_scores(weights_DK, x_BD))
    return jnp.sum(weights_DK**2, 0) / 2 + cost * hinge.sum(0)


def primal_step(state: PrimalState, batch, *, cost: float, examples: int) -> tuple[PrimalState, dict]:
    """One subgradient step on {"input": [B, D], "label": [B, K]}, drawn from `examples` examples.

    Divided by cost * examples, the objective is lambda |w|^2 / 2 + the mean hinge loss, lambda = 1 / (cost * examples).
    Step t has rate 2 / (lambda (t + 1)), and the average weights each iterate by t (Lacoste-Julien, Schmidt & Bach
    2012, "A simpler approach to obtaining an O(1/t) convergence rate"). "loss" is the hinge loss, summed over the batch
    and averaged over the machines.
    """
    x, y = batch["input"], batch["label"]
    strength, t = 1 / (cost * examples), state.step + 1
    margins = y * linear_scores(state.weights, x)
    inside = jnp.where(margins < 1, y, 0.0)
    gradient = jnp.concatenate([x.T @ inside, inside.sum(0)[None]]) / -len(x)
    weights = state.weights - 2 / (strength * (t + 1)) * (strength * state.weights + gradient)
    average = state.average + 2 / (t + 1) * (weights - state.average)
    sums = {"loss": jnp.maximum(0, 1 - margins).mean(1).sum(), "count": jnp.asarray(len(x), jnp.float32)}
    return PrimalState(weights, average, t), sums


class DualState(NamedTuple):
    """Coefficients y alpha [N], and each example's label minus its score without bias [N]."""

    coefficients: jax.Array
    excess: jax.Array


def dual_init(label_N) -> DualState:
    return DualState(jnp.zeros(len(label_N)), jnp.asarray(label_N, jnp.float32))


def dual_objective(state: DualState, label_N):
    """sum of alpha - |w|^2 / 2, which is to be maximized."""
    scores = label_N - state.excess
    return state.coefficients @ label_N - state.coefficients @ scores / 2


def _free(state: DualState, label_N, cost):
    """The excess of the examples whose coefficient can increase (-inf for others), the excess of the examples whose
    coefficient can decrease (inf for others), and the upper and lower bounds of the coefficients."""
    upper, lower = jnp.maximum(0, cost * label_N), jnp.minimum(0, cost * label_N)
    growing = jnp.where(state.coefficients < upper, state.excess, -jnp.inf)
    return growing, jnp.where(state.coefficients > lower, state.excess, jnp.inf), upper, lower


def dual_step(state: DualState, batch, *, cost) -> tuple[DualState, dict]:
    """Optimizes one pair of coefficients exactly, the pair that improves the objective most: sequential minimal
    optimization (Platt 1998), with the pair selection of Fan, Chen & Lin 2005, "Working set selection using second
    order information".

    The batch is {"kernel": [N, N], "label": [N]}. The pair's sum does not change, so the coefficients always sum to 0.
    "gap" is the violation of the optimality conditions before the step; it is 0 at the optimum.
    """
    kernel, label = batch["kernel"], batch["label"]
    growing, falling, upper, lower = _free(state, label, cost)
    i = jnp.argmax(growing)
    ahead = growing[i] - falling  # -inf if the coefficient can't decrease.
    diagonal = jnp.diagonal(kernel)
    curvature = jnp.maximum(kernel[i, i] + diagonal - 2 * kernel[i], 1e-9)
    j = jnp.argmax(jnp.where(ahead > 0, ahead**2 / curvature, -jnp.inf))
    j = jnp.where(ahead[j] > 0, j, i)
    room = jnp.minimum(upper[i] - state.coefficients[i], state.coefficients[j] - lower[j])
    move = jnp.where(j == i, 0.0, jnp.minimum(ahead[j] / curvature[j], room))
    # A coefficient that reaches its bound is set to it exactly; a rounded value would count as free.
    up = jnp.minimum(state.coefficients[i] + move, upper[i])
    down = jnp.maximum(state.coefficients[j] - move, lower[j])
    coefficients = jnp.where(j == i, state.coefficients, state.coefficients.at[i].set(up).at[j].set(down))
    excess = state.excess - move * (kernel[i] - kernel[j])
    return DualState(coefficients, excess), {"gap": jnp.maximum(growing[i] - falling.min(), 0)}


def dual_bias(state: DualState, label_N, cost):
    """The bias []: the midpoint between the largest excess of the coefficients that can increase and the smallest of
    those that can decrease; the two are equal at the optimum."""
    growing, falling, _, _ = _free(state, label_N, cost)
    return (growing.max() + falling.min()) / 2
