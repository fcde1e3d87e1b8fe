"""Short training runs of classifiers on mnist5k, for the cards that compare networks."""

from typing import Any, NamedTuple

import jax
import numpy as np

import data
from data import augment
from experiments.lecture import deep_nets
from experiments.setup import small_training
from train import optimizers
from train.tasks import classification

BATCH_SIZE = 64
TEST_NOISE = 0.01  # Random variation of an accuracy on the 1,000 test digits.


def percent(value: dict[str, float] | float) -> str:
    """Formats a fraction, or the mean of fractions over seeds, in percent."""
    return f"{100 * (value['mean'] if isinstance(value, dict) else value):.1f} %"


def relation(own: float, other: float) -> str:
    """How an accuracy compares with another one, given the random variation on the test digits."""
    if abs(own - other) <= TEST_NOISE:
        return "about the same as"
    return "more than" if own > other else "fewer than"


def adam(rate: float, steps: int, decay: float = 0.0):
    """Adam with a one-cycle schedule, decoupled weight decay and gradients clipped to norm 1."""
    schedule = optimizers.schedule("one_cycle", learning_rate=rate, steps=steps)
    return optimizers.create("adamw", schedule, momentum=0.9, nesterov=False, weight_decay=decay, clip_norm=1.0)


class Learned(NamedTuple):
    """A trained classifier.

    Attributes:
      logits: uint8 images [B, 28, 28, 1] -> [B, 10].
      params: The parameters.
      curve: (step, test accuracy) at intervals; the last entry is the final one.
    """

    logits: Any
    params: Any
    curve: list[tuple[int, float]]

    @property
    def accuracy(self) -> float:
        return self.curve[-1][1]


def learn(
    model, *, seed: int, steps: int, rate: float, decay: float = 0.0, augmented: bool = False, evaluations: int = 10
) -> Learned:
    """Trains a classifier on the training digits; with `augmented`, they are shifted, rotated and scaled at random."""
    digits, (tests, answers) = deep_nets.digits(), data.load("mnist5k").splits["test"]

    def train_prepare(images, keys):
        return digits.prepare(augment.digits(images, keys) if augmented else images)

    task = classification.create(
        model=model,
        optimizer=adam(rate, steps, decay),
        image_shape=tests.shape[1:],
        class_names=digits.class_names,
        train_prepare=train_prepare,
        eval_prepare=digits.prepare,
        axis=None,
    )
    predict, curve = jax.jit(task.predict_step), []

    def watch(step, state):
        found = np.asarray(predict(state, {"image": tests})).argmax(-1)
        curve.append((step, float(np.mean(found == answers))))

    state = small_training.train(
        task,
        digits.images,
        digits.labels,
        batch_size=BATCH_SIZE,
        steps=steps,
        seed=seed,
        every=max(1, steps // evaluations),
        watch=watch,
    )
    return Learned(lambda images: np.asarray(predict(state, {"image": images})), state.params, curve)
