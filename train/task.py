"""The interface between a task (classification, segmentation, generation, reconstruction) and the training loop."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """Pure functions. Sums are trees of arrays, which the loop adds up on the host in float64 over steps or batches."""

    name: str
    init: Callable[..., Any]  # key -> State
    train_step: Callable[..., Any]  # (state, batch) -> (state, sums), among them "loss" and "gradient_norm"
    eval_step: Callable[..., Any]  # (state, batch) -> sums, among them "count"
    compute_metrics: Callable[..., dict[str, float]]  # sums -> metrics
    predict_step: Callable[..., Any]  # (state, batch) -> outputs by example
    metrics: tuple[str, ...]  # the keys of `compute_metrics` of an evaluation's sums, for metrics.csv
    train_metrics: tuple[str, ...]  # those of a training step's sums
    best: tuple[str, str]  # (metric, "max" or "min")
    # (state, stopped) -> the state used for the evaluation and for the following steps; unchanged where stopped() says
    # that a signal has come.
    prepare_eval: Callable[..., Any] | None = None
    # The training step of the first `early_steps`, see step_for. (A branch inside one compiled step would cost a CPU a
    # third of its speed.)
    early_step: Callable[..., Any] | None = None
    early_steps: int = 0
    min_eval_batch_size: int = 250  # Examples of an evaluation's batch, at least.
    # (state, batch) -> sums that depend on the state's key alone. They are computed at the first evaluation after a
    # start and join the sums of each.
    constant_eval_step: Callable[..., Any] | None = None
    details: Callable[..., dict] = lambda sums: {}  # an evaluation's sums -> what summary.json has beside the metrics
    # Hybrid parallelism: is_sharded(path) says whether devices hold parts of that leaf, [..., devices, n]; shard and
    # unshard convert a state. Checkpoints and evaluations use the unsharded state.
    is_sharded: Callable[[Any], bool] | None = None
    shard: Callable[..., Any] = lambda state: state
    unshard: Callable[..., Any] = lambda state: state

    def step_for(self, step: int) -> Callable[..., Any]:
        """The training step that follows `step` finished ones."""
        return self.early_step if self.early_step and step < self.early_steps else self.train_step


def eval_batch_size(task: Task, *, batch_size: int, examples: int) -> int:
    """The batch size of evaluations in a run of `batch_size`. Another one would round the sums differently."""
    return min(max(batch_size, task.min_eval_batch_size), examples)
