"""Restores networks of stored runs: a run's experiment, a checkpoint's state, and the weights for --init_from."""

import inspect
import re
from typing import Any

import jax

import models
from experiments.cli import options
from experiments.cli.app import UsageError
from experiments.setup import classification, fine_tuning, generation, reconstruction, saved_run, segmentation
from experiments.setup.experiment import Experiment, selects
from experiments.setup.saved_run import SavedRun
from train import checkpoint
from train.averaging import evaluation_weights
from train.messages import say
from train.state import State
from train.workdir import WorkdirError

# Flags that change the network's output even if all weights keep their shapes.
ARCHITECTURE_FLAGS = (
    *("model", "v1_5", "local_response_norm", "activation", "slope"),
    *("decoder", "authors", "conditional"),
)


def experiment_from_run(run: SavedRun, *, scorer: Any = None) -> Experiment:
    """Creates the network and task of a stored run on one device. Evaluating a run of generate needs a `scorer`."""
    settings: dict[str, Any] = {"devices": 1, "steps": run.steps, "checked": False}
    if run.task == "segmentation":
        return segmentation.create_experiment(run.config, run.info, **settings)
    if run.task == "generation":
        return generation.create_experiment(run.config, run.info, **settings, scorer=scorer)
    if run.task == "reconstruction":
        return reconstruction.create_experiment(run.config, run.info, devices=1, steps=run.steps)
    return classification.create_experiment(run.config, run.info, **settings)


def restore(experiment: Experiment, run: SavedRun, which: str = "latest") -> State:
    """Restores the state of a run's newest ("latest") or "best" checkpoint. Raises WorkdirError if there is none, and
    UsageError for "best" if the run has no validation split to select it on."""
    if which == "best" and not selects(run.eval_split):
        on = f"evaluated on {run.eval_split}" if run.eval_split else "not evaluated"
        advice = "so no best checkpoint was selected; use latest, or train with --val_fraction or a split val"
        raise UsageError(f"--checkpoint=best: the run in {run.workdir} was {on}, {advice}")
    checkpoints = checkpoint.Checkpoints(run.workdir, best=experiment.task.best, report=say, owner=False)
    like = jax.eval_shape(experiment.task.init, jax.random.key(0))
    restored = checkpoints.restore(like, best=which == "best")
    if restored is None:
        raise WorkdirError(f"--workdir={run.workdir} contains no checkpoint")
    return restored[0]


def init_from(config, state: State, *, new: frozenset[str] = frozenset()) -> State:
    """Returns `state`; with --init_from, its parameters and batch statistics are replaced by those that evaluations of
    another workdir use, except for the leaves `new`; or only the encoder's if the other network is its encoder."""
    return weights_at_step(config, state, new=new)[0] if config.init_from else state


def weights_at_step(config, state: State, *, new: frozenset[str] = frozenset()) -> tuple[State, int]:
    """The result of `init_from` with --init_from, and the step of the checkpoint."""
    source, parts = saved_run.read(config.init_from, flag="init_from"), init_from_parts(config)
    like = state._replace(average=())
    if source.task == "classification" and source.config.ema:
        like = state._replace(average={"params": state.params, "batch_stats": state.batch_stats})
        parts, new = tuple(map(_averaged, parts)), frozenset(map(_averaged, new))
    checkpoints = checkpoint.Checkpoints(source.workdir, report=say, owner=False)
    restored = checkpoints.restore(like, parts=(*parts, ".step"), without=new)
    if restored is None:
        raise WorkdirError(f"--init_from={config.init_from} contains no checkpoint")
    params, batch_stats = evaluation_weights(restored[0])
    return state._replace(params=params, batch_stats=batch_stats), int(restored[0].step)


def _averaged(name: str) -> str:
    """The name of the leaf, or of the prefix of leaves, in the average of the weights."""
    return re.sub(r"^\.(params|batch_stats)", r".average['\1']", name)


def check_init_from(config) -> None:
    """Raises the errors of `init_from_parts`, except for a resumed run, which has its weights."""
    if not fine_tuning.own_run(config):
        init_from_parts(config)


def init_from_parts(config) -> tuple[str, ...]:
    """Path prefixes of the leaves that --init_from restores; () without it. Raises WorkdirError if the workdir contains
    no run, and UsageError if its network differs."""
    if not config.init_from:
        return ()
    other = saved_run.read(config.init_from, flag="init_from").config
    encoder = models.spec(config.model).encoders.get(other.model)
    defaults = inspect.signature(models.spec(config.model).module).parameters
    for name in ARCHITECTURE_FLAGS if encoder is None else ():
        there, here = getattr(other, name, None), getattr(config, name, None)
        default = defaults[name].default if name in defaults else None
        if (default if there is None else there) != (default if here is None else here):
            both = f"has --{name}={options.given(there)}, this run --{name}={options.given(here)}"
            raise UsageError(f"--init_from={config.init_from} {both}")
    parts: tuple[str, ...] = (".params", ".batch_stats")
    if encoder is not None:
        parts = tuple(f"{part}['{layer}" for part in parts for layer in encoder)
    return parts
