"""Training with several processes: how they connect, and how they exchange values.

Every process runs the same program. Only process 0 writes to the run's folder; the others receive the state that it has
restored.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from train import leaves
from train.signals import Stop

WAIT = 300  # Timeout in seconds for connecting the processes.
AGREE_EVERY = 10


class DeviceError(Exception):
    """The requested devices or processes can't be used: fewer are available, or the flags are inconsistent."""


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connects to the other processes, if there are any. They are given by the arguments, or JAX detects them in a
    SLURM step, a TPU pod or an indexed Kubernetes job. Must be called before the first array is created.

    Raises DeviceError if the arguments are incomplete or invalid, and ConnectionError if connecting fails. If the other
    processes don't respond, the process exits with status 1; a signal also ends it. No work is lost, because training
    has not started; JAX itself would abort the process with a C++ stack trace.
    """
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise DeviceError(f"--coordinator_address={coordinator}: must be HOST:PORT")
    given = coordinator, count, index
    if any(value is not None for value in given):
        if coordinator is None or count is None or index is None or not 0 <= index < count:
            raise DeviceError(
                f"--coordinator_address={coordinator} --num_processes={count} --process_id={index}: all three are "
                "needed, with 0 <= process_id < num_processes"
            )
    elif not _launched():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    for number in (signal.SIGTERM, signal.SIGINT):  # A Python handler would only run after the call.
        signal.signal(number, signal.SIG_DFL)
    where = f"at {coordinator}" if coordinator else "given by the launcher"
    _announce_wait(coordinator, count, index)
    limit = _after(WAIT, _give_up, f"the processes {where} did not connect within {WAIT} s")
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=10 * WAIT)
    except ValueError as error:
        raise DeviceError(" ".join(str(error).split())) from None
    except RuntimeError as error:
        raise ConnectionError(f"cannot connect the processes: {' '.join(str(error).split())}") from None
    finally:
        limit.cancel()


def _announce_wait(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Prints which processes this one waits for, and where. It can't use messages.say, which needs the devices."""
    if count == 1:
        return
    whom = "process 0" if index else "the other process" if count == 2 else "the other processes"
    where = f" at {coordinator}" if coordinator else " given by the launcher"
    own = f"process {index} of {count}: " if coordinator else ""
    with contextlib.suppress(BrokenPipeError):
        print(f"{own}waiting up to {WAIT} s for {whom}{where}", file=sys.stderr, flush=True)


def leave_soon(status: int) -> None:
    """Ends this process soon after a failure that the other processes don't share. Otherwise JAX would wait for them at
    exit, and they would wait for this process. If all processes fail alike, they exit earlier."""
    if jax.distributed.is_initialized():
        _after(10, os._exit, status)


def _after(seconds: float, function: Callable[..., Any], *arguments: Any) -> threading.Timer:
    limit = threading.Timer(seconds, function, arguments)
    limit.daemon = True
    limit.start()
    return limit


def _give_up(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(1)


def _launched() -> bool:
    """Whether a launcher has started more than one process."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return "," in hosts or (tasks.isdecimal() and int(tasks) > 1) or job


def index_and_count() -> tuple[int, int]:
    """(index of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_main() -> bool:
    return jax.process_index() == 0


def max_over_processes(number: int) -> int:
    """The maximum of `number` over all processes."""
    return int(number) if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(number)).max())


def stop_requested(stop: Stop, step: int) -> int:
    """The number of a signal that any process received, or 0. Several processes compare only every AGREE_EVERY steps,
    because the comparison waits for the devices."""
    alone = jax.process_count() == 1
    return max_over_processes(stop.number) if alone or step % AGREE_EVERY == 0 else 0


def stop_requested_locally(stop: Stop) -> int:
    """The number of a signal that ends an evaluation, or 0. With several processes it is always 0, because none may end
    the evaluation without the others."""
    return stop.number if jax.process_count() == 1 else 0


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """A block that every process runs. If it fails on one process, all stop, the others with ConnectionError, so that
    none waits for a process that has ended."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if max_over_processes(failure is not None) and failure is None:
        raise ConnectionError("another process of this run failed; see its error message")
    if failure is not None:
        raise failure


def broadcast_json(value: Any) -> Any:
    """Returns process 0's value on all processes."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, len(text))] = np.frombuffer(text, np.uint8)[:length]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def single_process_options(make: Callable[..., Any]) -> Any:
    """Creates options with `make` that keep a library from synchronizing this process with the others."""
    index, count = index_and_count()
    if count == 1:
        return make()
    return make(primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index))


def broadcast_state(state: Any, record: dict) -> tuple[Any, dict]:
    """Returns process 0's state and record on all processes; the others pass a state of the same shapes."""
    if jax.process_count() == 1:
        return state, record
    host = multihost_utils.broadcast_one_to_all(leaves.to_host(state))
    return leaves.from_host(jax.tree.map(np.asarray, host), state), broadcast_json(record)


def to_host(x) -> np.ndarray:
    """The unsharded array, on every process, regardless of its sharding. All processes must call it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
