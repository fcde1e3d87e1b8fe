"""The classification task: its loss and gradients, its evaluation, its metrics."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels import ops
from models.layers import batch_rows, global_rows, row_keys
from train.averaging import evaluation_weights
from train.precision import at_least_float32, cast_floating
from train.state import State
from train.task import Task
from train.tasks import gradient_descent, losses


def is_product(primitive, *operands, **options) -> bool:
    """True for operations whose results rematerialization saves: convolutions and matrix products. Batch norm,
    activations and concatenations are recomputed, as in the memory-efficient DenseNet (Pleiss et al. 2017)."""
    del operands
    if primitive.name == "custom_vjp_call":  # The operations of models.cpu_kernels.ops.
        return not ops.is_batch_norm(options["call_jaxpr"])
    return primitive.name in ("conv_general_dilated", "dot_general")


def autodiff(
    params,
    batch_stats,
    batch,
    key,
    *,
    model,
    prepare,
    smoothing,
    axis,
    rows=None,
    size=None,
    mix=None,
    dtype=None,
    remat: bool = False,
):
    """((loss, (batch_stats, sums)), gradients) of this device's part of the mean loss over the global batch.

    `rows` [B] are the examples' indices in the global batch; None means this device's rows. With `size`, the augmented
    images are resized to that height and width. `mix(images, labels, keys)`, if given, returns mixed images and the
    mixture of their labels, see losses.over_labels. The network computes in `dtype`, the loss in float32; gradients
    have the dtype of the parameters.
    """
    image_key, dropout_key = jax.random.split(key)
    rows = global_rows(len(batch["label"]), axis) if rows is None else rows
    keys, mixture = row_keys(image_key, rows), None
    images = prepare(batch["image"], keys)
    if size:
        images = jax.image.resize(images, (images.shape[0], *size, images.shape[-1]), "linear")
    if mix:
        images, mixture = mix(images, batch["label"], keys)
    examples = batch["label"].shape[0] * (lax.axis_size(axis) if axis else 1)

    def loss_fn(params):
        variables = {"params": cast_floating(params, dtype), "batch_stats": batch_stats} | batch_rows(rows)
        logits, changed = model.apply(
            variables, cast_floating(images, dtype), train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        logits = at_least_float32(logits)
        loss = functools.partial(losses.cross_entropy, logits, smoothing=smoothing)
        loss_B = losses.over_labels(loss, batch["label"], mixture)
        correct = functools.partial(losses.in_top, logits, k=1)
        sums = {
            "loss": loss_B.sum(),
            "correct": losses.over_labels(correct, batch["label"], mixture).sum(),
            "count": jnp.ones_like(loss_B).sum(),
        }
        return loss_B.sum() / examples, (changed.get("batch_stats", {}), sums)

    loss_fn = jax.checkpoint(loss_fn, policy=is_product) if remat else loss_fn
    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def predict_step(state: State, batch, *, model, prepare, dtype=None):
    """Logits [B, C] in evaluation mode, computed in `dtype` with the average of the weights if the state has one. If
    `prepare` returns several views of each image, [V, B, H, W, C], their probabilities are averaged."""
    params, batch_stats = evaluation_weights(state)
    variables = {"params": cast_floating(params, dtype), "batch_stats": batch_stats}
    images = cast_floating(prepare(batch["image"]), dtype)
    views = images.shape[:-4]
    logits = model.apply(variables, images.reshape(-1, *images.shape[-3:]), train=False)
    logits = losses.class_logits(at_least_float32(logits))
    if not views:
        return logits
    scores = jax.nn.log_softmax(logits).reshape(*views, -1, logits.shape[-1])
    return jax.nn.logsumexp(scores, axis=0) - jnp.log(views[0])


def eval_step(state: State, batch, *, model, prepare, axis=None, dtype=None):
    """Sums over the examples whose mask is 1: loss, top-1 and top-5 correct, count, confusion [true, predicted]."""
    logits, mask = predict_step(state, batch, model=model, prepare=prepare, dtype=dtype), batch["mask"]
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


def compute_metrics(sums, *, classes: int) -> dict[str, float]:
    """Mean loss in nats and accuracies as fractions."""
    metrics = {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}
    if classes > 5 and "correct_top5" in sums:
        metrics["accuracy_top5"] = sums["correct_top5"] / sums["count"]
    return {name: float(value) for name, value in metrics.items()}


def create(
    *,
    model,
    optimizer,
    image_shape,
    class_names,
    train_prepare,
    eval_prepare,
    axis,
    smoothing=0.0,
    mix=None,
    ema: float = 0.0,
    early=(0, None),
    dtype=None,
    accumulate: int = 1,
    remat: bool = False,
    gradients=None,
) -> Task:
    """The task for one network; its input is `train_prepare(images, keys)` or `eval_prepare(images)`.

    `mix` is as in `autodiff`; `ema` is the decay of the average of the weights that evaluations use, 0 for none. With
    `early` = (steps, (height, width)), that many initial steps use images resized to that size. A step processes the
    batch in `accumulate` parts; with `remat`, its backward pass recomputes everything except convolutions and
    matrix products. `gradients(params, batch_stats, batch, key, rows=None)`, if given, replaces automatic
    differentiation; it does not support smoothing, mixing, smaller images, lower precision or rematerialization.
    """
    early_steps, early_size = early

    def make_step(size):
        grad_fn = functools.partial(
            autodiff,
            model=model,
            prepare=train_prepare,
            smoothing=smoothing,
            axis=axis,
            size=size,
            mix=mix,
            dtype=dtype,
            remat=remat,
        )
        grad_fn = gradients or grad_fn
        if accumulate > 1:
            grad_fn = functools.partial(gradient_descent.accumulated, grad_fn=grad_fn, parts=accumulate, axis=axis)
        return functools.partial(gradient_descent.train_step, optimizer=optimizer, grad_fn=grad_fn, ema=ema, axis=axis)

    top5 = ("accuracy_top5",) if len(class_names) > 5 else ()
    return Task(
        name="classification",
        init=functools.partial(
            gradient_descent.init, model=model, optimizer=optimizer, image_shape=image_shape, ema=ema
        ),
        train_step=make_step(None),
        eval_step=functools.partial(eval_step, model=model, prepare=eval_prepare, axis=axis, dtype=dtype),
        compute_metrics=functools.partial(compute_metrics, classes=len(class_names)),
        predict_step=functools.partial(predict_step, model=model, prepare=eval_prepare, dtype=dtype),
        metrics=("loss", "accuracy", *top5),
        train_metrics=("loss", "accuracy"),
        best=("accuracy", "max"),
        early_step=make_step(early_size) if early_steps else None,
        early_steps=early_steps,
    )
