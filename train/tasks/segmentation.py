"""The segmentation task: a class for each pixel. Labels of `classes` or more are void and are ignored."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.layers import BatchNorm, global_rows, row_keys
from train.parallel import data_parallel
from train.precision import at_least_float32, cast_floating
from train.state import State
from train.task import Task
from train.tasks import gradient_descent
from train.tasks.losses import cross_entropy

TOLERANCE = 0.0075  # Maximum distance between matching boundaries, as a fraction of the image diagonal.


def weighted_loss(logits, labels, valid, class_weights):
    """The sum of the cross-entropies of the `valid` pixels, each times the weight of its true class."""
    known = jnp.where(valid, labels, 0)
    return jnp.where(valid, jnp.asarray(class_weights, jnp.float32)[known] * cross_entropy(logits, known), 0.0).sum()


def autodiff(params, batch_stats, batch, key, *, model, prepare, class_weights, axis, dtype=None):
    """((loss, (batch_stats, sums)), gradients) of this device's part of the loss over the global batch.

    The loss is the sum of the pixels' cross-entropies, each times the weight of its true class, divided by the number
    of pixels that are not void, as in the authors' code, and not by the sum of the weights.
    """
    keys = row_keys(key, global_rows(len(batch["image"]), axis))
    images, labels = prepare(batch["image"], batch["label"], keys)
    valid = labels < len(class_weights)
    pixels = valid.sum().astype(jnp.float32)
    total = jnp.maximum(lax.psum(pixels, axis) if axis else pixels, 1.0)

    def loss_fn(params):
        variables = {"params": cast_floating(params, dtype), "batch_stats": batch_stats}
        logits, changed = model.apply(variables, cast_floating(images, dtype), train=True, mutable=["batch_stats"])
        logits = at_least_float32(logits)
        loss = weighted_loss(logits, labels, valid, class_weights)
        correct = (valid & (logits.argmax(-1) == labels)).sum().astype(jnp.float32)
        sums = {"loss": loss, "correct": correct, "pixels": pixels}
        return loss / total, (changed.get("batch_stats", {}), sums)

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


def predict_step(state: State, batch, *, model, prepare, dtype=None):
    """Logits [B, H, W, C] in evaluation mode."""
    variables = {"params": cast_floating(state.params, dtype), "batch_stats": state.batch_stats}
    return at_least_float32(model.apply(variables, cast_floating(prepare(batch["image"]), dtype), train=False))


def _shifted(x_BHWC, rows: int, columns: int):
    """x shifted down and to the right, filled with False."""
    _, height, width, _ = x_BHWC.shape
    y, x = abs(rows), abs(columns)
    padded = jnp.pad(x_BHWC, ((0, 0), (y, y), (x, x), (0, 0)))
    return padded[:, y - rows : y - rows + height, x - columns : x - columns + width]


def boundaries(labels_BHW, classes: int):
    """True [B, H, W, C] at the pixels of each class that have a horizontal or vertical neighbor of another class, not
    counting void."""
    own = labels_BHW[..., None] == jnp.arange(classes)[None, None, None]
    other = ~own & (labels_BHW < classes)[..., None]
    return own & functools.reduce(
        jnp.logical_or, (_shifted(other, *move) for move in ((1, 0), (-1, 0), (0, 1), (0, -1)))
    )


def near(x_BHWC, distance: float):
    """True within `distance` pixels of a True value."""
    found, reach = jnp.zeros_like(x_BHWC), int(distance)
    for rows in range(-reach, reach + 1):
        width = int((distance**2 - rows**2) ** 0.5)
        line = functools.reduce(jnp.logical_or, (_shifted(x_BHWC, 0, i) for i in range(-width, width + 1)))
        found |= _shifted(line, rows, 0)
    return found


def boundary_f1(predicted_BHW, labels_BHW, classes: int):
    """(score [B], whether the image counts [B]): the harmonic mean of precision (the fraction of the predicted boundary
    near a true one) and recall (the fraction of the true boundary near a predicted one), averaged over the classes with
    a true boundary in the image (Csurka, Larlus & Perronnin 2013, "What is a good evaluation measure for semantic
    segmentation?")."""
    height, width = labels_BHW.shape[1:]
    distance = TOLERANCE * (height**2 + width**2) ** 0.5
    predicted_BHW = jnp.where(labels_BHW < classes, predicted_BHW, classes)
    theirs, true = boundaries(predicted_BHW, classes), boundaries(labels_BHW, classes)

    def share(of, at):
        return (of & near(at, distance)).sum((1, 2)) / jnp.maximum(of.sum((1, 2)), 1)

    precision, recall = share(theirs, true), share(true, theirs)
    score_BC = 2 * precision * recall / jnp.maximum(precision + recall, 1e-12)
    present_BC = true.any((1, 2))
    count_B = present_BC.sum(1)
    return (score_BC * present_BC).sum(1) / jnp.maximum(count_B, 1), count_B > 0


def eval_step(state: State, batch, *, model, prepare, class_weights, axis=None, dtype=None):
    """Sums over the images whose mask is 1: weighted loss, pixels, confusion [true, predicted], boundary scores."""
    logits, labels = predict_step(state, batch, model=model, prepare=prepare, dtype=dtype), batch["label"]
    classes = len(class_weights)
    valid = (labels < classes) & (batch["mask"] > 0)[:, None, None]
    predicted = logits.argmax(-1)
    true = (jax.nn.one_hot(labels, classes) * valid[..., None]).reshape(-1, classes)
    score, counts = boundary_f1(predicted, labels, classes)
    counts = counts * batch["mask"]
    sums = {
        "loss": weighted_loss(logits, labels, valid, class_weights),
        "pixels": valid.sum().astype(jnp.float32),
        "count": batch["mask"].sum(),
        "confusion": true.T @ jax.nn.one_hot(predicted, classes).reshape(-1, classes),
        "boundary": (score * counts).sum(),
        "boundary_count": counts.sum(),
    }
    return lax.psum(sums, axis) if axis else sums


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """[C] from a confusion matrix [true, predicted]; NaN for a class in neither the labels nor the predictions."""
    hits, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; 0 if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def compute_metrics(sums) -> dict[str, float]:
    """Means over pixels, classes and images, as fractions; the loss in nats. For a training step's sums, only the loss
    and the global accuracy. A class without labels has no accuracy, and a class with neither labels nor predictions has
    no IoU; means are over the other classes. Without a boundary between two classes in any image, there is no boundary
    F1."""
    pixels = max(float(sums["pixels"]), 1.0)
    metrics = {"loss": sums["loss"] / pixels}
    if "confusion" not in sums:
        return {name: float(value) for name, value in (metrics | {"global_accuracy": sums["correct"] / pixels}).items()}
    confusion = np.asarray(sums["confusion"], np.float64)
    true = confusion.sum(1)
    recall = np.where(true > 0, np.diag(confusion) / np.maximum(true, 1), np.nan)
    metrics |= {
        "global_accuracy": np.trace(confusion) / pixels,
        "class_accuracy": mean_of_known(recall),
        "mean_iou": mean_of_known(intersection_over_union(confusion)),
    }
    if sums["boundary_count"]:
        metrics["boundary_f1"] = sums["boundary"] / sums["boundary_count"]
    return {name: float(value) for name, value in metrics.items()}


def batch_statistics(state: State, batch, *, model, prepare, dtype=None):
    """Returns the batch statistics of one batch."""
    images, _ = prepare(batch["image"], batch["label"], batch["key"])
    zero = jax.tree.map(jnp.zeros_like, state.batch_stats)
    variables = {"params": cast_floating(state.params, dtype), "batch_stats": zero}
    found = model.apply(variables, cast_floating(images, dtype), train=True, mutable=["batch_stats"])[1]["batch_stats"]
    # Running statistics that start from zero are (1 - momentum) times the batch statistics.
    return jax.tree.map(lambda x: x / (1 - BatchNorm.keywords["momentum"]), found)


def precise_batch_norm(*, model, prepare, batches: Callable[[], Iterable], dtype=None) -> Callable[..., State]:
    """Returns a function (state, stopped) -> state that replaces the running statistics of batch norm with the means of
    the batches' statistics (precise BN; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm"), as SegNet's authors
    do before each evaluation. The authors use unbiased variances, which are m / (m - 1) times as large for m pixels per
    batch.

    Training does not depend on the running statistics. If `stopped()` returns true, the state is returned unchanged.

    Args:
      model: The module, without a mesh axis.
      prepare: Same as `train_prepare` in `create`.
      batches: Returns the batches to average over.
      dtype: Type of the computation, as in `create`.
    """
    step = functools.partial(batch_statistics, model=model, prepare=prepare, dtype=dtype)
    step = data_parallel.parallelize(step, 1, donate=False)

    def precise(state: State, stopped: Callable[[], object]) -> State:
        # On one device, regardless of the placement of the state.
        params, batch_stats = jax.device_get((state.params, state.batch_stats))
        here, total, count = State(params, batch_stats, (), jnp.int32(0), jax.random.key(0)), None, 0
        for batch in batches():
            if stopped():
                return state
            found = jax.device_get(step(here, batch))
            total, count = found if total is None else jax.tree.map(np.add, total, found), count + 1

        def placed(total, old):
            return jax.device_put(np.asarray(total / count, old.dtype), old.sharding)

        return state._replace(batch_stats=jax.tree.map(placed, total, state.batch_stats))

    return precise


def details(sums, *, class_names) -> dict:
    """Each class's intersection over union; None for a class in neither the labels nor the predictions."""
    values = intersection_over_union(np.asarray(sums["confusion"], np.float64))
    named = zip(class_names, values, strict=True)
    return {"iou": {name: None if np.isnan(value) else float(value) for name, value in named}}


def create(
    *,
    model,
    optimizer,
    image_shape,
    class_names,
    class_weights,
    train_prepare,
    eval_prepare,
    axis,
    prepare_eval=None,
    dtype=None,
) -> Task:
    """The task for one network; its input is `train_prepare(images, labels, keys)` -> (images, labels), or
    `eval_prepare(images)`. `prepare_eval` is as in Task."""
    common = {"model": model, "axis": axis, "dtype": dtype, "class_weights": tuple(class_weights)}
    grad_fn = functools.partial(autodiff, prepare=train_prepare, **common)
    return Task(
        name="segmentation",
        init=functools.partial(gradient_descent.init, model=model, optimizer=optimizer, image_shape=image_shape),
        train_step=functools.partial(gradient_descent.train_step, optimizer=optimizer, grad_fn=grad_fn, axis=axis),
        prepare_eval=prepare_eval,
        eval_step=functools.partial(eval_step, prepare=eval_prepare, **common),
        compute_metrics=compute_metrics,
        predict_step=functools.partial(predict_step, model=model, prepare=eval_prepare, dtype=dtype),
        metrics=("loss", "global_accuracy", "class_accuracy", "mean_iou", "boundary_f1"),
        train_metrics=("loss", "global_accuracy"),
        best=("mean_iou", "max"),
        min_eval_batch_size=8,
        details=functools.partial(details, class_names=tuple(class_names)),
    )
