"""What a task (classification, segmentation, a GAN) gives the loop, which knows nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Task(NamedTuple):
    """Plain functions. Sums are trees of arrays that the loop adds on the host in float64 over steps or batches."""

    name: str
    init: Callable[..., Any]  # key -> State
    train_step: Callable[..., Any]  # (state, batch) -> (state, sums)
    prepare_eval: Callable[..., Any]  # state -> state
    eval_step: Callable[..., Any]  # (state, batch) -> sums, among them "count"
    finish: Callable[..., dict[str, float]]  # sums -> metrics
    predict_step: Callable[..., Any]  # (state, batch) -> outputs by example
    metrics: tuple[str, ...]  # the keys of `finish` that metrics.csv holds
    best: tuple[str, str]  # (metric, "max" or "min")
    early_step: Callable[..., Any] | None = None  # In the place of train_step for the first `early_steps` of a run:
    early_steps: int = 0  # a branch inside one compiled step would cost a CPU a third of its speed.
    eval_rows: int = 250  # Examples of an evaluation's batch, at least.
    details: Callable[..., dict] = lambda sums: {}  # an evaluation's sums -> what summary.json has beside the metrics
    # Where devices hold parts of leaves: path -> whether that leaf of the state is [..., devices, n], and the state so
    # divided and whole again. Checkpoints and evaluations have whole states.
    divided: Callable[[Any], bool] | None = None
    divide: Callable[..., Any] = lambda state: state
    whole: Callable[..., Any] = lambda state: state
