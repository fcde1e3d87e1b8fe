"""Optax optimizers and learning-rate schedules, created from plain values."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from optax import contrib

SCHEDULES = ("constant", "step", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
# RMS of an update's elements before the learning rate (Liu et al. 2025, "Muon is scalable", section 2.2).
MUON_RMS = 0.2


def schedule(
    name: str,
    *,
    learning_rate: float,
    steps: int,
    warmup_steps: int = 0,
    drops: Sequence[float] = (0.5, 0.75),
    drop_factor: float = 10.0,
) -> Callable:
    """Returns a function step -> learning rate. `step` divides the rate by `drop_factor` after each fraction of the
    steps in `drops`; `one_cycle` rises linearly to the rate over the first quarter and falls linearly to zero. A linear
    warmup from zero precedes the other schedules."""
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "step":
        at = Counter(round(steps * drop) for drop in drops)  # Two drops of a short run may coincide.
        scales = {step: (1 / drop_factor) ** count for step, count in at.items()}
        main = optax.piecewise_constant_schedule(learning_rate, scales)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, max(1, steps - warmup_steps))
    elif name == "one_cycle":
        peak = max(1, steps // 4)
        points = [optax.linear_schedule(learning_rate / peak, learning_rate, peak)]
        return optax.join_schedules([*points, optax.linear_schedule(learning_rate, 0.0, max(1, steps - peak))], [peak])
    else:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return main
    shifted = main if name != "step" else lambda step: main(step + warmup_steps)
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), shifted], [warmup_steps])


def _matrices(params):
    """Each kernel [..., outputs] as a matrix [inputs, outputs]; None for vectors, which Adam updates."""
    return jax.tree.map(
        lambda w: contrib.MuonDimensionNumbers(tuple(range(w.ndim - 1)), w.ndim - 1) if w.ndim > 1 else None, params
    )


def clip_by_norm(largest: float) -> optax.GradientTransformationExtraArgs:
    """Scales a gradient whose global norm exceeds `largest` down to that norm (Pascanu, Mikolov & Bengio 2013, "On the
    difficulty of training recurrent neural networks", algorithm 1). It is optax.clip_by_global_norm, except that the
    norm is passed to `update` as `gradient_norm`: if weights are sharded, only the step can compute it."""

    def update(updates, state, params=None, *, gradient_norm, **rest):
        del params, rest
        factor = jnp.where(gradient_norm > largest, largest / gradient_norm, 1.0)
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def create(
    name: str,
    learning_rate: Callable,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    groups: Sequence[tuple[str, float, float]] = (),
    clip_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer. Its `update` takes `gradient_norm` in addition to gradients, state and parameters. Unless
    `clip_norm` is 0, gradients with a larger norm are first scaled down to it.

    muon orthogonalizes each momentum matrix (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
    networks") and scales it to about the size of Adam's step; vectors are updated by Adam with Nesterov momentum.
    Weight decay is coupled for sgd and adam: weight_decay * w is added to the gradient before the momentum. For adamw
    (Loshchilov & Hutter 2019, "Decoupled weight decay regularization") it is decoupled: learning rate * weight_decay *
    w is subtracted from the weights in addition to the step. The same holds for muon: its step does not depend on the
    size of the gradient, so coupled decay would hardly shrink a weight (Liu et al., section 2.2).

    `groups` are (pattern, rate factor, decay factor). The first group whose regular expression is found in a leaf's
    path, such as block/conv/kernel, multiplies that leaf's learning rate and weight decay; if none is found, both
    factors are 1.
    """
    if name == "sgd":
        update = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
    elif name == "adam":
        update = optax.adam(learning_rate, b1=momentum)
    elif name == "adamw":
        update = optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay)
    elif name == "muon":
        update = contrib.muon(
            learning_rate,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=MUON_RMS,
        )
    else:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    coupled = name in ("sgd", "adam")
    clip = [clip_by_norm(clip_norm)] if clip_norm else []
    if not groups:  # A chain even if nothing is added to the gradient, to match the states of older checkpoints.
        join = optax.add_decayed_weights(weight_decay) if coupled else optax.identity()
        before = [*clip, join] if weight_decay else clip
        return optax.chain(*before, update) if before else optax.with_extra_args_support(update)

    def factors(path) -> tuple[float, float]:
        leaf = "/".join(str(entry.key) for entry in path)
        return next(((rate, decay) for pattern, rate, decay in groups if re.search(pattern, leaf)), (1.0, 1.0))

    def decayed(updates, params):
        return jax.tree_util.tree_map_with_path(
            lambda path, g, w: g + weight_decay * factors(path)[1] * w, updates, params
        )

    def decoupled(updates, state, params):
        """Calls the optimizer with the weights times their decay factors; only weight decay uses the weights."""
        return update.update(updates, state, jax.tree_util.tree_map_with_path(lambda p, w: factors(p)[1] * w, params))

    def scaled(updates, params):
        del params
        return jax.tree_util.tree_map_with_path(lambda path, g: g * factors(path)[0], updates)

    if not coupled:
        whole = optax.GradientTransformation(update.init, decoupled)
        return optax.chain(*clip, optax.identity(), whole, optax.stateless(scaled))
    return optax.chain(*clip, optax.stateless(decayed), update, optax.stateless(scaled))
