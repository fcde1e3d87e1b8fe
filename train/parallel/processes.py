"""Several processes that train together: how they find each other, and what they tell each other.

Every process runs the same program. Process 0 alone writes the run's folder; the others follow what it restored.
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

WAIT = 300  # Seconds for the processes to find each other.
AGREE_EVERY = 10


class DeviceError(Exception):
    """The devices or processes asked for can't be used: more than there are, or flags that don't fit together."""


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Connects to the other processes, if there are any: those that the arguments name, or those of a SLURM step, a TPU
    pod or an indexed Kubernetes job, which jax finds by itself. Call it before the first array.

    Raises DeviceError where the arguments are incomplete. A process whose others don't answer ends with status 1, or at
    a signal: nothing is begun, and jax would end it too, with a stack of C++.
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
    for number in (signal.SIGTERM, signal.SIGINT):  # A handler in Python would wait for the end of the call.
        signal.signal(number, signal.SIG_DFL)
    where = f"at {coordinator}" if coordinator else "that the launcher named"
    _announce_wait(coordinator, count, index)
    limit = _after(WAIT, _give_up, f"the processes {where} did not find each other in {WAIT} s")
    try:
        jax.distributed.initialize(coordinator, count, index, initialization_timeout=10 * WAIT)
    except ValueError as error:
        raise DeviceError(" ".join(str(error).split())) from None
    except RuntimeError as error:
        raise ConnectionError(f"the processes don't find each other: {' '.join(str(error).split())}") from None
    finally:
        limit.cancel()


def _announce_wait(coordinator: str | None, count: int | None, index: int | None) -> None:
    """One line says for whom this process waits, and where. Not by messages.say, which needs the devices."""
    if count == 1:
        return
    whom = "process 0" if index else "the other process" if count == 2 else "the other processes"
    where = f" at {coordinator}" if coordinator else " that the launcher named"
    own = f"process {index} of {count}: " if coordinator else ""
    with contextlib.suppress(BrokenPipeError):
        print(f"{own}waiting up to {WAIT} s for {whom}{where}", file=sys.stderr, flush=True)


def leave_soon(status: int) -> None:
    """After a failure that the other processes don't share: at its end jax would wait for them, and they for this one.
    Those that fail alike are through with it before."""
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
    """True where a launcher has started more than one process."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    job = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    return "," in hosts or (tasks.isdecimal() and int(tasks) > 1) or job


def index_and_count() -> tuple[int, int]:
    """(this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_main() -> bool:
    return jax.process_index() == 0


def max_over_processes(number: int) -> int:
    """The largest of all processes' numbers."""
    return int(number) if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(number)).max())


def stop_requested(stop: Stop, step: int) -> int:
    """The number of a signal that any process got, or 0. Several processes ask each other every AGREE_EVERY steps only:
    to ask means to wait for the devices."""
    alone = jax.process_count() == 1
    return max_over_processes(stop.number) if alone or step % AGREE_EVERY == 0 else 0


def stop_requested_locally(stop: Stop) -> int:
    """The number of a signal that ends an evaluation, or 0: of several processes none may end it without the others."""
    return stop.number if jax.process_count() == 1 else 0


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """A block that every process runs. Where it fails on one, all stop, the others with ConnectionError, so that none
    waits for one that is gone."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if max_over_processes(failure is not None) and failure is None:
        raise ConnectionError("another process of this run has stopped; its own message says why")
    if failure is not None:
        raise failure


def broadcast_json(value: Any) -> Any:
    """Process 0's value, on all."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: min(length, len(text))] = np.frombuffer(text, np.uint8)[:length]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def single_process_options(make: Callable[..., Any]) -> Any:
    """The options `make` of a library that synchronises processes, by which it leaves this one to itself."""
    index, count = index_and_count()
    if count == 1:
        return make()
    return make(primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index))


def broadcast_state(state: Any, record: dict) -> tuple[Any, dict]:
    """Process 0's state and record, on all; the others give a state of the same shapes."""
    if jax.process_count() == 1:
        return state, record
    host = multihost_utils.broadcast_one_to_all(leaves.to_host(state))
    return leaves.from_host(jax.tree.map(np.asarray, host), state), broadcast_json(record)


def to_host(x) -> np.ndarray:
    """The whole array, on every process, wherever its parts lie. All processes must call it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
