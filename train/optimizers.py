"""optax optimizers and learning-rate schedules, both from plain values."""

from collections.abc import Callable

import optax

SCHEDULES = ("constant", "step", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam")


def schedule(name: str, *, learning_rate: float, steps: int, warmup_steps: int = 0) -> Callable:
    """step -> learning rate. `step` divides by ten at 50 % and 75 % of the steps; `one_cycle` rises to the rate over
    the first quarter and falls linearly to zero. A linear warm-up from zero comes before the others."""
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "step":
        main = optax.piecewise_constant_schedule(learning_rate, {steps // 2: 0.1, steps * 3 // 4: 0.1})
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


def create(name: str, learning_rate: Callable, *, momentum: float, nesterov: bool, weight_decay: float):
    """The optimizer. Weight decay is coupled: weight_decay * w joins the gradient before the momentum."""
    if name == "sgd":
        update = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
    elif name == "adam":
        update = optax.adam(learning_rate)
    else:
        raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")
    return optax.chain(optax.add_decayed_weights(weight_decay), update) if weight_decay else update
