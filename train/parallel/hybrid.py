"""Krizhevsky's hybrid parallelism (2014, "One weird trick for parallelizing convolutional neural networks").

The convolutions are data-parallel: each of K devices has its rows of the batch and all weights. The dense layers are
model-parallel: each device has 1/K of their columns and processes all rows. In between, the features are gathered, all
at once (scheme a of the paper) or in passes of B/P rows, with an equal number of rows from every device (scheme c).

A network has the methods `features` and `classifier` for the two parts, and the names of the dense layers in
`CLASSIFIER`; it is independent of the sharding. `sharded_logits` computes each dense layer from this device's columns.

Leaves of the dense layers are stored as [..., K, columns / K], with columns zero-padded to a multiple of K; `shard` and
`unshard` convert to this form and back.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from models.layers import batch_rows, dot_general, global_rows, row_keys
from train.averaging import next_average
from train.parallel.data_parallel import pcast_varying
from train.parallel.processes import to_host
from train.precision import at_least_float32, cast_floating
from train.state import State, step_key
from train.task import Task


def is_sharded(path, layers) -> bool:
    """True for a leaf of one of `layers`, in the parameters or in an optimizer's copy of them."""
    return any(getattr(entry, "key", None) in layers for entry in path)


def dense_from(new, rest, layers):
    """Merges two optimizer states: the leaves of `layers` from `new`, all others from `rest`."""
    return jax.tree_util.tree_map_with_path(lambda path, a, b: a if is_sharded(path, layers) else b, new, rest)


def shard(state: State, *, layers, devices: int) -> State:
    """Converts the leaves [..., C] of `layers` to [..., devices, ceil(C / devices)], zero-padded."""

    def leaf(path, x):
        if not is_sharded(path, layers):
            return x
        padding = -x.shape[-1] % devices
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]).reshape(*x.shape[:-1], devices, -1)

    return jax.tree_util.tree_map_with_path(leaf, state)


def unshard(state: State, *, layers, shapes: State) -> State:
    """The inverse of `shard`; `shapes` has the shapes of the unsharded leaves."""

    def leaf(path, x, like):
        if not is_sharded(path, layers):
            return x
        host = to_host(x)  # So that no device has to hold the unsharded leaf.
        return host.reshape(*host.shape[:-2], -1)[..., : like.shape[-1]]

    return jax.tree_util.tree_map_with_path(leaf, state, shapes)


def gather_columns(x, features: int, axis_name: str | None):
    """Gathers [B, features] from the column shards [B, n] of the devices on `axis_name`, and drops the padding at the
    end. Returns x if `axis_name` is None."""
    return lax.all_gather(x, axis_name, axis=-1, tiled=True)[..., :features] if axis_name else x


def sharded_logits(model, variables, features_NF, *, axis, rngs):
    """This device's columns of the logits, padded at the end, from all rows' features, in training mode.

    Args:
      model: The network. Each layer of `CLASSIFIER` is a flax.linen.Dense; its output columns are gathered, except for
        the last layer.
      variables: The network's variables; for the dense layers, only this device's columns.
      features_NF: The features of all rows.
      axis: Mesh axis of the devices; None on one device.
      rngs: The network's random keys.
    """

    def product_of_columns(call, arguments, keywords, context):
        layer = context.module
        if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
            return call(*arguments, **keywords)
        (x,), weights = arguments, layer.variables["params"]
        y = dot_general(x, weights["kernel"], (((1,), (0,)), ((), ()))) + weights["bias"][None]
        return y if layer.name == model.CLASSIFIER[-1] else gather_columns(y, layer.features, axis)

    with nn.intercept_methods(product_of_columns):
        return model.apply(variables, features_NF, train=True, rngs=rngs, method="classifier")


def partial_loss(logits_NC, labels_N, *, classes: int, devices: int, axis, smoothing: float):
    """(partial loss [N], true where the label's logit is the largest [N]) from this device's columns of the logits.

    The partial losses of all devices sum to the cross-entropy: each device has 1/K of the log-sum-exp, and the other
    terms for its own columns. Each device therefore computes the gradient of the full loss with respect to its own
    weights.
    """
    columns = (lax.axis_index(axis) if axis else 0) * logits_NC.shape[-1] + jnp.arange(logits_NC.shape[-1])[None]
    real, is_label = columns < classes, columns == labels_N[:, None]
    total, largest = (
        (functools.partial(lax.psum, axis_name=axis), functools.partial(lax.pmax, axis_name=axis))
        if axis
        else (lambda x: x,) * 2
    )
    logits_NC = jnp.where(real, logits_NC, -jnp.inf)
    top_N = largest(lax.stop_gradient(logits_NC).max(-1))
    normalizer_N = jnp.log(total(jnp.exp(logits_NC - top_N[:, None]).sum(-1))) + top_N
    own_N = jnp.where(is_label, logits_NC, 0.0).sum(-1)
    loss_N = normalizer_N / devices - (1 - smoothing) * own_N
    if smoothing:
        loss_N -= smoothing / classes * jnp.where(real, logits_NC, 0.0).sum(-1)
    label_logit_N1 = total(lax.stop_gradient(own_N))[:, None]
    beaten = (logits_NC < label_logit_N1) | ((logits_NC == label_logit_N1) & (columns > labels_N[:, None]))
    return loss_N, classes - 1 - total((real & beaten).sum(-1)) < 1


def train_step(
    state: State,
    batch,
    *,
    model,
    optimizer,
    prepare,
    smoothing: float,
    axis,
    devices: int,
    passes: int,
    update: str,
    ema: float = 0.0,
    dtype=None,
):
    """One step on one device's rows and columns, (state, batch) -> (state, sums). The state has the form that `shard`
    returns, without the device dimension.

    With `update` "accumulate", the gradients of the passes are summed; the result equals that of one device with the
    whole batch. With "each_pass", the dense layers are updated after each pass, so their batch size is B / passes, and
    the convolutions' learning rate is multiplied by the number of passes (section 4.1 of the paper, variable batch
    size). `ema` is as in gradient_descent.train_step.
    """
    layers, rows = model.CLASSIFIER, batch["label"].shape[0]
    image_key, dropout_key = jax.random.split(step_key(state))
    images = prepare(batch["image"], row_keys(image_key, global_rows(rows, axis)))
    dense = {name: leaf for name, leaf in state.params.items() if name in layers}
    shared = {name: leaf for name, leaf in state.params.items() if name not in layers}
    optimizer = optax.with_extra_args_support(optimizer)
    gather = (lambda x: lax.all_gather(x, axis, tiled=True)) if axis else lambda x: x
    me, part = lax.axis_index(axis) if axis else 0, rows // passes

    # --- The convolutions, forward, on this device's rows.
    def features(params):
        variables = {"params": cast_floating(params, dtype), "batch_stats": pcast_varying(state.batch_stats, axis)}
        found, changed = model.apply(
            variables, cast_floating(images, dtype), train=True, mutable=["batch_stats"], method="features"
        )
        return found, changed.get("batch_stats", {})

    features_BF, features_vjp, batch_stats = jax.vjp(features, pcast_varying(shared, axis), has_aux=True)

    # --- The dense layers, forward and backward, with `part` rows of every device at a time. A pass has every
    # `passes`-th row of the global batch, so that it does not depend on the number of devices.
    def pass_loss(dense, features, labels, first):
        places = (jnp.arange(devices)[:, None] * rows + first + passes * jnp.arange(part)[None]).reshape(-1)
        variables = {"params": cast_floating(dense, dtype)} | batch_rows(places)
        logits = sharded_logits(model, variables, gather(features), axis=axis, rngs={"dropout": dropout_key})
        loss, correct = partial_loss(
            at_least_float32(logits),
            gather(labels),
            classes=model.num_classes,
            devices=devices,
            axis=axis,
            smoothing=smoothing,
        )
        own = lax.dynamic_slice_in_dim(correct.astype(jnp.float32), me * part, part)
        sums = {"loss": loss.sum(), "correct": own.sum(), "count": jnp.ones_like(own).sum()}
        return loss.sum() / (devices * rows), sums

    def updated(dense, opt_state, gradients):
        """Updates the dense layers and their part of the optimizer state; returns both."""
        zeros = jax.tree.map(jnp.zeros_like, shared)
        given = {**zeros, **gradients}, opt_state, {**shared, **dense}
        updates, new = optimizer.update(*given, gradient_norm=None)  # Not clipped: a pass lacks the full gradient.
        return optax.apply_updates(dense, {name: updates[name] for name in dense}), dense_from(new, opt_state, layers)

    def one_pass(carry, inputs):
        dense, opt_state, total = carry
        (_, sums), (of_dense, of_features) = jax.value_and_grad(pass_loss, argnums=(0, 1), has_aux=True)(dense, *inputs)
        if update == "each_pass":  # Scaled to the mean over the rows of the pass.
            dense, opt_state = updated(dense, opt_state, jax.tree.map(lambda g: passes * g, of_dense))
        else:
            total = jax.tree.map(jnp.add, total, of_dense)
        return (dense, opt_state, total), (of_features, sums)

    def by_pass(x):
        return x.reshape(part, passes, *x.shape[1:]).swapaxes(0, 1)

    inputs = by_pass(features_BF), by_pass(batch["label"]), jnp.arange(passes)
    start = dense, state.opt_state, jax.tree.map(jnp.zeros_like, dense)
    (dense_after, opt_state, of_dense), (of_features, sums) = lax.scan(one_pass, start, inputs)

    # --- The convolutions, backward, once; then the reductions over the devices.
    (of_shared,) = features_vjp(of_features.swapaxes(0, 1).reshape(features_BF.shape))
    sums = jax.tree.map(lambda x: x.sum(0), sums)
    dense_square = optax.tree.norm(of_dense) ** 2  # Of this device's columns; zero if each pass updated them.
    if axis:
        of_shared, sums, dense_square = lax.psum((of_shared, sums, dense_square), axis)
        batch_stats = lax.pmean(batch_stats, axis)
    norm = jnp.sqrt(dense_square + optax.tree.norm(of_shared) ** 2)
    sums |= {"gradient_norm": norm}
    given = {**of_shared, **of_dense}, opt_state, {**shared, **dense}
    updates, after = optimizer.update(*given, gradient_norm=norm)
    if update == "each_pass":
        after = dense_from(opt_state, after, layers)
        updates = {name: jax.tree.map(lambda u: passes * u, updates[name]) for name in shared}
        params = {**optax.apply_updates(shared, updates), **dense_after}
    else:
        params = optax.apply_updates(state.params, updates)
    average = next_average(state, params, batch_stats, decay=ema)
    return State(params, batch_stats, after, state.step + 1, state.key, average), sums


def parallelized(task: Task, *, model, devices: int, **options) -> Task:
    """The classification task with this module's training step and its `options`. `model` has `features`, `classifier`
    and `CLASSIFIER`."""
    step, layers = functools.partial(train_step, model=model, devices=devices, **options), model.CLASSIFIER
    if devices == 1:
        return task._replace(train_step=step)
    return task._replace(
        train_step=step,
        is_sharded=functools.partial(is_sharded, layers=layers),
        shard=functools.partial(shard, layers=layers, devices=devices),
        unshard=functools.partial(unshard, layers=layers, shapes=jax.eval_shape(task.init, jax.random.key(0))),
    )
