"""The only file that knows jit, pmap, meshes and donation."""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from train import processes

AXIS = "data"


def keep_memory() -> None:
    """Where only CPUs can be used, makes glibc keep the memory that a step has freed for the next one.

    A step takes and frees a hundred megabytes and more; given back to the kernel and taken again, they are cleared page
    by page, which took 8 % of a step's time (dcnn, batch 128, two cores). Call it before jax starts its threads.
    """
    if _keeps_memory():
        # glibc's malloc.h: one arena for all threads, no trimming at the heap's end, no mapping of large blocks.
        for option, value in ((-8, 1), (-1, -1), (-4, 0)):
            ctypes.CDLL(None).mallopt(option, value)


def release_memory() -> None:
    """After `keep_memory`, gives free memory back to the system once: what compilation took (DenseNet-BC-100: 600 MB,
    and its steps peaked at 2.7 GB without)."""
    if _keeps_memory():
        ctypes.CDLL(None).malloc_trim(0)


def _keeps_memory() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not importlib.util.find_spec("libtpu") and hasattr(ctypes.CDLL(None), "mallopt")


class DeviceError(ValueError):
    """More devices asked for than there are."""


def start_devices(count: int | None, *, group=(None, None, None)) -> tuple[int, str]:
    """(number of devices to use over all processes, a line that says which). Call it before the first array. `group` is
    (HOST:PORT of the first process, number of processes, this one's index), or None for what a launcher tells.

    On a CPU `count` simulated devices are made, unless the user's XLA_FLAGS already does; None means all accelerators,
    or one CPU device a process. Raises DeviceError if there are fewer, or where the processes don't find each other.
    """
    keep_memory()
    by_user = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count and not by_user:
        jax.config.update("jax_num_cpu_devices", max(1, count // (group[1] or 1)))
    try:
        processes.join(*group)
    except ValueError as error:
        raise DeviceError(" ".join(str(error).split())) from None
    devices, (_, together) = jax.devices(), processes.part()
    cpu = devices[0].platform == "cpu"
    used = count or (len(devices) if not cpu or by_user or together > 1 else 1)

    def check():
        if used > len(devices) or (together > 1 and used != len(devices)):
            where = "this machine has" if together == 1 else f"{together} processes have"
            raise DeviceError(f"--devices={used}: {where} {len(devices)}")

    processes.together(check)
    simulated = " (simulated)" if cpu and used > together else ""
    simulated += f" in {together} processes" if together > 1 else ""
    return used, f"{used} {devices[0].device_kind} device{'s' if used > 1 else ''}{simulated}"


def axis_of(devices: int) -> str | None:
    """The axis name that a step reduces over: none on a single device."""
    return AXIS if devices > 1 else None


def parallelize(step, devices: int, *, donate: bool, divided=None, through: str = "pmap"):
    """The per-device `step(state, batch)` over `devices`: the state is replicated, the batch's rows are divided in
    order, what comes out is replicated. With `donate` the old state's memory is reused.

    Leaves of the state whose path is `divided` are [..., devices, n] outside; the step takes and returns this device's
    [..., n]. `through` is "pmap" or "shard_map": the same program; several processes go through shard_map, each with
    its own rows of the batch.
    """
    through = through if jax.process_count() == 1 else "shard_map"
    argnums = (0,) if donate else ()
    if devices == 1:
        return jax.jit(step, donate_argnums=argnums)
    made: list[Any] = []

    def run(state, batch):
        if not made:
            make = _pmap if through == "pmap" else _shard_map
            made.append(make(step, state, devices=devices, donate_argnums=argnums, divided=divided))
        return made[0](state, batch)

    return run


def _pmap(step, state, *, devices, donate_argnums, divided):
    axes, out = None, None
    if divided:
        axes = jax.tree_util.tree_map_with_path(lambda path, x: x.ndim - 2 if divided(path) else None, state)
        out = (axes, None)
    mapped = jax.pmap(
        step, AXIS, in_axes=(axes, 0), out_axes=out, donate_argnums=donate_argnums, devices=jax.devices()[:devices]
    )
    return lambda state, batch: mapped(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))


def _shard_map(step, state, *, devices, donate_argnums, divided):
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    specs = _specs(state, divided)
    out = (specs, P()) if divided else P()
    mapped = jax.shard_map(_local(step, divided), mesh=mesh, in_specs=(specs, P(AXIS)), out_specs=out, check_vma=False)
    jitted = jax.jit(mapped, donate_argnums=donate_argnums)
    if jax.process_count() == 1:
        return jitted

    def spread(x, spec):
        """A whole array, the same on each process, as one of the mesh."""
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(spread(jax.random.key_data(x), spec))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), lambda index: host[index])

    def run(state, batch):
        leaf_specs = specs if divided else jax.tree.map(lambda _: P(), state)
        state = jax.tree.map(spread, state, leaf_specs)
        rows = NamedSharding(mesh, P(AXIS))
        return jitted(state, jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch))

    return run


def _specs(state, divided):
    if not divided:
        return P()
    return jax.tree_util.tree_map_with_path(
        lambda path, x: P(*[None] * (x.ndim - 2), AXIS) if divided(path) else P(), state
    )


def _local(step, divided):
    """`step` for a device's leaves [..., 1, n] under shard_map, where pmap gives [..., n]."""
    if not divided:
        return step

    def on(tree, change):
        return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if divided(path) else x, tree)

    def run(state, batch):
        state, sums = step(on(state, lambda x: x.squeeze(-2)), batch)
        return on(state, lambda x: jax.numpy.expand_dims(x, -2)), sums

    return run


def compiled_text(step, state, *, batch, devices: int, divided=None) -> str:
    """The compiled program of a step for arrays or shapes, as text; nothing is allocated or run."""
    return (
        _shard_map(step, state, devices=devices, donate_argnums=(), divided=divided)
        .lower(state, batch)
        .compile()
        .as_text()
    )


def check_reductions(step, state, *, batch, devices: int, divided=None) -> None:
    """Traces the step once with the check that every output is equal on all devices, or is a `divided` leaf. Raises
    ValueError, naming the leaf, where a reduction was forgotten. Nothing is compiled."""
    if devices == 1:
        jax.eval_shape(step, state, batch)
        return

    mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch))
    specs = _specs(state, divided)
    shard = functools.partial(jax.shard_map, _local(step, divided), mesh=mesh, in_specs=(specs, P(AXIS)))
    out = jax.eval_shape(shard(out_specs=(specs, P()) if divided else P(), check_vma=False), *shapes)
    replicated = jax.tree.map(lambda _: P(), out)  # A tree of specs: leaves have names.
    checked = shard(out_specs=(specs, replicated[1]) if divided else replicated, check_vma=True)
    try:
        jax.eval_shape(checked, *shapes)
    except ValueError as error:
        leaves = [
            line.strip(" *") for line in str(error).splitlines() if "out_specs is" in line or "out_specs[" in line
        ]
        text = "; ".join(leaves) or " ".join(str(error).split())
        raise ValueError(f"a reduction over devices is missing: {text}") from None
