"""Setup shared by the training commands: devices, workdir, checks, initial state and batches."""

import atexit
import contextlib
import dataclasses
import fractions
import functools
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from data import batches
from data.dataset import Dataset
from experiments.cli import options
from experiments.cli.app import require
from experiments.cli.compilation_cache import start_cache
from experiments.cli.config import TrainingConfig
from experiments.cli.validation import profiled_steps
from experiments.reporting import run_record, time_estimate
from experiments.reporting.progress import Progress
from experiments.setup.experiment import Experiment, eval_split, selects, train_split
from models.cpu_kernels import ops
from train import loop
from train.checkpoint import Checkpoints
from train.messages import say
from train.parallel import data_parallel, processes
from train.parallel import devices as device_module
from train.profile import Profile
from train.signals import Interrupted, Stop
from train.state import State
from train.task import Task, eval_batch_size
from train.workdir import MetricsFile, Workdir


class Devices(NamedTuple):
    number: int  # Total over all processes.
    description: str


def start_devices(config: TrainingConfig, stop: Stop) -> Devices:
    """Starts the devices and the compilation cache, and connects to the other processes, if any."""
    if not config.cpu_kernels:
        ops.disable()
    if config.deterministic:
        device_module.make_deterministic()
    group = (config.coordinator_address, config.num_processes, config.process_id)
    started = Devices(*device_module.start_devices(config.devices, group=group))
    stop.listen()  # Again, because jax.distributed replaces the signal handlers.
    start_cache()
    if config.deterministic and jax.default_backend() != "gpu":
        cpu = jax.default_backend() == "cpu"
        why = "runs on CPUs are deterministic without it" if cpu else "it sets flags of XLA's compiler for GPUs"
        say(f"--deterministic has no effect here: {why}")
    return started


def open_workdir(config: TrainingConfig) -> Workdir:
    """Opens and locks the run's workdir. Only the first process opens it; the others get a temporary one."""
    with processes.fail_together():
        if processes.is_main():
            return Workdir(config.workdir)
        return _temporary_workdir(None, "nutshell_process_")


def _temporary_workdir(parent: pathlib.Path | None, prefix: str) -> Workdir:
    place = tempfile.mkdtemp(prefix=prefix, dir=parent)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Workdir(place)


@contextlib.contextmanager
def checked_on_all_processes(config: TrainingConfig, workdir: Workdir) -> Iterator[None]:
    """A context for validation: an error in one process fails all of them, and all processes must have the same flags.
    On an error, a workdir created for this run is removed."""
    own = ("workdir", "data_dir", *options.OF_ONE_PROCESS)
    flags = {name: options.given(value) for name, value in options.to_json(config).items() if name not in own}
    first = processes.broadcast_json(flags)
    try:
        with processes.fail_together():
            for name, value in flags.items():
                both = f"--{name}={value} in this process, --{name}={first[name]} in the first"
                require(value == first[name], both)
            yield
    except BaseException:
        workdir.remove_if_made()
        raise


def total_steps(config: TrainingConfig, dataset: Dataset, device_count: int) -> int:
    """Returns the number of training steps, and checks the batch size against the data set and the devices."""
    examples, batch = len(train_split(dataset)[1]), config.batch_size
    require(batch <= examples, f"--batch_size={batch}: must be at most {examples}, the size of the training split")
    lower = batch // device_count * device_count
    near = " or ".join(str(size) for size in (lower, lower + device_count) if size)
    require(batch % device_count == 0, f"--batch_size={batch} is not divisible by {device_count} devices; try {near}")
    for name in ("accumulate", "fc_passes"):
        parts, rows = getattr(config, name, 1), batch // device_count
        require(rows % parts == 0, f"--{name}={parts}: must divide the {rows} rows of the batch on a device")
    for name in ("mixup", "cutmix"):
        value, parts = getattr(config, name, 0), getattr(config, "accumulate", 1)
        rows = batch // device_count // parts
        flags = f"--batch_size={batch} --devices={device_count} --accumulate={parts}"
        pairs = f"--{name}={value} mixes pairs of images: {flags} must give an even number of rows per micro-batch"
        require(not value or rows % 2 == 0, f"{pairs}, not {rows}")
    # Uses the exact decimal number: the nearest float to 1.1 is larger, and 1.1 epochs could take an extra step.
    wanted = config.steps or fractions.Fraction(str(config.epochs or 10.0)) * examples / batch
    require(wanted < 2**31, f"{float(wanted):.10g} steps: must be less than {2**31}")
    steps = max(1, math.ceil(wanted))
    warmup = config.warmup_steps
    require(warmup < steps or warmup == 0, f"--warmup_steps={warmup}: must be less than the run's {steps} steps")
    check_patience(config, dataset, steps)
    given = () if config.drops == type(config).drops else config.drops  # The default drops may come too late.
    late = [drop for drop in given if round(steps * drop) >= steps]
    require(
        not late, f"--drops={options.given(late)} has no effect: no steps remain after it in a run of {steps} steps"
    )
    require(getattr(config, "sync_bn", True) or device_count > 1, "--nosync_bn has no effect on one device")
    last = profiled_steps(config.profile_steps).stop
    require(last <= steps, f"--profile_steps={config.profile_steps}: must be at most {steps}, the steps of the run")
    return steps


def eval_interval(config: TrainingConfig, steps: int) -> int:
    """The number of steps between evaluations."""
    return config.eval_every or max(1, -(-steps // 10))


def check_patience(config: TrainingConfig, dataset: Dataset, steps: int) -> None:
    """Raises UsageError if --patience has no validation split, or can't stop the run before its end."""
    if not config.patience:
        return
    flag, split = f"--patience={config.patience}", eval_split(dataset, config.eval_split)
    needs = f"{flag} needs a validation split, but the run is evaluated on {split}; give --val_fraction=0.1"
    require(selects(split), f"{needs}, or a data set with a split val")
    evaluations = -(-steps // eval_interval(config, steps))
    needed = config.patience + 2  # The first evaluation is the best so far, and after the last one the run ends anyway.
    few = f"{flag} has no effect: the run has {evaluations} evaluations, it needs {needed} or more; lower --eval_every"
    require(evaluations >= needed, few)


def stored_summary(
    workdir: Workdir, config: TrainingConfig, experiment: Experiment, dataset: Dataset, split: str
) -> dict | None:
    """The summary of a complete run, else None. Raises WorkdirError on all processes for the workdir of another run."""
    with processes.fail_together():
        summary = run_record.stored_summary(workdir, config, experiment, dataset, split)
    return processes.broadcast_json(summary)


def check_steps(experiment: Experiment, state: State, batch, *, device_count: int, always: bool) -> None:
    """Traces the training steps with a batch of shapes. Raises ValueError if a reduction over devices is missing. On a
    single device, traces only if `always`."""
    if device_count == 1 and not always:
        return
    shapes = jax.eval_shape(experiment.task.shard, state)
    for step in filter(None, (experiment.task.train_step, experiment.task.early_step)):
        data_parallel.check_reductions(
            step, shapes, batch=batch, devices=device_count, is_sharded=experiment.task.is_sharded
        )


def initialize(experiment: Experiment, config: TrainingConfig, dataset: Dataset, *, device_count: int) -> State:
    """Initializes the state with random weights and checks the training step by tracing it."""
    images, labels = train_split(dataset)
    state = data_parallel.parallelize(experiment.task.init, 1, donate=False)(jax.random.key(config.seed))
    jax.block_until_ready(state)  # Where one array does not fit in memory, reading another would wait forever.
    image = jax.ShapeDtypeStruct((config.batch_size, *images.shape[1:]), "uint8")
    batch = {"image": image, "label": labels[: config.batch_size]}
    check_steps(experiment, state, batch, device_count=device_count, always=config.dry_run)
    return state


def open_checkpoints(workdir: Workdir, config: TrainingConfig, experiment: Experiment, split: str) -> Checkpoints:
    """Opens the run's checkpoints; the best is kept if `split` may be used for selection."""
    best, constants = experiment.task.best if selects(split) else None, dataclasses.asdict(experiment.info)
    return Checkpoints(workdir.path, keep=config.keep, best=best, constants=constants)


def restore(checkpoints: Checkpoints, state: State) -> tuple[State, dict] | None:
    """Restores (state, record) from the workdir's newest checkpoint, or returns None for a new run."""
    with processes.fail_together():
        return checkpoints.restore(state)


def dry_run(
    config: Any, workdir: Workdir, dataset: Dataset, split: str, device_count: int
) -> tuple[Any, Workdir, Dataset, int]:
    """Returns (config, workdir, data set, steps) for a dry run: two steps and an evaluation with a small batch, in a
    temporary workdir."""
    for left in workdir.path.glob(".dry_run_*"):  # Left over from a dry run that was killed.
        shutil.rmtree(left, ignore_errors=True)
    atexit.register(workdir.remove_if_made)  # Runs after the temporary workdir's removal.
    size = 2 * device_count * getattr(config, "fc_passes", 1) * getattr(config, "accumulate", 1)
    evaluated = {name: dataset.splits[name] for name in {split, "test"} & dataset.splits.keys()}
    few = {name: (images[:size], labels[:size]) for name, (images, labels) in evaluated.items()}
    small = dataset._replace(splits=dataset.splits | few)
    return dataclasses.replace(config, batch_size=size), _temporary_workdir(workdir.path, ".dry_run_"), small, 2


def announce(devices: Devices, dataset: Dataset, state: State) -> None:
    start = int(state.step)
    resumed = f"; resuming from step {start}" if start else ""
    say(f"{devices.description}; {run_record.describe(dataset, state)}{resumed}")
    say("compiling the training step, which takes seconds to minutes the first time")


def plan(config: TrainingConfig, steps: int, learning_rate) -> loop.Plan:
    every = eval_interval(config, steps)
    # Compile the schedule as a whole: compiling its operations one by one would take longer.
    rate = data_parallel.parallelize(learning_rate, 1, donate=False)
    return loop.Plan(steps, every, config.log_every, config.save_every, rate, config.patience)


def batches_of(config: Any, dataset: Dataset, split: str, task: Task, *, device_count: int) -> loop.Data:
    """This process's batches: of the training split, of `split` for evaluations, and, if checkpoints are selected on
    `split`, of test for the final evaluation."""
    part = processes.index_and_count()

    def evaluation(split: str) -> loop.EvalData:
        images, labels = dataset.splits[split]
        size = eval_batch_size(task, batch_size=config.batch_size, examples=len(labels))
        size = -(-size // device_count) * device_count
        passes = functools.partial(batches.eval_batches, images, labels, batch_size=size, part=part)
        return loop.EvalData(passes, len(labels))

    train_batches = functools.partial(
        batches.train_batches,
        *train_split(dataset),
        batch_size=config.batch_size,
        seed=config.seed,
        part=part,
        flip=getattr(config, "alternate_flip", False),
        devices=device_count,
        micro_batches=getattr(config, "accumulate", 1),
    )
    return loop.Data(
        lambda step: train_batches(start=step),
        evaluation(split),
        evaluation("test") if selects(split) and "test" in dataset.splits else None,
    )


def estimate(config: Any, experiment: Experiment, dataset: Dataset, split: str, steps: int):
    """Prints the estimated time of the run once. The steps of --early_size are faster than the rest, and a dry run's
    batch is small, so there is no estimate for them."""
    every = eval_interval(config, steps)
    sizes = run_record.counts(dataset)
    final = sizes["test"] if selects(split) and "test" in sizes else 0
    return time_estimate.TimeEstimate(
        steps,
        config.batch_size,
        evaluated=lambda step: (-(-steps // every) - step // every) * sizes[split] + final,
        shorter=lambda: time_estimate.shorter_settings(config, experiment),
        printed=config.dry_run or bool(experiment.task.early_steps),
    )


def _profile(config: TrainingConfig, start: int) -> Profile:
    """The trace of --profile_steps; every process writes its own to the run's workdir. A dry run has none."""
    traced = profiled_steps(config.profile_steps)
    if not traced or config.dry_run:
        return Profile()
    if start >= traced.stop:
        say(f"--profile_steps={config.profile_steps}: no new trace, because the run resumes from step {start}")
    return Profile(pathlib.Path(config.workdir, "profile"), traced)


@contextlib.contextmanager
def output(
    config: TrainingConfig,
    workdir: Workdir,
    checkpoints: Checkpoints,
    experiment: Experiment,
    dataset: Dataset,
    state: State,
    record,
    *,
    split: str,
    steps: int,
) -> Iterator[loop.Output]:
    """Opens the outputs of the training loop: checkpoints, metrics.csv, progress and the trace. The loop starts from
    `state` and `record`."""
    start = int(state.step)
    metrics = MetricsFile(workdir.path, run_record.columns(experiment.task), step=min(start, record.get("reported", 0)))
    progress = Progress(start, steps, split=split, shown=not config.dry_run)
    profile = _profile(config, start)
    try:
        with contextlib.closing(metrics), progress, contextlib.closing(profile):
            measured = estimate(config, experiment, dataset, split, steps)
            yield loop.Output(checkpoints, metrics, progress, measured, profile)
    except FloatingPointError:
        checkpoints.wait()  # The error message refers to the saved checkpoints.
        raise
    except Interrupted as interrupted:
        if config.dry_run:
            raise Interrupted(interrupted.number, None) from None
        raise
