"""The adding problem for recurrent networks (Hochreiter & Schmidhuber 1997, "Long short-term memory", section 5.4):
sequences, training, and gradient norms by step of the sequence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.lecture.zoo import digits
from experiments.setup import small_training
from models.recurrent import CELLS, RowReader
from train.task import Task
from train.tasks import gradient_descent

# Initial bias of the gate that keeps the state, which is then nearly open. With 1 (lstm) or 0 (gru) sequences of 60
# steps are not learned in 1,500 training steps.
KEEP_BIAS = 3.0
RATE = 0.01  # Learning rate for the adding problem. The plain network also fails with 0.003 and 0.001.
RIGHT = 0.04  # Maximum error of a correct prediction in the adding problem, as in the paper.


def sequences(generator: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences [count, length, 2, 1] of numbers from U(-1, 1) and their markers, and the targets [count].

    One number in steps 2 to 10 has the marker 1, and so has another number of the first half; the markers of the first
    and the last step are -1, all others are 0. The target is 0.5 + (X1 + X2) / 4 for the marked numbers X1 and X2
    (Hochreiter & Schmidhuber 1997, section 5.4, where the length varies by 10 %).
    """
    half, rows = length // 2, np.arange(count)
    numbers, marks = generator.uniform(-1, 1, (count, length)), np.zeros((count, length))
    marks[:, [0, -1]] = -1
    first = generator.integers(1, min(10, half), count)
    second = generator.integers(1, half - 1, count)
    second += second >= first
    marks[rows, first] = marks[rows, second] = 1
    targets = 0.5 + (numbers[rows, first] + numbers[rows, second]) / 4
    return np.stack([numbers, marks], axis=-1)[..., None].astype(np.float32), targets.astype(np.float32)


def regression(model, optimizer, image_shape) -> Task:
    """A regression task: the squared error of the network's single output; targets are in "label"."""

    def grad_fn(params, batch_stats, batch, key):
        del key

        def loss_fn(params):
            loss_B = (model.apply({"params": params}, batch["image"])[:, 0] - batch["label"]) ** 2
            return loss_B.mean(), (batch_stats, {"loss": loss_B.sum(), "count": jnp.ones_like(loss_B).sum()})

        return jax.value_and_grad(loss_fn, has_aux=True)(params)

    def eval_step(state, batch):
        error = model.apply({"params": state.params}, batch["image"])[:, 0] - batch["label"]
        return {"loss": (error**2).sum(), "right": (jnp.abs(error) < RIGHT).sum(), "count": jnp.ones_like(error).sum()}

    return Task(
        name="regression",
        init=functools.partial(gradient_descent.init, model=model, optimizer=optimizer, image_shape=image_shape),
        train_step=functools.partial(gradient_descent.train_step, optimizer=optimizer, grad_fn=grad_fn),
        eval_step=eval_step,
        compute_metrics=lambda sums: {name: float(sums[name] / sums["count"]) for name in ("loss", "right")},
        predict_step=lambda state, batch: model.apply({"params": state.params}, batch["image"]),
        metrics=("loss", "right"),
        train_metrics=("loss",),
        best=("loss", "min"),
    )


@functools.partial(jax.jit, static_argnames="cell")
def state_gradients(params, sequences, targets, *, cell: str) -> tuple[jax.Array, ...]:
    """The gradients [T, B, H] of each sequence's squared error with respect to each array of the state, by step."""
    layer, logits, kind = params["layer1"], params["logits"], CELLS[cell]
    s_TBG = (sequences[..., 0] @ layer["input"]["kernel"] + layer["input"]["bias"][None, None]).swapaxes(0, 1)
    zeros = jnp.zeros((*s_TBG.shape[:2], len(layer["recurrent"])))

    def loss(added):
        def one(state, inputs):
            s, more = inputs
            state = kind.step(state, s, layer["recurrent"])
            return tuple(a + b for a, b in zip(state, more, strict=True)), None

        (h, *_), _ = lax.scan(one, (zeros[0],) * kind.states, (s_TBG, added))
        return (((h @ logits["kernel"])[:, 0] + logits["bias"] - targets) ** 2).sum()

    return jax.grad(loss)((zeros,) * kind.states)


def reach(params, sequences, targets, *, cell: str) -> list[float]:
    """The norm of the gradient with respect to the state at each step, averaged over sequences and divided by the norm
    at the last step."""
    found = [np.asarray(part, np.float64) for part in state_gradients(params, sequences, targets, cell=cell)]
    # float64, because the squares of a vanished gradient underflow float32.
    norms = np.sqrt(sum((part**2).sum(-1) for part in found)).mean(-1)
    return rounded(norms / norms[-1])


def rounded(values) -> list[float]:
    """Rounds values to five significant digits."""
    return [float(f"{value:.5g}") for value in values]


def learn(
    cell: str, length: int, *, seed: int, steps: int, batch: int = 32, units: int = 32, rate: float = RATE
) -> dict[str, Any]:
    """Trains on the adding problem; each sequence is used once. Returns the `curve` of (step, accuracy) on the test
    sequences, the final accuracy `right` and `loss`, and `reach` before and after training."""
    generator = np.random.default_rng((seed, length))
    train, test = sequences(generator, steps * batch, length), sequences(generator, 500, length)
    task = regression(RowReader(1, cell, (units,), KEEP_BIAS), digits.adam(rate, steps), (length, 2, 1))
    evaluate, curve, reached = jax.jit(task.eval_step), [], []

    def watch(step, state):
        found = task.compute_metrics(evaluate(state, {"image": test[0], "label": test[1]}))
        curve.append({"step": step, **found})
        if step in (0, steps):
            reached.append(reach(state.params, test[0][:64], test[1][:64], cell=cell))

    every = max(1, steps // 12)
    small_training.train(task, *train, batch_size=batch, steps=steps, seed=seed, every=every, watch=watch)
    final = {name: curve[-1][name] for name in ("right", "loss")}
    points = [[row["step"], round(row["right"], 4)] for row in curve]
    guess = float((np.abs(test[1] - 0.5) < RIGHT).mean())
    return {**final, "guess": guess, "curve": points, "before": reached[0], "after": reached[1]}
