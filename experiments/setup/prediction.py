"""Batched predictions of a trained network on one device, and `load_run` for notebooks."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.setup import saved_run, stored_network
from experiments.setup.experiment import Experiment
from train.averaging import evaluation_variables
from train.parallel import data_parallel
from train.state import State
from train.task import Task

BATCH_SIZE = {"classification": 256, "segmentation": 8, "reconstruction": 256}


@functools.cache
def _compiled(step):
    return data_parallel.parallelize(step, 1, donate=False)


def outputs(task: Task, state: State, images: np.ndarray, batch_size: int | None = None) -> Iterator[np.ndarray]:
    """The task's outputs for uint8 images [N, H, W, C], batch by batch; the last batch is padded with zeros."""
    size = max(1, min(batch_size or BATCH_SIZE[task.name], len(images)))
    for start in range(0, max(1, len(images)), size):  # At least one batch, for the shape of the outputs.
        part = images[start : start + size]
        padded = np.pad(part, ((0, size - len(part)), *((0, 0),) * 3))
        yield np.asarray(_compiled(task.predict_step)(state, {"image": padded}))[: len(part)]


def probabilities(task: Task, state: State, images: np.ndarray, batch_size: int | None = None) -> np.ndarray:
    """Class probabilities [N, C] for uint8 images [N, H, W, C]."""
    found = [np.asarray(jax.nn.softmax(logits, axis=-1)) for logits in outputs(task, state, images, batch_size)]
    return np.concatenate(found)


def reconstructions(task: Task, state: State, images: np.ndarray) -> np.ndarray:
    """Reconstructions of uint8 images [N, H, W, C]. Pixels are in [0, 1], except with --model=sparse."""
    return np.concatenate(list(outputs(task, state, images)))


def masks(task: Task, state: State, images: np.ndarray) -> np.ndarray:
    """The predicted class of each pixel, uint8 [N, H, W], for uint8 images [N, H, W, C]."""
    return np.concatenate([logits.argmax(-1).astype(np.uint8) for logits in outputs(task, state, images)])


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedRun:
    """A trained network with its config, for prediction."""

    workdir: pathlib.Path
    config: Any  # The config of the command that trained the run.
    experiment: Experiment
    state: State

    def __repr__(self) -> str:
        return f"LoadedRun({self.config.model} of {self.workdir}, step {int(self.state.step)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.experiment.info.class_names

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `experiment.model.apply`: "params" and "batch_stats"; averages in a run with --ema."""
        return evaluation_variables(self.state)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns class probabilities [N, classes] for a run of classify, the class of each pixel [N, H, W] for a run
        of segment, or reconstructions [N, H, W, C] for a run of reconstruct, from uint8 images [N, H, W, C] of the
        run's size. Raises ValueError for other images or a run of generate."""
        task, shape = self.experiment.task, self.experiment.info.image_shape
        if task.name not in BATCH_SIZE:
            raise ValueError(f"for a run of generate use python -m experiments.predict --workdir={self.workdir}")
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != shape or images.ndim != 4:
            wanted = f"uint8 of shape [N, {', '.join(map(str, shape))}]"
            raise ValueError(f"images must be {wanted}, not {images.dtype} of shape {list(images.shape)}")
        steps = {"segmentation": masks, "reconstruction": reconstructions}
        return steps.get(task.name, probabilities)(task, self.state, images)


def load_run(workdir: str, checkpoint: str = "latest") -> LoadedRun:
    """Loads the trained network of a workdir from its newest ("latest") or its "best" checkpoint. Raises WorkdirError
    if there is none."""
    if checkpoint not in ("latest", "best"):
        raise ValueError(f"checkpoint must be 'latest' or 'best', not {checkpoint!r}")
    run = saved_run.read(str(workdir))
    experiment = stored_network.experiment_from_run(run)
    return LoadedRun(run.workdir, run.config, experiment, stored_network.restore(experiment, run, checkpoint))
