"""Stops a run whose score no longer improves."""

from train.parallel import processes


class EarlyStopping:
    """Counts the evaluations since the best score. The run stops when there are `patience`; 0: never.

    `best` is (metric, "max" or "min") and `stored` the `record` of an earlier start, None in a new run.
    """

    def __init__(self, patience: int, best: tuple[str, str], stored: dict | None):
        self._patience, (self._metric, self._direction) = patience, best
        new = {"best_score": None, "evaluations_since": 0}
        self.record: dict | None = dict(stored or new) if patience else None

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Must be called on all processes after each evaluation. They compare the scores of process 0, so that all stop
        at the same step."""
        if self.record is None:
            return
        score, best = processes.broadcast_json(metrics[self._metric]), self.record["best_score"]
        if best is None or (score > best if self._direction == "max" else score < best):
            self.record = {"best_score": score, "evaluations_since": 0}
        else:
            self.record["evaluations_since"] += 1

    @property
    def stops(self) -> bool:
        return self.record is not None and self.record["evaluations_since"] >= self._patience
