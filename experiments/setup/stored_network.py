"""Networks of stored runs: a run's experiment, the state of a checkpoint, the initial weights of --init_from."""

import pathlib
from typing import Any

import jax

import models
from experiments.cli import options
from experiments.cli.app import UsageError
from experiments.setup import classification, generation, reconstruction, saved_run, segmentation
from experiments.setup.experiment import Experiment, selects
from experiments.setup.saved_run import SavedRun
from train import checkpoint
from train.messages import say
from train.state import State
from train.workdir import WorkdirError

# Flags that give weights of one shape another meaning.
ARCHITECTURE_FLAGS = (
    *("model", "v1_5", "local_response_norm", "activation", "slope"),
    *("decoder", "authors", "conditional"),
)


def experiment_from_run(run: SavedRun, *, scorer: Any = None) -> Experiment:
    """The network and the task of a stored run, on one device. A run of generate is evaluated by the `scorer`."""
    settings: dict[str, Any] = {"devices": 1, "steps": run.steps, "checked": False}
    if run.task == "segmentation":
        return segmentation.create_experiment(run.config, run.info, **settings)
    if run.task == "generation":
        return generation.create_experiment(run.config, run.info, **settings, scorer=scorer)
    if run.task == "reconstruction":
        return reconstruction.create_experiment(run.config, run.info, devices=1, steps=run.steps)
    return classification.create_experiment(run.config, run.info, **settings)


def restore(experiment: Experiment, run: SavedRun, which: str = "latest") -> State:
    """The state of a run's newest ("latest") or "best" checkpoint. Raises WorkdirError without any, UsageError for the
    best of a run that has no split to choose it on."""
    if which == "best" and not selects(run.eval_split):
        on = f"evaluated on {run.eval_split}" if run.eval_split else "not evaluated"
        advice = "none is chosen by such a score; latest is the newest; train with --val_fraction or a split val"
        raise UsageError(f"--checkpoint=best: the run in {run.workdir} was {on}, and {advice}")
    checkpoints = checkpoint.Checkpoints(run.workdir, best=experiment.task.best, report=say, owner=False)
    like = jax.eval_shape(experiment.task.init, jax.random.key(0))
    restored = checkpoints.restore(like, best=which == "best")
    if restored is None:
        raise WorkdirError(f"--workdir={run.workdir} holds no checkpoint")
    return restored[0]


def init_from(config, state: State) -> State:
    """`state`, or with --init_from its parameters and batch statistics replaced by those of another workdir; of a
    network that is this one's encoder, by that part."""
    if not config.init_from:
        return state
    source = checkpoint.Checkpoints(pathlib.Path(config.init_from), report=say, owner=False)
    restored = source.restore(state, parts=init_from_parts(config))
    if restored is None:
        raise WorkdirError(f"--init_from={config.init_from} holds no checkpoint")
    return restored[0]


def init_from_parts(config) -> tuple[str, ...]:
    """The beginnings of the paths of the leaves that --init_from gives; () without it. Raises WorkdirError where it
    holds no run, UsageError where that is of another network."""
    if not config.init_from:
        return ()
    other = saved_run.read(config.init_from, flag="init_from").config
    encoder = models.spec(config.model).encoders.get(other.model)
    for name in ARCHITECTURE_FLAGS if encoder is None else ():
        there, here = getattr(other, name, None), getattr(config, name, None)
        if (there or None) != (here or None):
            both = f"has --{name}={options.given(there)}, this run --{name}={options.given(here)}"
            raise UsageError(f"--init_from={config.init_from} {both}")
    parts: tuple[str, ...] = (".params", ".batch_stats")
    if encoder is not None:
        parts = tuple(f"{part}['{layer}" for part in parts for layer in encoder)
    return parts
