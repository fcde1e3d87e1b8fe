"""The initial state and the gradient descent step of classification, segmentation and reconstruction."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from models.layers import global_rows
from train.averaging import next_average
from train.parallel.data_parallel import pcast_varying
from train.state import State, step_key


def init(key, *, model, optimizer, image_shape, ema: float = 0.0) -> State:
    """The state before the first step, for images [H, W, C]; with `ema`, it has an average."""
    variables = model.init(jax.random.fold_in(key, 2**32 - 1), jnp.zeros((1, *image_shape)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = {"params": params, "batch_stats": batch_stats} if ema else ()
    return State(params, batch_stats, optimizer.init(params), jnp.zeros((), jnp.int32), key, average)


def accumulated(params, batch_stats, batch, key, *, grad_fn, parts: int, axis):
    """The result of `grad_fn` for the whole batch, accumulated over `parts` parts of its rows, one after the other.
    Batch norm uses one part at a time; everything else, including augmentation and dropout, is the same as for the
    whole batch at once. On several devices, the batch is in the order of data.batches.device_order, so that the parts
    are those of a single device."""
    size = batch["label"].shape[0] // parts  # Rows of a part on this device; `total_size`: on all devices.
    total_size = size * (lax.axis_size(axis) if axis else 1)

    def one_part(carry, inputs):
        batch_stats, total = carry
        part, part_rows = inputs
        (loss, (batch_stats, sums)), grads = grad_fn(params, batch_stats, part, key, rows=part_rows)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), (loss, sums)

    batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    start = batch_stats, jax.tree.map(jnp.zeros_like, params)
    places = total_size * jnp.arange(parts)[:, None] + global_rows(size, axis)[None]
    (batch_stats, total), (loss, sums) = lax.scan(one_part, start, (batches, places))
    grads = jax.tree.map(lambda g: g / parts, total)
    return (loss.mean(), (batch_stats, jax.tree.map(lambda x: x.sum(0), sums))), grads


def averaged_statistics(batch_stats, before, axis):
    """Running means and variances averaged over the devices; constants, such as whitening filters, are taken from
    `before`."""

    def leaf(path, new, old):
        return lax.pmean(new, axis) if path[-1].key in ("mean", "var") else old

    return jax.tree_util.tree_map_with_path(leaf, batch_stats, before)


def train_step(state: State, batch, *, optimizer, grad_fn, ema: float = 0.0, axis=None):
    """One step of gradient descent on one device's rows of the batch, (state, batch) -> (state, sums). `ema` is the
    decay of the state's average, 0 if it has none.

    Parameters are cast to varying once, the per-device part of the loss is differentiated, and the reduction over
    `axis` is explicit, which is correct under both pmap and shard_map.
    """
    params, batch_stats = pcast_varying((state.params, state.batch_stats), axis)
    (_, (batch_stats, sums)), grads = grad_fn(params, batch_stats, batch, step_key(state))
    if axis:  # A device's loss is its part of the mean over the global batch, so gradients are summed over the devices.
        grads, sums = lax.psum((grads, sums), axis)
        batch_stats = averaged_statistics(batch_stats, state.batch_stats, axis)
    norm = optax.tree.norm(grads)
    sums |= {"gradient_norm": norm}
    update = optax.with_extra_args_support(optimizer).update  # For any Optax optimizer; some use the norm.
    updates, opt_state = update(grads, state.opt_state, state.params, gradient_norm=norm)
    params = optax.apply_updates(state.params, updates)
    average = next_average(state, params, batch_stats, decay=ema)
    return State(params, batch_stats, opt_state, state.step + 1, state.key, average), sums
