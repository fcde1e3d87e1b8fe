"""The only file that knows jit, pmap, meshes and donation."""

import functools
import os

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

AXIS = "data"


class DeviceError(ValueError):
    """More devices asked for than there are."""


def start_devices(count: int | None) -> tuple[int, str]:
    """(number of devices to use, a line that says which). Call it before the first array.

    On a CPU `count` simulated devices are made, unless the user's XLA_FLAGS already does; None means all accelerators,
    or one CPU device. Raises DeviceError if there are fewer.
    """
    by_user = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count and not by_user:
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices()
    cpu = devices[0].platform == "cpu"
    used = count or (len(devices) if not cpu or by_user else 1)
    if used > len(devices):
        raise DeviceError(f"--devices={used}: this machine has {len(devices)}")
    simulated = " (simulated)" if cpu and used > 1 else ""
    return used, f"{used} {devices[0].device_kind} device{'s' if used > 1 else ''}{simulated}"


def axis_of(devices: int) -> str | None:
    """The axis name that a step reduces over: none on a single device."""
    return AXIS if devices > 1 else None


def parallelize(step, devices: int, *, donate: bool):
    """The per-device `step(state, batch)` over `devices`: the state is replicated, the batch's rows are divided in
    order, what comes out is replicated. With `donate` the old state's memory is reused."""
    argnums = (0,) if donate else ()
    if devices == 1:
        return jax.jit(step, donate_argnums=argnums)
    mapped = jax.pmap(
        step, AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=argnums, devices=jax.devices()[:devices]
    )

    def run(state, batch):
        return mapped(state, jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch))

    return run


def check_reductions(step, state, *, batch, devices: int) -> None:
    """Traces the step once with the check that every output is equal on all devices. Raises ValueError, naming the
    leaf, where a reduction was forgotten. Nothing is compiled."""
    if devices == 1:
        return

    mesh = AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), (state, batch))
    shard = functools.partial(jax.shard_map, step, mesh=mesh, in_specs=(P(), P(AXIS)))
    out = jax.eval_shape(shard(out_specs=P(), check_vma=False), *shapes)
    checked = shard(out_specs=jax.tree.map(lambda _: P(), out), check_vma=True)  # A tree of specs: leaves have names.
    try:
        jax.eval_shape(checked, *shapes)
    except ValueError as error:
        leaves = [
            line.strip(" *") for line in str(error).splitlines() if "out_specs is" in line or "out_specs[" in line
        ]
        text = "; ".join(leaves) or " ".join(str(error).split())
        raise ValueError(f"a reduction over devices is missing: {text}") from None
