"""Starts the devices of a run, on one or several processes."""

import os
import pathlib
import re

import jax

from train.parallel import processes
from train.parallel.host_memory import keep_memory
from train.parallel.processes import DeviceError

AXIS = "data"
# XLA's GPU compiler then uses no atomic additions and selects algorithms without measuring their speed.
DETERMINISTIC = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")


def make_deterministic() -> None:
    """Adds the flags for deterministic programs on GPUs to those of the variable XLA_FLAGS, which XLA reads when the
    devices start: must be called before. Raises DeviceError if the user's flags say the opposite."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # The name of a file that contains the flags.
        try:
            flags = pathlib.Path(flags).read_text()
        except (OSError, UnicodeDecodeError):
            raise DeviceError(f"XLA_FLAGS={flags}: must be flags, --NAME=VALUE, or a readable file of flags") from None
    for name in DETERMINISTIC:
        given = re.findall(rf"--{name}(?:=(\w*))?(?=\s|$)", flags)
        if given and given[-1].lower() in ("false", "0"):
            raise DeviceError(f"--deterministic contradicts --{name}={given[-1]} in XLA_FLAGS; remove one of them")
        if not given:
            flags = f"{flags} --{name}=true".strip()
    os.environ["XLA_FLAGS"] = flags


def start_devices(count: int | None, *, group=(None, None, None)) -> tuple[int, str]:
    """Returns (number of devices to use over all processes, a description of them). Must be called before the first
    array is created. `group` is (HOST:PORT of process 0, number of processes, index of this process); None values are
    detected from the launcher.

    On a CPU, `count` simulated devices are created, unless the user's XLA_FLAGS already do so; None means all
    accelerators, or one CPU device per process. Raises DeviceError if there are fewer devices, and the errors of
    `processes.join`.
    """
    keep_memory()
    by_user = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count and not by_user:
        jax.config.update("jax_num_cpu_devices", max(1, count // (group[1] or 1)))
    processes.join(*group)
    devices, process_count = jax.devices(), jax.process_count()
    cpu = devices[0].platform == "cpu"
    used = count or (len(devices) if not cpu or by_user or process_count > 1 else 1)

    with processes.fail_together():
        if used > len(devices) or (process_count > 1 and used != len(devices)):
            accepted = f"at most {len(devices)}, the number of devices on this machine"
            if process_count > 1:
                accepted = f"{len(devices)}, the number of devices of all {process_count} processes"
            raise DeviceError(f"--devices={used}: must be {accepted}")
    simulated = " (simulated)" if cpu and used > process_count else ""
    simulated += f" in {process_count} processes" if process_count > 1 else ""
    return used, f"{used} {devices[0].device_kind} device{'s' if used > 1 else ''}{simulated}"


def axis_of(devices: int) -> str | None:
    """The name of the mesh axis that a step reduces over; None on a single device."""
    return AXIS if devices > 1 else None
