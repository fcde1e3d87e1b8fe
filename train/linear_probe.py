"""Linear probes: only the head of a network is trained. The backbone runs in evaluation mode, without dropout and with
the running averages of batch norm, and neither its weights nor its batch statistics change.

`is_frozen(path)` is true for the parameters of the backbone, by their path in the tree of parameters.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from train.state import State
from train.task import Task


class Probe(NamedTuple):
    """Takes the place of a Linen module in a task: in training, the backbone's parameters are constants, so no backward
    pass through it is computed."""

    module: nn.Module
    is_frozen: Callable[[Any], bool]

    def init(self, *arguments, **options):
        return self.module.init(*arguments, **options)

    def apply(self, variables, images, *, train: bool, **options):
        """As Module.apply. In training, also returns the batch statistics, unchanged."""
        if not train:
            return self.module.apply(variables, images, train=False, **options)

        def constant(path, leaf):
            return jax.lax.stop_gradient(leaf) if self.is_frozen(path) else leaf

        params = jax.tree_util.tree_map_with_path(constant, variables["params"])
        outputs = self.module.apply({**variables, "params": params}, images, train=False)
        return outputs, {"batch_stats": variables["batch_stats"]}


def of_head(optimizer: optax.GradientTransformation, is_frozen) -> optax.GradientTransformationExtraArgs:
    """The optimizer for the head only. It has no state for the backbone, whose updates are zero."""

    def labels(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: "frozen" if is_frozen(path) else "trained", params)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def train_step(state: State, batch, *, step, is_frozen):
    """The training step `step`, after which the backbone and its average are bit-identical."""
    new, sums = step(state, batch)
    # An added zero would change -0.0, and an average of statistics over the devices may round.

    def kept(old, updated):
        return jax.tree_util.tree_map_with_path(lambda path, a, b: a if is_frozen(path) else b, old, updated)

    new = new._replace(params=kept(state.params, new.params), batch_stats=state.batch_stats)
    if state.average:
        params = kept(state.average["params"], new.average["params"])
        new = new._replace(average={"params": params, "batch_stats": state.average["batch_stats"]})
    return new, sums


def probing(task: Task, is_frozen) -> Task:
    """The task, created with a `Probe` and the optimizer `of_head`, with the training steps of this module."""

    def kept(step):
        return functools.partial(train_step, step=step, is_frozen=is_frozen) if step else None

    return task._replace(train_step=kept(task.train_step), early_step=kept(task.early_step))
