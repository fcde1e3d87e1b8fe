"""What classify, segment and generate do: one run, from its flags to its report."""

import contextlib
import json
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.cli import flags
from train.signals import Interrupted, Stop

# What a dry run's summary has: no scores of two steps.
DRY = ("model", "dataset", "split", "examples", "step", "parameters", "seconds", "compile_seconds")


class Kind(NamedTuple):
    """What is a command's own."""

    load: Callable[..., Any]  # flags -> data set
    describe: Callable[..., Any]  # (flags, data set) -> what the network is made for, kept in run.json
    setup: Callable[..., Any]  # (flags, about, devices=, steps=) -> Setup, after every flag was checked
    fit: Callable[..., Any]  # (flags, state, training images, about) -> state
    report: Callable[..., None]  # (folder, setup, test=, result=, summary=, command=)


def run(argv, command: str, kind: Callable[[Stop], Kind]) -> int:
    """The whole command; its exit status. `kind` is called late: a run listens to signals before it imports what is
    slow."""
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; {command} takes flags alone")
    stop = Stop()
    config = flags.values()
    if not config["workdir"]:
        raise flags.UsageError("--workdir=FOLDER is needed: the run is kept there")
    flags.check_start(config)
    from train import checkpoint, loop, task, workdir
    from train.parallel import data_parallel, processes
    from train.parallel.devices import start_devices

    devices, line = start_devices(config["devices"], group=[config[name] for name in flags.GROUP])
    stop.listen()  # jax.distributed has taken them.
    flags.start_cache()
    import jax

    from data import batches
    from experiments.cli import validation
    from experiments.reporting import run_record
    from experiments.setup import classification

    load, describe, make_setup, fit, report = kind(stop)
    first = processes.broadcast_json(config)
    home = processes.run_on_all_processes(lambda: run_record.run_folder(config["workdir"]))

    def prepared():
        for name in config.keys() - {*flags.GROUP, "workdir", "data_dir"}:
            here, there = config[name], first[name]
            flags.require(repr(here) == repr(there), f"--{name}={here} in this process, --{name}={there} in the first")
        dataset = load(config)
        about = describe(config, dataset)
        steps = validation.check(config, len(dataset.splits["train"][1]), devices)
        split = classification.eval_split(dataset, config["eval_split"])
        return dataset, split, steps, make_setup(config, about, devices=devices, steps=steps)

    try:
        dataset, split, steps, setup = processes.run_on_all_processes(prepared)
    except BaseException:
        home.remove_if_made()
        raise
    (images, labels), (test_images, test_labels) = dataset.splits["train"], dataset.splits[split]
    batch_size = config["batch_size"]
    finished = run_record.start(home, config, setup, dataset=dataset)
    if config["dry_run"]:
        home, finished = run_record.dry_folder(home), None
    if finished:
        return run_record.say_finished(finished)
    eval_size = task.eval_batch(setup.task, batch_size=batch_size, examples=len(test_labels))
    eval_size = -(-eval_size // devices) * devices

    # --- The state: this workdir's checkpoint, else --init_from, else a fresh one.
    state = data_parallel.parallelize(setup.task.init, 1, donate=False)(jax.random.key(config["seed"]))
    example = {
        "image": jax.ShapeDtypeStruct((batch_size, *images.shape[1:]), "uint8"),
        "label": labels[:batch_size],
    }
    validation.check_steps(setup.task, state, batch=example, devices=devices, always=config["dry_run"])
    if config["dry_run"]:  # What runs is small: two images for each device and part of a step.
        steps, batch_size = 2, 2 * devices * config.get("fc_passes", 1) * config.get("accumulate", 1)
        eval_size, test_images, test_labels = batch_size, test_images[:batch_size], test_labels[:batch_size]
    checkpoints = checkpoint.Checkpoints(
        home.path, keep=config["keep"], best=setup.task.best, report=loop.say, about=setup.about
    )
    restored = processes.run_on_all_processes(lambda: checkpoints.restore(state))
    state, record = restored or (run_record.initial_state(config, fit(config, state, images, setup.about)), {})
    state, record = processes.follow(state, record)
    start = int(state.step)
    loop.say(f"{line}; {run_record.describe(dataset, state)}" + (f"; going on from step {start}" if start else ""))
    run_record.write_start(home, config, setup, dataset=dataset, state=state, steps=steps, devices=line)

    # --- Train.
    every, part, flip = (
        config["eval_every"] or max(1, -(-steps // 10)),
        processes.index_and_count(),
        config.get("alternate_flip"),
    )
    plan = loop.Plan(steps, every, config["log_every"], config["save_every"])
    metrics = workdir.MetricsFile(home.path, run_record.columns(setup.task), step=min(start, record.get("reported", 0)))
    with run_record.Progress(start, steps, shown=not config["dry_run"]) as progress, nothing_kept(config["dry_run"]):
        result = loop.train(
            state,
            task=setup.task,
            record=record,
            plan=plan,
            devices=devices,
            train_batches=lambda step: batches.train_batches(
                images, labels, batch_size=batch_size, seed=config["seed"], start=step, part=part, flip=bool(flip)
            ),
            eval_batches=lambda: batches.eval_batches(test_images, test_labels, batch_size=eval_size, part=part),
            eval_examples=len(test_labels),
            learning_rate=setup.learning_rate,
            checkpoints=checkpoints,
            metrics=metrics,
            stop=stop,
            progress=progress,
        )
    metrics.close()
    if not processes.is_main():
        return 0

    # --- What the run leaves behind; a dry run shows that it could.
    summary = run_record.summary(config, setup, result, split, len(test_labels), str(home.path))
    line = f"python -m experiments.{command} {shlex.join(flags.flagfile(config).split(chr(10))[:-1])}"
    report(home.path, setup, test=(test_images, test_labels), result=result, summary=summary, command=line)
    run_record.write_end(home, summary)
    if config["dry_run"]:
        loop.say("dry run passed: two small steps, an evaluation, a checkpoint and a report; nothing of it is kept")
        summary = {name: summary[name] for name in DRY}
    else:
        loop.say(f"report: {home.path / 'report.html'}")
        loop.say(f"done: {run_record.headline(summary)}")
    print(json.dumps(summary))
    return 0


@contextlib.contextmanager
def nothing_kept(dry: bool):
    """Inside it an interruption of a `dry` run does not claim that the run goes on."""
    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.number, None) if dry else stopped from None
