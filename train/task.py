"""The interface between a task (classification, segmentation, generation, reconstruction) and the training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """Pure functions. Sums are trees of arrays, which the loop adds over steps or batches, on the host in float64."""

    name: str
    init: Callable[..., Any]  # key -> State
    train_step: Callable[..., Any]  # (state, batch) -> (state, sums), which include "loss" and "gradient_norm"
    eval_step: Callable[..., Any]  # (state, batch) -> sums, which include "count"
    compute_metrics: Callable[..., dict[str, float]]  # sums -> metrics
    predict_step: Callable[..., Any]  # (state, batch) -> outputs of each example
    metrics: tuple[str, ...]  # the keys of `compute_metrics` for an evaluation's sums, for metrics.csv
    train_metrics: tuple[str, ...]  # its keys for a training step's sums
    best: tuple[str, str]  # (metric, "max" or "min")
    # (state, stopped) -> the state used for the evaluation and for the following steps; unchanged if stopped() reports
    # a signal.
    prepare_eval: Callable[..., Any] | None = None
    # The training step of the first `early_steps` steps, see step_for. (A branch inside one compiled step would cost a
    # third of the speed on CPUs.)
    early_step: Callable[..., Any] | None = None
    early_steps: int = 0
    min_eval_batch_size: int = 250
    # (state, batch) -> sums that depend only on the state's key. They are computed at the first evaluation after a
    # start and merged into the sums of every evaluation.
    constant_eval_step: Callable[..., Any] | None = None
    details: Callable[..., dict] = lambda sums: {}  # an evaluation's sums -> additional entries of summary.json
    # Hybrid parallelism: is_sharded(path) is true for leaves that are sharded over the devices, [..., devices, n];
    # shard and unshard convert a state. Checkpoints and evaluations use the unsharded state.
    is_sharded: Callable[[Any], bool] | None = None
    shard: Callable[..., Any] = lambda state: state
    unshard: Callable[..., Any] = lambda state: state

    def step_for(self, step: int) -> Callable[..., Any]:
        """The training step after `step` finished steps."""
        return self.early_step if self.early_step and step < self.early_steps else self.train_step


def eval_batch_size(task: Task, *, batch_size: int, examples: int) -> int:
    """The evaluation batch size of a run with `batch_size`. Another size would change the rounding of the sums."""
    return min(max(batch_size, task.min_eval_batch_size), examples)
