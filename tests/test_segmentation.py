"""Compares the segmentation task with NumPy: weighted loss, void pixels, several devices, boundaries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data import augment
from experiments.reporting import segmentation_report
from models.segnet import SegNetBasic
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.tasks import segmentation

CLASSES, VOID = 3, 3
WEIGHTS = (0.5, 1.0, 4.0)


def make(devices):
    axis = axis_of(devices)
    return segmentation.create(
        model=SegNetBasic(CLASSES, widths=(4,), window=3, axis_name=axis),
        optimizer=optax.sgd(1.0),
        image_shape=(9, 10, 3),
        class_names=("a", "b", "c"),
        class_weights=WEIGHTS,
        train_prepare=lambda images, labels, keys: (images * 1.0, labels),
        eval_prepare=lambda images: images.astype(jnp.float32),
        axis=axis,
    )


def batch_of(rows):
    random = np.random.default_rng(0)
    labels = random.integers(0, VOID + 1, (rows, 9, 10)).astype(np.int32)
    labels[: rows // 2] = np.where(random.random(labels[: rows // 2].shape) < 0.7, VOID, labels[: rows // 2])
    return {"image": random.integers(0, 256, (rows, 9, 10, 3), dtype=np.uint8), "label": labels}


def test_loss_and_metrics_against_loops():
    task, batch = make(1), batch_of(4)
    state = jax.jit(task.init)(jax.random.key(0))
    logits = np.asarray(task.predict_step(state, batch), np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mask = np.array([1.0, 0.0, 1.0, 1.0], np.float32)
    sums = jax.device_get(task.eval_step(state, batch | {"mask": mask}))
    loss, confusion = 0.0, np.zeros((CLASSES, CLASSES))
    for b, y, x in np.ndindex(batch["label"].shape):
        label = batch["label"][b, y, x]
        if label < VOID and mask[b]:
            loss -= WEIGHTS[label] * scores[b, y, x, label]
            confusion[label, logits[b, y, x].argmax()] += 1
    np.testing.assert_array_equal(sums["confusion"], confusion)
    assert sums["count"] == 3 and sums["pixels"] == confusion.sum()
    found = task.compute_metrics(sums)
    assert found["loss"] == pytest.approx(loss / confusion.sum(), rel=1e-5)
    assert found["global_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    recalls = [confusion[i, i] / confusion[i].sum() for i in range(CLASSES)]
    overlaps = [
        confusion[i, i] / (confusion[i].sum() + confusion[:, i].sum() - confusion[i, i]) for i in range(CLASSES)
    ]
    assert found["class_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["mean_iou"] == pytest.approx(np.mean(overlaps))
    assert tuple(found) == task.metrics


@pytest.mark.parametrize("through", [pytest.param("pmap", marks=pytest.mark.slow), "shard_map"])
def test_devices_with_different_numbers_of_void_pixels_give_the_same_gradient(through):
    batch, found = batch_of(8), {}
    with jax.enable_x64(True):
        for devices in (1, 4):
            task = make(devices)
            state = jax.jit(task.init)(jax.random.key(0))
            cast = jax.tree.map(lambda x: x.astype(jnp.float64), (state.params, state.batch_stats))
            state = state._replace(params=cast[0], batch_stats=cast[1])
            step = data_parallel.parallelize(task.train_step, devices, donate=False, through=through)
            after, sums = step(state, batch)
            found[devices] = jax.device_get((after.params, after.batch_stats)), jax.device_get(sums)
    assert tree_error(found[4][0], found[1][0]) < 1e-12
    assert tree_error(found[4][1], found[1][1]) < 1e-12
    assert found[1][1]["pixels"] == (batch["label"] < VOID).sum()


def test_void_pixels_have_no_effect():
    task, batch = make(1), batch_of(2)
    state, step = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.train_step)
    grads = []
    for void in (VOID, 200):
        labels = np.where(batch["label"] == VOID, void, batch["label"])
        after, sums = jax.device_get(step(state, batch | {"label": labels}))
        grads.append((after.params, sums))
    assert tree_error(grads[0], grads[1]) == 0.0
    nothing = batch | {"label": np.full_like(batch["label"], VOID)}
    after, sums = jax.device_get(step(state, nothing))
    assert tree_error(after.params, jax.device_get(state.params)) == 0.0 and sums["loss"] == 0.0
    assert task.compute_metrics(sums)["loss"] == 0.0


def boundary_in_loops(labels, c):
    height, width = labels.shape
    found = []
    for y, x in np.ndindex(height, width):
        around = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        others = [labels[p] for p in around if 0 <= p[0] < height and 0 <= p[1] < width]
        if labels[y, x] == c and any(label not in (c, VOID) for label in others):
            found.append((y, x))
    return np.array(found).reshape(-1, 2)


@pytest.mark.parametrize("size", [(12, 16), (150, 8), (240, 320)])
def test_boundary_f1_against_loops(size):
    """For these sizes the tolerances are 0.15, 1.1 and 2.4 pixels."""
    random = np.random.default_rng(1)
    true = np.kron(random.integers(0, VOID + 1, (2, *(-(-side // 4) for side in size))), np.ones((1, 4, 4), int))
    true = true[:, : size[0], : size[1]]
    guess = np.where(random.random(true.shape) < 0.9, np.minimum(np.roll(true, 1, 1), 2), 1)
    true[1] = 0  # No boundary, so the image does not count.
    if size[0] > 200:
        true, guess = true[:, :40], guess[:, :40]
    distance = segmentation.TOLERANCE * np.hypot(*true.shape[1:])
    scores = []
    for c in range(CLASSES):
        a = boundary_in_loops(np.where(true[0] < VOID, guess[0], VOID), c)
        b = boundary_in_loops(true[0], c)
        apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
        precision, recall = (apart.min(1) <= distance).mean(), (apart.min(0) <= distance).mean()
        scores.append(2 * precision * recall / (precision + recall))
    score, counts = segmentation.boundary_f1(jnp.asarray(guess), jnp.asarray(true), CLASSES)
    assert counts.tolist() == [True, False] and score[1] == 0
    assert score[0] == pytest.approx(np.mean(scores), rel=1e-5) and 0 < score[0] < 1


def test_there_is_no_boundary_f1_without_boundaries():
    """In a margin of void around each object, no pixels of two classes touch."""
    sums = {"loss": 2.0, "pixels": 4.0, "confusion": np.diag([3.0, 1.0]), "boundary": 1.5, "boundary_count": 2.0}
    scores = {"loss": 0.5, "global_accuracy": 1.0, "class_accuracy": 1.0, "mean_iou": 1.0}
    assert segmentation.compute_metrics(sums) == scores | {"boundary_f1": 0.75}
    assert segmentation.compute_metrics(sums | {"boundary": 0.0, "boundary_count": 0.0}) == scores


def test_precise_batch_norm_averages_over_the_batches():
    task, batches = make(1), [batch_of(4) | {"key": np.zeros(4)}, batch_of(6) | {"key": np.zeros(6)}]
    state = jax.jit(task.init)(jax.random.key(0))
    model = SegNetBasic(CLASSES, widths=(4,), window=3)
    function = segmentation.precise_batch_norm(
        model=model, prepare=lambda images, labels, keys: (images * 1.0, labels), batches=lambda: iter(batches)
    )
    stops = iter((None, 15))
    assert function(state, lambda: next(stops)) is state, "unchanged, since a signal came first"
    precise = function(state, lambda: None)
    from models.layers import local_response_norm

    kernel, bias = (np.asarray(state.params["encoder1_conv"][name]) for name in ("kernel", "bias"))
    means, variances = [], []
    for batch in batches:
        x = local_response_norm(jnp.asarray(batch["image"] * 1.0), size=5, alpha=1e-4, beta=0.75)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        means.append((y + bias.reshape(1, 1, 1, -1)).mean((0, 1, 2)))
        variances.append(y.var((0, 1, 2)))
    found = precise.batch_stats["encoder1_bn"]
    np.testing.assert_allclose(found["mean"], np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(found["var"], np.mean(variances, 0), rtol=1e-4)
    assert precise.params is state.params


def test_an_image_and_its_labels_are_cropped_and_flipped_together():
    labels = np.arange(2 * 5 * 7, dtype=np.int32).reshape(2, 5, 7)
    images, labels = np.repeat(labels, 100, 0)[..., None] + np.array([0, 100]), np.repeat(labels, 100, 0)
    keys = jax.random.split(jax.random.key(0), 200)
    found, cut = map(np.asarray, augment.flip_crop_pair(images, labels, keys, size=(3, 4), flip=True))
    np.testing.assert_array_equal(found, cut[..., None] + np.array([0, 100]))
    steps = np.unique(cut[:, 0, 1] - cut[:, 0, 0])
    assert steps.tolist() == [-1, 1] and len(np.unique(cut[:100].min((1, 2)))) == 3 * 4
    _, straight = augment.flip_crop_pair(images, labels, keys, size=(3, 4), flip=False)
    assert (straight[:, 0, 1] - straight[:, 0, 0] == 1).all()


def test_absent_classes_are_excluded_from_the_means():
    """Class 1 is neither present nor predicted; class 3 is predicted but not present."""
    confusion = np.array([[8, 0, 0, 0], [0, 0, 0, 0], [0, 0, 5, 5], [0, 0, 0, 0]], np.float64)
    np.testing.assert_array_equal(segmentation.intersection_over_union(confusion), [1.0, np.nan, 0.5, 0.0])
    sums = {"confusion": confusion, "pixels": 18.0, "loss": 9.0, "boundary": 1.0, "boundary_count": 2.0}
    metrics = segmentation.compute_metrics(sums)
    assert metrics["mean_iou"] == pytest.approx(0.5) and metrics["class_accuracy"] == pytest.approx(0.75)
    assert segmentation.details(sums, class_names="abcd") == {"iou": {"a": 1.0, "b": None, "c": 0.5, "d": 0.0}}
    rows = segmentation_report.class_table(sums, "abcd")[2]
    assert rows[1] == ["b", "0", "none", "none"] and rows[3] == ["d", "0", "none", "0.000"]
    perfect = segmentation.compute_metrics(sums | {"confusion": np.diag([4.0, 0.0, 5.0, 0.0])})
    assert (perfect["mean_iou"], perfect["class_accuracy"]) == (1.0, 1.0)
    nothing = segmentation.compute_metrics(sums | {"confusion": np.zeros((4, 4))})
    assert (nothing["mean_iou"], nothing["class_accuracy"]) == (0.0, 0.0)
