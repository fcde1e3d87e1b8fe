"""Data parallelism: a per-device step is mapped over the devices with pmap or shard_map."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train import leaves
from train.averaging import evaluation_weights
from train.parallel.devices import AXIS
from train.precision import in_full_precision
from train.task import Task


def pcast_varying(tree, axis: str | None):
    """Marks the tree as varying over the mesh axis `axis`, so that its gradient is per device and the step performs the
    reduction explicitly. Returns it unchanged if `axis` is None."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis, to="varying"), tree) if axis else tree


class DeviceSteps:
    """A task's steps mapped over `devices`; each is compiled at its first call."""

    def __init__(self, task: Task, devices: int):
        self._task, self._devices = task, devices
        self._train = {
            step: parallelize(step, devices, donate=True, is_sharded=task.is_sharded)
            for step in (task.train_step, task.early_step)
            if step is not None
        }
        self.evaluate = parallelize(task.eval_step, devices, donate=False)  # (state, batch) -> sums
        constant = task.constant_eval_step
        self.evaluate_constants = parallelize(constant, devices, donate=False) if constant else None

    def train(self, step: int):
        """The training step after `step` finished steps, (state, batch) -> (state, sums)."""
        return self._train[self._task.step_for(step)]

    def shard(self, state):
        """Converts the state to the form that the training steps take."""
        return self._task.shard(state)

    def unshard(self, state):
        """The state with unsharded leaves, as in checkpoints."""
        return self._task.unshard(state)

    def for_evaluation(self, state):
        """The state with unsharded leaves and with the weights for evaluation, replicated on every device. Otherwise,
        they would be copied from the host or from one device to all devices for each batch of an evaluation."""
        state = self._task.unshard(state)
        params, batch_stats = replicate(evaluation_weights(state), self._devices)
        return state._replace(params=params, batch_stats=batch_stats, average=())

    def to_local(self, state):
        """The unsharded state in this process's memory, for use without the other processes."""
        state = self._task.unshard(state)
        return state if jax.process_count() == 1 else leaves.from_host(leaves.to_host(state), state)


def parallelize(step, devices: int, *, donate: bool, is_sharded=None, through: str = "pmap"):
    """Maps the per-device `step(state, batch)` over `devices`: the state is replicated, the batch's rows are split over
    the devices in order, and the outputs are replicated. With `donate`, the memory of the old state is reused. Without
    it, the step is an evaluation or a prediction and computes in full precision, so that scores agree on all platforms.

    Leaves of the state with `is_sharded(path)` are [..., devices, n] outside the step; the step takes and returns this
    device's [..., n]. `through` is "pmap" or "shard_map", which give the same program; several processes always use
    shard_map, each with its own rows of the batch.
    """
    through = through if jax.process_count() == 1 else "shard_map"
    argnums = (0,) if donate else ()
    step = step if donate else in_full_precision(step)
    if devices == 1:
        return jax.jit(step, donate_argnums=argnums)
    made: list[Any] = []

    def run(state, batch):
        if not made:
            make = _pmap if through == "pmap" else _shard_map
            made.append(make(step, state, devices=devices, donate_argnums=argnums, is_sharded=is_sharded))
        return made[0](state, batch)

    return run


def _pmap(step, state, *, devices, donate_argnums, is_sharded):
    axes, out = None, None
    if is_sharded:
        axes = jax.tree_util.tree_map_with_path(lambda path, x: x.ndim - 2 if is_sharded(path) else None, state)
        out = (axes, None)
    mapped = jax.pmap(
        step, AXIS, in_axes=(axes, 0), out_axes=out, donate_argnums=donate_argnums, devices=jax.devices()[:devices]
    )
    return lambda state, batch: mapped(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))


def _shard_map(step, state, *, devices, donate_argnums, is_sharded):
    mesh, specs = _mesh(devices), _specs(state, is_sharded)
    out = (specs, P()) if is_sharded else P()
    mapped = jax.shard_map(
        _local(step, is_sharded), mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=out, check_vma=False
    )
    jitted = jax.jit(mapped, donate_argnums=donate_argnums)
    if jax.process_count() == 1:
        return jitted

    def run(state, batch):
        leaf_specs = specs if is_sharded else jax.tree.map(lambda _: P(), state)
        state = jax.tree.map(lambda x, spec: _to_global_array(x, NamedSharding(mesh, spec)), state, leaf_specs)
        rows = NamedSharding(mesh, P(AXIS))
        return jitted(state, jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch))

    return run


def _mesh(devices: int):
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def _to_global_array(x, sharding: NamedSharding):
    """Converts an unsharded array, equal on all processes, to a global array on the mesh."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_to_global_array(jax.random.key_data(x), sharding))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicate(tree, devices: int):
    """Replicates the tree, whose leaves are unsharded and equal on all processes, on all `devices`."""
    if devices == 1:
        return tree
    sharding = NamedSharding(_mesh(devices), P())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: _to_global_array(x, sharding), tree)


def _specs(state, is_sharded):
    if not is_sharded:
        return P()
    return jax.tree_util.tree_map_with_path(
        lambda path, x: P(*[None] * (x.ndim - 2), AXIS) if is_sharded(path) else P(), state
    )


def _local(step, is_sharded):
    """`step` for a device's leaves [..., 1, n] under shard_map, where pmap gives [..., n]."""
    if not is_sharded:
        return step

    def on(tree, change):
        return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if is_sharded(path) else x, tree)

    def run(state, batch):
        state, sums = step(on(state, lambda x: x.squeeze(-2)), batch)
        return on(state, lambda x: jax.numpy.expand_dims(x, -2)), sums

    return run


def compiled_text(step, state, *, batch, devices: int, is_sharded=None) -> str:
    """The HLO text of the compiled step, for arrays or shapes; nothing is allocated or run."""
    return (
        _shard_map(step, state, devices=devices, donate_argnums=(), is_sharded=is_sharded)
        .lower(state, batch)
        .compile()
        .as_text()
    )


def check_reductions(step, state, *, batch, devices: int, is_sharded=None) -> None:
    """Traces the step and checks that every output is equal on all devices or is sharded. Raises ValueError, naming the
    leaf, if a reduction is missing. Nothing is compiled."""
    if devices == 1:
        jax.eval_shape(step, state, batch)
        return

    mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch))
    specs = _specs(state, is_sharded)
    shard = functools.partial(jax.shard_map, _local(step, is_sharded), mesh=mesh, in_specs=(specs, P(AXIS)))
    out = jax.eval_shape(shard(out_specs=(specs, P()) if is_sharded else P(), check_vma=False), *shapes)
    replicated = jax.tree.map(lambda _: P(), out)  # A tree of specs, so that errors name leaves.
    checked = shard(out_specs=(specs, replicated[1]) if is_sharded else replicated, check_vma=True)
    try:
        jax.eval_shape(checked, *shapes)
    except ValueError as error:
        named = [line.strip(" *") for line in str(error).splitlines() if "out_specs is" in line or "out_specs[" in line]
        text = "; ".join(named) or " ".join(str(error).split())
        raise ValueError(f"a reduction over devices is missing: {text}") from None
