"""What the commands that train share: devices, workdir, checks, the state that a run starts from, batches."""

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
from experiments.reporting import run_record
from experiments.setup.experiment import Experiment, selects, train_split
from models.cpu_kernels import ops
from train import loop
from train.checkpoint import Checkpoints
from train.messages import say
from train.parallel import data_parallel, processes
from train.parallel import devices as device_module
from train.signals import Interrupted, Stop
from train.state import State
from train.task import Task, eval_batch_size
from train.workdir import MetricsFile, Workdir


class Devices(NamedTuple):
    number: int  # over all processes
    description: str


def start_devices(config: TrainingConfig, stop: Stop) -> Devices:
    """Starts the devices and the compilation cache, and finds the other processes, if there are any."""
    if not config.cpu_kernels:
        ops.disable()
    group = (config.coordinator_address, config.num_processes, config.process_id)
    started = Devices(*device_module.start_devices(config.devices, group=group))
    stop.listen()  # jax.distributed has taken the signals.
    start_cache()
    return started


def open_workdir(config: TrainingConfig) -> Workdir:
    """The run's workdir, locked. Of several processes the first has it, the others write to one that is removed."""
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
    """A block that refuses what can't be run, on all processes if on one, whose flags must be the same. The workdir is
    removed if it was made for this run."""
    own = ("workdir", "data_dir", "coordinator_address", "num_processes", "process_id")
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
    """The number of training steps, after the batch was checked against the data set and the devices."""
    examples, batch = len(train_split(dataset)[1]), config.batch_size
    require(batch <= examples, f"--batch_size={batch}: must be at most {examples}, the size of the training split")
    lower = batch // device_count * device_count
    near = " or ".join(str(size) for size in (lower, lower + device_count) if size)
    require(batch % device_count == 0, f"--batch_size={batch} is not divisible by {device_count} devices; try {near}")
    for name in ("accumulate", "fc_passes"):
        parts, rows = getattr(config, name, 1), batch // device_count
        require(rows % parts == 0, f"--{name}={parts}: must divide the {rows} rows of the batch on a device")
    # The number as it was typed: the nearest float to 1.1 is above it, and 1.1 epochs would take a step too many.
    wanted = config.steps or fractions.Fraction(str(config.epochs or 10.0)) * examples / batch
    require(wanted < 2**31, f"{float(wanted):.10g} steps: must be fewer than {2**31}")
    steps = max(1, math.ceil(wanted))
    warmup = config.warmup_steps
    require(warmup < steps or warmup == 0, f"--warmup_steps={warmup}: must be fewer than the run's {steps} steps")
    given = () if config.drops == type(config).drops else config.drops  # Those of the default may come too late.
    late = [drop for drop in given if round(steps * drop) >= steps]
    require(not late, f"--drops={options.given(late)} has no effect: after that share of {steps} steps there are none")
    require(getattr(config, "sync_bn", True) or device_count > 1, "--nosync_bn has no effect on one device")
    return steps


def stored_summary(
    workdir: Workdir, config: TrainingConfig, experiment: Experiment, dataset: Dataset, split: str
) -> dict | None:
    """The summary of a run that is complete, else None; WorkdirError on every process for the workdir of another."""
    with processes.fail_together():
        summary = run_record.stored_summary(workdir, config, experiment, dataset, split)
    return processes.broadcast_json(summary)


def check_steps(experiment: Experiment, state: State, batch, *, device_count: int, always: bool) -> None:
    """Traces the training steps for a batch of shapes. Raises ValueError where a reduction over devices is missing; for
    a single device they are traced where `always` asks for it."""
    if device_count == 1 and not always:
        return
    shapes = jax.eval_shape(experiment.task.shard, state)
    for step in filter(None, (experiment.task.train_step, experiment.task.early_step)):
        data_parallel.check_reductions(
            step, shapes, batch=batch, devices=device_count, is_sharded=experiment.task.is_sharded
        )


def initialize(experiment: Experiment, config: TrainingConfig, dataset: Dataset, *, device_count: int) -> State:
    """The state before the first step, of random weights; its training step is checked before anything is trained."""
    images, labels = train_split(dataset)
    state = data_parallel.parallelize(experiment.task.init, 1, donate=False)(jax.random.key(config.seed))
    image = jax.ShapeDtypeStruct((config.batch_size, *images.shape[1:]), "uint8")
    batch = {"image": image, "label": labels[: config.batch_size]}
    check_steps(experiment, state, batch, device_count=device_count, always=config.dry_run)
    return state


def open_checkpoints(workdir: Workdir, config: TrainingConfig, experiment: Experiment, split: str) -> Checkpoints:
    """The run's checkpoints; the best is kept where `split` is one to choose on."""
    best, constants = experiment.task.best if selects(split) else None, dataclasses.asdict(experiment.info)
    return Checkpoints(workdir.path, keep=config.keep, best=best, constants=constants)


def restore(checkpoints: Checkpoints, state: State) -> tuple[State, dict] | None:
    """(state, record) of the workdir's newest checkpoint, or None for a new run."""
    with processes.fail_together():
        return checkpoints.restore(state)


def dry_run(
    config: Any, workdir: Workdir, dataset: Dataset, split: str, device_count: int
) -> tuple[Any, Workdir, Dataset, int]:
    """(config, workdir, data set, steps) of a dry run: two small steps and a small evaluation, in a workdir that is
    removed."""
    for left in workdir.path.glob(".dry_run_*"):  # Of a dry run that was killed.
        shutil.rmtree(left, ignore_errors=True)
    atexit.register(workdir.remove_if_made)  # The last that is registered runs first.
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
    every = config.eval_every or max(1, -(-steps // 10))
    # Compiled: its operations one by one would take longer to compile.
    rate = data_parallel.parallelize(learning_rate, 1, donate=False)
    return loop.Plan(steps, every, config.log_every, config.save_every, rate)


def batches_of(config: Any, dataset: Dataset, split: str, task: Task, *, device_count: int) -> loop.Data:
    """Batches of this process's rows of the training split, of `split` for evaluations, and of test for the end where
    the run may be chosen by its scores on `split`."""
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
    )
    return loop.Data(
        lambda step: train_batches(start=step),
        evaluation(split),
        evaluation("test") if selects(split) and "test" in dataset.splits else None,
    )


@contextlib.contextmanager
def output(
    config: TrainingConfig,
    workdir: Workdir,
    checkpoints: Checkpoints,
    task: Task,
    state: State,
    record,
    *,
    split: str,
    steps: int,
) -> Iterator[loop.Output]:
    """Where the loop's results go, for the state and the record that it starts from."""
    start = int(state.step)
    metrics = MetricsFile(workdir.path, run_record.columns(task), step=min(start, record.get("reported", 0)))
    progress = run_record.Progress(start, steps, split=split, shown=not config.dry_run)
    try:
        with contextlib.closing(metrics), progress:
            yield loop.Output(checkpoints, metrics, progress)
    except FloatingPointError:
        checkpoints.wait()  # The message says that those before are kept.
        raise
    except Interrupted as interrupted:
        if config.dry_run:
            raise Interrupted(interrupted.number, None) from None
        raise
