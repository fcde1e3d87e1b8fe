"""The estimated time of a run, printed once after its first steps, with settings that would shorten a long run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

import models
from data.image_files import LARGEST
from experiments.cli.config import ClassifyConfig
from experiments.cli.validation import in_files
from experiments.setup.experiment import Experiment
from models import summary
from models.errors import ModelError
from train.messages import say

MEASURED = 10.0  # Seconds of training steps, at least two, before the time is estimated.
SHORTEST, LONG = 60, 1800  # Seconds: a shorter estimate is not printed; a longer one with advice.
EVALUATED = 1 / 3  # Time to evaluate an image, relative to a training image: without the backward pass.
# Networks to suggest for large and for small images, if they are at least FACTOR smaller.
SMALLER, FACTOR = {True: ("resnet18", "cnn"), False: ("cifar_resnet20", "cnn")}, 3


def duration(seconds: float) -> str:
    """A rounded duration such as "12 min", "3 h 20 min" or "2 days 5 h"."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} day{'s' if hours >= 48 else ''} {hours % 24} h"


def line(seconds: float, rate: float, shorter: list[str]) -> str:
    """The message, with the flags `shorter` that would shorten the run."""
    text = f"estimated time: about {duration(seconds)} at {rate:,.0f} images/s"
    if rate < 10:
        text = f"estimated time: about {duration(seconds)} at {rate:.2g} images/s"
    if not shorter:
        return text
    listed = " or ".join(filter(None, (", ".join(shorter[:-1]), shorter[-1])))
    return f"{text}; on a CPU, {listed} would shorten it"


def shorter_settings(config: Any, experiment: Experiment) -> list[str]:
    """Flags of classify that would shorten the run: smaller images, a smaller network, and fewer epochs or steps."""
    found, (side, _, channels) = [], experiment.input_shape
    if isinstance(config, ClassifyConfig):
        images = in_files(config.dataset)
        small = 96 if side > 128 else LARGEST
        if images and side > LARGEST and _multiply_adds(experiment.model, (small, small, channels)) < math.inf:
            found.append(f"--image_size={small}")
        own = summary.multiply_adds(experiment.model, experiment.input_shape)
        for name in SMALLER[side > LARGEST]:
            other = models.create(name, len(experiment.info.class_names))
            if _multiply_adds(other, experiment.input_shape) * FACTOR <= own:
                found.append(f"--model={name}")
                break
    return [*found, "fewer --steps" if config.steps else "fewer --epochs"]


def _multiply_adds(model, input_shape) -> float:
    """Infinite if the model does not accept such images."""
    try:
        return summary.multiply_adds(model, input_shape)
    except ModelError:
        return math.inf


@dataclasses.dataclass
class TimeEstimate:
    """Called after each step with the step, and the images and seconds of the training steps measured so far. Prints
    the estimate of the remaining time once."""

    steps: int
    batch_size: int
    evaluated: Callable[[int], int]  # step -> images evaluated from there to the end of the run
    shorter: Callable[[], list[str]]
    printed: bool = False

    def __call__(self, step: int, images: int, seconds: float) -> None:
        if self.printed or seconds < MEASURED or images < 2 * self.batch_size:
            return
        self.printed, rate = True, images / seconds
        left = ((self.steps - step) * self.batch_size + EVALUATED * self.evaluated(step)) / rate
        if left >= SHORTEST:
            long = left >= LONG and jax.default_backend() == "cpu"
            say(line(left, rate, self.shorter() if long else []))
