"""Sums of metrics, added up on the host in float64 and divided once; and the wall-clock time of a run."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def add(total, sums):
    """The tree `total`, or None, plus a tree of sums, on the host in float64."""
    host = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
    return host if total is None else jax.tree.map(np.add, total, host)


def check_finite(sums, step: int) -> None:
    """Raises FloatingPointError if the loss, or the gradient norm of a training step, is not finite."""
    for name, what in (("loss", "loss"), ("gradient_norm", "norm of the gradient")):
        if not np.isfinite(sums.get(name, 0.0)):
            advice = "earlier checkpoints are kept; try a lower --learning_rate in a new --workdir"
            raise FloatingPointError(f"the {what} is {float(sums[name])} at step {step}; {advice}")


class TrainingMetrics:
    """The sums over the training steps since the last row of metrics.csv."""

    def __init__(self, stored: dict[str, float] | None):
        self.sums: Any = jax.tree.map(np.float64, stored)
        self._pending: tuple[int, Any] | None = None

    def push(self, step: int, sums) -> None:
        """Stores the sums of `step`, which was just dispatched, and fetches the sums of the previous step, so that the
        host never waits for the step that the devices are computing."""
        self.collect()
        self._pending = step, sums

    def collect(self) -> None:
        """Waits for the last step's sums. Raises FloatingPointError if the step diverged."""
        if self._pending is not None:
            (step, sums), self._pending = self._pending, None
            check_finite(sums, step)
            self.sums = add(self.sums, {name: value for name, value in sums.items() if name != "gradient_norm"})

    def to_json(self) -> dict[str, float] | None:
        return None if self.sums is None else jax.tree.map(float, self.sums)


class Timer:
    """Measures the seconds of a run and of its compilations, and the images per second of its training steps.

    Evaluations, checkpoints and compilations are not part of an interval, so they do not affect images per second.
    """

    def __init__(self, seconds_before: float):
        """`seconds_before` is the time that the run took before it was resumed."""
        self._before, self._started = seconds_before, time.perf_counter()
        self._compiled: set[Any] = set()
        self.compile_seconds = 0.0
        self._images = 0
        self._interval: float | None = None
        self._total_images, self._total_seconds = 0, 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def is_new(self, function) -> bool:
        """Whether the function has not been called yet; its first call compiles it."""
        return function not in self._compiled

    def call(self, function, *arguments):
        """Returns `function(*arguments)`; the seconds of the first call count as compilation."""
        start, new = time.perf_counter(), self.is_new(function)
        result = function(*arguments)
        if new:
            self._compiled.add(function)
            self.compile_seconds += time.perf_counter() - start
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the seconds of a block, such as saving a checkpoint, from the interval."""
        start = time.perf_counter()
        yield
        if self._interval is not None:
            self._interval += time.perf_counter() - start

    def start_interval(self) -> None:
        self._images, self._interval = 0, time.perf_counter()

    def count(self, images: int) -> None:
        self._images += images

    def images_per_second(self) -> dict[str, float]:
        """{"images_per_second": the rate since the start of the interval}; {} if no images were counted."""
        if self._interval is None or not self._images:
            return {}
        seconds = time.perf_counter() - self._interval
        self._total_images, self._total_seconds = self._total_images + self._images, self._total_seconds + seconds
        return {"images_per_second": round(self._images / seconds, 1)}

    def measured(self) -> tuple[int, float]:
        """(images, seconds) of all intervals so far, including the current one."""
        current = 0.0 if self._interval is None else time.perf_counter() - self._interval
        return self._total_images + self._images, self._total_seconds + current

    def mean_images_per_second(self) -> float:
        """The mean over all intervals whose rate was computed; 0 if there are none."""
        return self._total_images / self._total_seconds if self._total_seconds else 0.0
