"""The classification task: its step, its evaluation, its figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from models.layers import row_keys
from train import losses
from train.state import State, step_key
from train.task import Task


def init(key, *, model, optimizer, image_shape) -> State:
    """The state before the first step, for images [H, W, C]."""
    variables = model.init(jax.random.fold_in(key, 2**32 - 1), jnp.zeros((1, *image_shape)), train=False)
    params = variables["params"]
    return State(params, variables.get("batch_stats", {}), optimizer.init(params), jnp.zeros((), jnp.int32), key)


def autodiff(params, batch_stats, batch, key, *, model, prepare, smoothing, axis, size=None):
    """((loss, (batch_stats, sums)), gradients) of this device's part of the mean loss over the global batch.

    With `size` the augmented images are shrunk to that height and width.
    """
    image_key, dropout_key = jax.random.split(key)
    keys = row_keys(image_key, batch["label"].shape[0], axis_name=axis)
    images = prepare(batch["image"], keys)
    if size:
        images = jax.image.resize(images, (images.shape[0], *size, images.shape[-1]), "linear")
    examples = batch["label"].shape[0] * (lax.axis_size(axis) if axis else 1)

    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        loss_B = losses.cross_entropy(logits, batch["label"], smoothing=smoothing)
        sums = {
            "loss": loss_B.sum(),
            "correct": losses.in_top(logits, batch["label"], 1).sum(),
            "count": jnp.ones_like(loss_B).sum(),
        }
        return loss_B.sum() / examples, (changed.get("batch_stats", {}), sums)

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def train_step(state: State, batch, *, optimizer, grad_fn, axis=None):
    """One step of gradient descent on one device's rows of the batch, (state, batch) -> (state, sums).

    Parameters are cast to varying once, the per-device part of the loss is differentiated, and the reduction over
    `axis` is written out: the form that is right under pmap and shard_map alike.
    """
    vary = (lambda tree: jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), tree)) if axis else lambda tree: tree
    params, batch_stats = vary(state.params), vary(state.batch_stats)
    (_, (batch_stats, sums)), grads = grad_fn(params, batch_stats, batch, step_key(state))
    if axis:
        grads, sums = lax.psum((grads, sums), axis)
        batch_stats = lax.pmean(batch_stats, axis)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(
        optax.apply_updates(state.params, updates), batch_stats, opt_state, state.step + 1, state.key
    ), sums  # fmt: skip


def predict_step(state: State, batch, *, model, prepare):
    """Logits [B, C] in evaluation mode. Where `prepare` gives several views of each image, [V, B, H, W, C], their
    probabilities are averaged."""
    variables, images = {"params": state.params, "batch_stats": state.batch_stats}, prepare(batch["image"])
    if images.ndim == 4:
        return losses.class_logits(model.apply(variables, images, train=False))
    views = images.shape[0]
    logits = losses.class_logits(model.apply(variables, images.reshape(-1, *images.shape[2:]), train=False))
    scores = jax.nn.log_softmax(logits).reshape(views, -1, logits.shape[-1])
    return jax.nn.logsumexp(scores, axis=0) - jnp.log(views)


def eval_step(state: State, batch, *, model, prepare, axis=None):
    """Sums over the examples whose mask is 1: loss, hits, hits among five, count, confusion [true, predicted]."""
    logits, mask = predict_step(state, batch, model=model, prepare=prepare), batch["mask"]
    classes = logits.shape[-1]
    true, predicted = jax.nn.one_hot(batch["label"], classes), jax.nn.one_hot(logits.argmax(-1), classes)
    sums = {
        "loss": (losses.cross_entropy(logits, batch["label"]) * mask).sum(),
        "correct": (losses.in_top(logits, batch["label"], 1) * mask).sum(),
        "correct_top5": (losses.in_top(logits, batch["label"], 5) * mask).sum(),
        "count": mask.sum(),
        "confusion": (true * mask[:, None]).T @ predicted,
    }
    return lax.psum(sums, axis) if axis else sums


def finish(sums, *, classes: int) -> dict[str, float]:
    """Mean loss in nats and accuracies as fractions."""
    metrics = {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}
    if classes > 5 and "correct_top5" in sums:
        metrics["accuracy_top5"] = sums["correct_top5"] / sums["count"]
    return {name: float(value) for name, value in metrics.items()}


def create(
    *, model, optimizer, image_shape, class_names, train_prepare, eval_prepare, axis, smoothing=0.0, early=(0, None)
) -> Task:
    """The task for one network; its input is `train_prepare(images, keys)` or `eval_prepare(images)`. `early` = (steps,
    (height, width)): that many steps at the start see images shrunk to that size."""
    early_steps, early_size = early
    step, early_step = (
        functools.partial(
            train_step,
            optimizer=optimizer,
            grad_fn=functools.partial(
                autodiff, model=model, prepare=train_prepare, smoothing=smoothing, axis=axis, size=size
            ),
            axis=axis,
        )
        for size in (None, early_size)
    )
    top5 = ("accuracy_top5",) if len(class_names) > 5 else ()
    return Task(
        name="classification",
        init=functools.partial(init, model=model, optimizer=optimizer, image_shape=image_shape),
        train_step=step,
        prepare_eval=lambda state: state,
        eval_step=functools.partial(eval_step, model=model, prepare=eval_prepare, axis=axis),
        finish=functools.partial(finish, classes=len(class_names)),
        predict_step=functools.partial(predict_step, model=model, prepare=eval_prepare),
        metrics=("loss", "accuracy", *top5),
        best=("accuracy", "max"),
        early_step=early_step if early_steps else None,
        early_steps=early_steps,
    )


def class_table(confusion: np.ndarray, class_names) -> tuple[str, list[str], list[list[str]]]:
    """The report's table of recall and precision by class."""
    rows = []
    for i, name in enumerate(class_names):
        true, predicted = confusion[i].sum(), confusion[:, i].sum()
        share = [f"{confusion[i, i] / n:.3f}" if n else "none" for n in (true, predicted)]
        rows.append([name, f"{true:.0f}", *share])
    return "Classes", ["class", "examples", "recall", "precision"], rows
