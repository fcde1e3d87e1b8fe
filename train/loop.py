"""The training loop, which is the same for every task."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from train import checkpoint, workdir
from train.early_stopping import EarlyStopping
from train.metrics import Timer, TrainingMetrics, add, check_finite
from train.parallel import host_memory, processes
from train.parallel.data_parallel import DeviceSteps
from train.profile import Profile
from train.signals import Interrupted, Stop
from train.task import Task


class Plan(NamedTuple):
    """The length of a run and the intervals of evaluations, log rows and checkpoints, in steps; `learning_rate` maps a
    step to its learning rate. The run stops after `patience` evaluations without a new best score; 0: never."""

    steps: int
    eval_every: int
    log_every: int
    save_every: int
    learning_rate: Callable[[int], Any]
    patience: int = 0

    def is_due(self, step: int, every: int) -> bool:
        """True at multiples of `every`, unless that is 0, and at the last step."""
        return step == self.steps or (every > 0 and step % every == 0)


class EvalData(NamedTuple):
    """`batches()` yields one pass over this process's rows of a split; `examples` counts the split's examples over all
    processes."""

    batches: Callable[[], Iterable]
    examples: int


class Data(NamedTuple):
    """`train_batches(step)` yields batches of this process's rows, starting at a step; `eval` is evaluated during the
    run, `test` only at its end."""

    train_batches: Callable[[int], Iterable]
    eval: EvalData
    test: EvalData | None = None


class Output(NamedTuple):
    """Where a run's results are written; `progress(step, row)` displays a row of metrics.csv to the user,
    `measured(step, images, seconds)` receives the speed of the training steps up to `step`, and `profile` traces the
    steps that it was created for."""

    checkpoints: checkpoint.Checkpoints
    metrics: workdir.MetricsFile
    progress: Callable[[int, dict], None]
    measured: Callable[[int, int, float], None] = lambda step, images, seconds: None
    profile: Profile = Profile()


class Result(NamedTuple):
    state: Any
    metrics: dict[str, float]
    sums: Any
    seconds: float
    compile_seconds: float
    images_per_second: float
    test_metrics: dict[str, float] = {}  # Metrics of Data.test, if given.
    stopped_early: bool = False  # By Plan.patience.


def evaluate(state, eval_step, *, data: EvalData, stop: Stop | None = None):
    """The sums over all batches of an evaluation, on the host; None after a signal.

    A batch's sums are fetched after the next batch has been dispatched. Raises RuntimeError unless each example was
    counted once.
    """
    total = previous = None
    for batch in data.batches():
        if stop is not None and processes.stop_requested_locally(stop):
            return None
        sums = eval_step(state, batch)
        total, previous = total if previous is None else add(total, previous), sums
    total = add(total, previous)
    if total["count"] != data.examples:
        raise RuntimeError(f"the evaluation counted {total['count']} examples, but the split has {data.examples}")
    return total


class Recorder:
    """Writes the metrics rows and the checkpoints of a run, and keeps track of what was written."""

    def __init__(self, output: Output, record: dict, step: int, stopping: EarlyStopping):
        self.output, self.reported, self.stopping = output, record.get("reported", 0), stopping
        self.eval_metrics: dict[str, float] = record.get("eval_metrics", {})
        self.saved = step if record else -1

    def report(self, step: int, row: dict[str, Any]) -> None:
        """Marks `step` as reported; writes `row` to metrics.csv unless it is empty."""
        if row:
            self.output.metrics.append({"step": step, **row})
            self.output.progress(step, row)
        self.reported = step

    def save(self, step: int, state, metrics: TrainingMetrics, timer: Timer, *, evaluated: bool) -> None:
        """Starts saving the state and the `record` that `train` receives when the run is resumed."""
        record = {"reported": self.reported, "seconds": timer.seconds, "eval_metrics": self.eval_metrics}
        record["sums"] = metrics.to_json()
        if self.stopping.record:
            record["early_stopping"] = self.stopping.record
        if processes.is_main():
            scores = self.eval_metrics if evaluated else None
            self.output.checkpoints.save(step, state, record=record, metrics=scores)
        self.saved = step


def train(
    state, record: dict, *, task: Task, plan: Plan, data: Data, devices: int, output: Output, stop: Stop
) -> Result:
    """Trains `state` until plan.steps, or until plan.patience ends the run. `record` is {} or the record of the
    checkpoint that the run resumes from.

    A run that was killed and resumed gives bitwise the same results as an uninterrupted run. Raises FloatingPointError
    if the loss is not finite, Interrupted after a signal, and CheckpointError if a checkpoint can't be saved.
    """
    step, steps = int(state.step), DeviceSteps(task, devices)
    stopping = EarlyStopping(plan.patience, task.best, record.get("early_stopping"))
    recorder = Recorder(output, record, step, stopping)
    metrics, timer = TrainingMetrics(record.get("sums")), Timer(record.get("seconds", 0.0))
    memory = host_memory.HeldMemory()
    eval_sums, constants = None, dict[EvalData, Any]()  # The last evaluation's sums; each split's constant sums.

    def evaluated(state, split: EvalData):
        """The sums of an evaluation, None after a signal."""
        state = steps.for_evaluation(state)
        sums = evaluate(state, functools.partial(timer.call, steps.evaluate), data=split, stop=stop)
        if sums is None or steps.evaluate_constants is None:
            return sums
        if split not in constants:
            step = functools.partial(timer.call, steps.evaluate_constants)
            found = evaluate(state, step, data=split, stop=stop)
            if found is None:
                return None
            constants[split] = found
        return sums | constants[split]

    state, batches = steps.shard(state), iter(data.train_batches(step))
    while True:
        # --- Outputs that are due at this step: a row of metrics, an evaluation, a checkpoint.
        if recorder.reported < step:
            logs, evaluates, saves = (plan.is_due(step, n) for n in (plan.log_every, plan.eval_every, plan.save_every))
            row: dict[str, Any] = {}
            if logs or evaluates or saves:
                metrics.collect()
            if logs or evaluates:
                row = {f"train_{name}": value for name, value in task.compute_metrics(metrics.sums).items()}
                row |= {"learning_rate": float(plan.learning_rate(step - 1)), "seconds": round(timer.seconds, 3)}
                row |= timer.images_per_second()
            if evaluates:
                if task.prepare_eval:
                    state = task.prepare_eval(state, lambda: processes.stop_requested_locally(stop))
                eval_sums = evaluated(state, data.eval)
                if eval_sums is not None:
                    check_finite(eval_sums, step)
                    recorder.eval_metrics = task.compute_metrics(eval_sums)
                    stopping.evaluated(recorder.eval_metrics)
                    row |= {f"eval_{name}": value for name, value in recorder.eval_metrics.items()}
            interrupted = (
                evaluates and eval_sums is None
            )  # By a signal; the resumed run evaluates and reports the step.
            if not interrupted:
                recorder.report(step, row)
                if row:
                    metrics.sums = None
            if saves or (evaluates and not interrupted):  # Each evaluation is saved.
                with timer.paused():
                    recorder.save(step, steps.unshard(state), metrics, timer, evaluated=evaluates and not interrupted)
            if row:
                timer.start_interval()

        # --- Stop at the end, or after a signal to any process.
        if number := processes.stop_requested(stop, step):
            metrics.collect()
            if recorder.saved != step:
                recorder.save(step, steps.unshard(state), metrics, timer, evaluated=False)
            output.checkpoints.wait()
            raise Interrupted(number, step)
        if step >= plan.steps or stopping.stops:
            break

        # --- One step: dispatch it, then fetch the metrics of the previous step.
        output.profile.before(step, state)
        batch, train_step = next(batches), steps.train(step)
        compiles = timer.is_new(train_step)
        state, sums = timer.call(train_step, state, batch)
        step += 1
        output.profile.after(step, state)
        metrics.push(step, sums)
        if compiles:
            jax.block_until_ready((state, sums))  # Images per second are measured from here on.
            memory.after_compilation()
            timer.start_interval()
        else:
            memory.after_step()
            output.measured(step - 1, *timer.measured())
            timer.count(len(batch["label"]) * jax.process_count())

    # --- The end: the last checkpoint is on disk before the summary says that the run is complete.
    output.checkpoints.wait()
    if eval_sums is None:  # The run was killed between its last checkpoint and its summary.
        eval_sums = evaluated(state, data.eval)
        if eval_sums is None:
            raise Interrupted(stop.number, step)
    test_metrics: dict[str, float] = {}
    if data.test is not None:
        test_sums = evaluated(state, data.test)
        if test_sums is None:
            raise Interrupted(stop.number, step)
        test_metrics = task.compute_metrics(test_sums)
    rate = timer.mean_images_per_second()
    state, scores = steps.to_local(state), task.compute_metrics(eval_sums)
    early = step < plan.steps
    return Result(state, scores, eval_sums, timer.seconds, timer.compile_seconds, rate, test_metrics, early)
