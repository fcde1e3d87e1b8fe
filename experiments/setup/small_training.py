"""A plain training loop for small networks on arrays in memory: no checkpoints, no metrics files, one device."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data import batches
from train.task import Task


def train(
    task: Task,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    every: int = 0,
    watch: Callable[[int, Any], None] | None = None,
) -> Any:
    """Trains for `steps` steps and returns the final state.

    `watch(step, state)` is called at step 0, after every `every` steps (never in between if 0), and at the end. Raises
    FloatingPointError if the loss, checked every 20 steps, is not finite.
    """
    state, step = jax.jit(task.init)(jax.random.key(seed)), jax.jit(task.train_step)
    source = batches.train_batches(images, labels, batch_size=batch_size, seed=seed)
    for done in range(steps + 1):
        if watch is not None and (done == 0 or done == steps or (every > 0 and done % every == 0)):
            watch(done, state)
        if done == steps:
            return state
        state, sums = step(state, next(source))
        if done % 20 == 0:
            jax.block_until_ready(sums)
            if not np.isfinite(float(sums["loss"])):
                raise FloatingPointError(f"the loss is {float(sums['loss'])} at step {done + 1}")
