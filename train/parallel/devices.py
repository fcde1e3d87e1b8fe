"""Starts the devices of a run, on one or several processes."""

import os

import jax

from train.parallel import processes
from train.parallel.host_memory import keep_memory
from train.parallel.processes import DeviceError

AXIS = "data"


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
    processes.join(*group)
    devices, together = jax.devices(), jax.process_count()
    cpu = devices[0].platform == "cpu"
    used = count or (len(devices) if not cpu or by_user or together > 1 else 1)

    with processes.fail_together():
        if used > len(devices) or (together > 1 and used != len(devices)):
            where = "this machine has" if together == 1 else f"{together} processes have"
            raise DeviceError(f"--devices={used}: {where} {len(devices)}")
    simulated = " (simulated)" if cpu and used > together else ""
    simulated += f" in {together} processes" if together > 1 else ""
    return used, f"{used} {devices[0].device_kind} device{'s' if used > 1 else ''}{simulated}"


def axis_of(devices: int) -> str | None:
    """The axis name that a step reduces over: none on a single device."""
    return AXIS if devices > 1 else None
