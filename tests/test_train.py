"""Tests of the training step on any number of devices, the training loop, and losses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import models
from data import augment, batches
from experiments.cli.config import ClassifyConfig
from experiments.setup import training
from models import layers
from models.cpu_kernels import ffi
from train import checkpoint, leaves, loop, optimizers, workdir
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.signals import Interrupted
from train.tasks import classification, losses


def make_task(axis, model="cnn", early=(0, None), accumulate=1, remat=False, dtype=None, **options):
    if model == "cnn":
        options |= {"axis_name": axis, "dropout": 0.3, "widths": (4, 8, 8), "features": 8}

    def prepare(images):
        return augment.normalize(images, (33.0,), (79.0,))

    return classification.create(
        model=models.create(model, 10, **options) if isinstance(model, str) else model,
        optimizer=optimizers.create("sgd", lambda step: 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        image_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        train_prepare=lambda images, keys: prepare(augment.digits(images, keys)),
        eval_prepare=prepare,
        axis=axis,
        early=early,
        accumulate=accumulate,
        remat=remat,
        dtype=dtype,
    )


def run(mnist5k, devices, steps, seed=0):
    task = make_task(axis_of(devices))
    state = jax.jit(task.init)(jax.random.key(0))
    step = data_parallel.parallelize(task.train_step, devices, donate=True)
    stream = batches.train_batches(*mnist5k.splits["train"], batch_size=16, seed=seed)
    for _ in range(steps):
        state, sums = step(state, next(stream))
    return jax.tree.map(np.asarray, (state.params, state.batch_stats)), jax.tree.map(float, sums)


def test_a_nan_in_any_leaf_is_an_error():
    good, bad = np.ones(2), np.array([1.0, np.nan])
    for ours in ((good, bad), (bad, good)):
        assert np.isnan(tree_error(ours, (good, good)))
    assert tree_error((good, 1.5 * good), (good, good)) == 0.5


def test_evaluations_compute_in_full_precision(mnist5k, monkeypatch):
    """A GPU would otherwise round the operands to TensorFloat-32, as it does in training."""
    monkeypatch.setattr(ffi, "_disabled", True)
    task = make_task(None)
    state = jax.jit(task.init)(jax.random.key(0))
    images, labels = (part[:4] for part in mnist5k.splits["test"])
    batch = {"image": images, "label": labels, "mask": np.ones(4, np.float32)}
    for step, donate, full in ((task.eval_step, False, True), (task.train_step, True, False)):
        lines = data_parallel.parallelize(step, 1, donate=donate).lower(state, batch).as_text().splitlines()
        products = [line for line in lines if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]
        assert len(products) >= 4 and all(("HIGHEST" in line) == full for line in products)


@pytest.fixture(scope="module")
def one_device(mnist5k):
    """one_device(seed) is the result of five steps on one device."""
    return functools.cache(lambda seed: run(mnist5k, 1, 5, seed))


@pytest.mark.parametrize("devices", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 8))])
def test_any_number_of_devices_gives_the_same_parameters(mnist5k, one_device, devices):
    """For one of three data orders results must agree. In the others rounding may flip the sign of a ReLU input."""
    for seed in range(3):
        (trees, sums), (expected, expected_sums) = run(mnist5k, devices, 5, seed), one_device(seed)
        if tree_error(trees, expected) < 1e-5:
            break
    assert tree_error(trees, expected) < 1e-5
    assert sums == pytest.approx(expected_sums, rel=1e-5)


def test_golden_loss_of_the_first_step(mnist5k):
    _, sums = run(mnist5k, 1, 1)
    assert sums["count"] == 16
    # Update this only for a change that is intended to change the first step.
    assert sums["loss"] / sums["count"] == pytest.approx(2.37, abs=0.01)


def test_momentum_is_carried_from_step_to_step(mnist5k):
    """The second updates with and without the momentum of the first step differ by 0.9 times the first update."""
    task = classification.create(
        model=models.create("perceptron", 10),
        optimizer=optax.sgd(0.1, momentum=0.9),
        image_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        train_prepare=lambda images, keys: images / 255.0,
        eval_prepare=lambda images: images / 255.0,
        axis=None,
    )
    images, labels = mnist5k.splits["train"]
    batch, step = {"image": images[::250], "label": labels[::250]}, jax.jit(task.train_step)
    start = jax.jit(task.init)(jax.random.key(0))
    once = step(start, batch)[0]
    twice, forgetful = step(once, batch)[0], step(once._replace(opt_state=start.opt_state), batch)[0]
    found = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), twice.params, forgetful.params)
    expected = jax.tree.map(lambda a, b: 0.9 * (np.asarray(a) - np.asarray(b)), once.params, start.params)
    assert tree_error(found, expected) < 1e-5 and tree_error(once.params, start.params) > 1e-3


def test_a_missing_reduction_is_reported():
    def forgetful(state, batch):
        return {"weights": state["weights"] - batch["x"].mean(), "count": lax.psum(batch["x"].sum(), "data")}

    state, batch = {"weights": np.zeros(3, np.float32)}, {"x": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=r"reduction over devices is missing:.*weights"):
        data_parallel.check_reductions(forgetful, state, batch=batch, devices=4)


class Wide(nn.Module):
    """A network without batch norm, with dropout."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.relu(layers.Conv(6, (3, 3), strides=4, name="conv")(x)).reshape(x.shape[0], -1)
        return layers.Dense(10)(layers.Dropout(0.5, self.axis_name)(x, train))


def step_of(mnist5k, devices=1, **options):
    axis, parts = axis_of(devices), options.get("accumulate", 1)
    task = make_task(axis, model=Wide(axis), **options)
    images, labels = mnist5k.splits["train"]
    step = data_parallel.parallelize(task.train_step, devices, donate=False)
    rows = batches.device_order(16, devices=devices, micro_batches=parts)
    state, sums = step(jax.jit(task.init)(jax.random.key(0)), {"image": images[rows], "label": labels[rows]})
    return jax.device_get((state.params, sums))


@pytest.mark.parametrize("devices", [1, 2])
def test_accumulated_gradients_equal_those_of_the_whole_batch(mnist5k, devices):
    assert tree_error(step_of(mnist5k, devices, accumulate=4), step_of(mnist5k)) < 1e-5


def test_batch_norm_of_micro_batches_is_the_same_on_any_number_of_devices(mnist5k):
    """With dropout and augmentation, on the batches that a run trains on."""
    found = []
    for devices in (1, 2, 4):
        config = ClassifyConfig(workdir="W", batch_size=16, accumulate=2)
        task = make_task(axis_of(devices), accumulate=2)
        data = training.batches_of(config, mnist5k, "test", task, device_count=devices)
        step = data_parallel.parallelize(task.train_step, devices, donate=False)
        state, sums = step(jax.jit(task.init)(jax.random.key(0)), next(iter(data.train_batches(0))))
        found.append(jax.device_get((state.params, state.batch_stats, sums)))
    assert tree_error(found[1], found[0]) < 1e-5 and tree_error(found[2], found[0]) < 1e-5


def test_rematerialization_and_bfloat16(mnist5k):
    expected = step_of(mnist5k)
    assert tree_error(step_of(mnist5k, remat=True), expected) < 1e-5
    found = step_of(mnist5k, dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    assert 1e-4 < tree_error(found, expected) < 0.05


def test_rematerialization_saves_only_products():
    task = make_task(None, model="cnn", remat=True)
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": np.zeros((16, 28, 28, 1), np.uint8), "label": np.zeros(16, np.int32)}
    text = str(jax.make_jaxpr(task.train_step)(state, batch))
    plain = str(jax.make_jaxpr(make_task(None).train_step)(state, batch))
    for product in ("= conv_general_dilated[", "=nutshell_convolution"):
        assert text.count(product) == plain.count(product)
    norms = (" rsqrt ", "=nutshell_batch_moments")  # By XLA and by the kernels.
    assert sum(map(text.count, norms)) > sum(map(plain.count, norms))
    assert text.count(" gt ") > plain.count(" gt ")  # In max pooling.


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [{}, {"model": "dcnn", "early": (2, (20, 20)), "axis_name": "data"}])
def test_all_steps_reduce_over_devices(devices, options):
    task = make_task("data", **options)
    state = jax.eval_shape(task.init, jax.random.key(0))
    assert (task.early_step is None) == ("early" not in options)
    batch = {"image": np.zeros((16, 28, 28, 1), np.uint8), "label": np.zeros(16, np.int32)}
    for step in filter(None, (task.train_step, task.early_step)):
        data_parallel.check_reductions(step, state, batch=batch, devices=devices)
    data_parallel.check_reductions(
        task.eval_step, state, batch=batch | {"mask": np.ones(16, np.float32)}, devices=devices
    )


def test_evaluation_on_two_devices_equals_one(mnist5k):
    images, labels = mnist5k.splits["test"]
    found = []
    for devices in (1, 2):
        task = make_task(axis_of(devices))
        state = jax.jit(task.init)(jax.random.key(0))
        step = data_parallel.parallelize(task.eval_step, devices, donate=False)
        found.append([step(state, part) for part in batches.eval_batches(images[:30], labels[:30], batch_size=20)])
    assert sum(float(part["count"]) for part in found[0]) == 30
    assert tree_error(found[1], jax.device_get(found[0])) < 1e-5


@pytest.mark.slow
def test_views_are_averaged_as_probabilities(mnist5k):
    task = make_task(None)
    state, images = jax.jit(task.init)(jax.random.key(0)), mnist5k.splits["test"][0][:6]
    model = models.create("cnn", 10, widths=(4, 8, 8), features=8)

    def prepare(images):
        return augment.normalize(images, (33.0,), (79.0,))

    def both(images):
        return augment.flip_views(prepare(images))

    found = classification.predict_step(state, {"image": images}, model=model, prepare=both)
    single = [
        classification.predict_step(state, {"image": part}, model=model, prepare=prepare)
        for part in (images, images[:, :, ::-1])
    ]
    expected = (jax.nn.softmax(single[0]) + jax.nn.softmax(single[1])) / 2
    np.testing.assert_allclose(jnp.exp(found), expected, rtol=1e-4)


def test_losses_against_optax_and_a_sort():
    logits, labels = jax.random.normal(jax.random.key(0), (50, 10)), jnp.arange(50) % 10
    expected = -jax.nn.log_softmax(logits)[jnp.arange(50), labels]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)
    top = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(losses.in_top(logits, labels, 5), (top == np.asarray(labels)[:, None]).any(1))
    target = 0.7 * jax.nn.one_hot(labels, 10) + 0.3 / 10
    expected = -(target * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels, smoothing=0.3), expected, rtol=1e-5)
    unit, binary = logits[:, :1], labels % 2
    expected = optax.sigmoid_binary_cross_entropy(unit[:, 0], binary)
    np.testing.assert_allclose(losses.cross_entropy(unit, binary), expected, rtol=1e-5)
    np.testing.assert_array_equal(losses.in_top(jnp.zeros((2, 3)), jnp.array([0, 1]), 1), [1.0, 0.0])
    assert float(losses.in_top(jnp.full((1, 3), jnp.nan), jnp.array([0]), 1)[0]) == 0.0


def loop_parts(mnist5k, tmp_path, stop, eval_step=None, **options):
    """Returns the task, a function that calls loop.train() with all other arguments, and counts of traces."""
    task = make_task(None, **options)
    counts = {"train": 0, "eval": 0}

    def counted(name, step):
        def traced(state, batch):
            counts[name] += 1
            return step(state, batch)

        return traced

    task = task._replace(train_step=counted("train", task.train_step), eval_step=counted("eval", task.eval_step))
    images, labels = mnist5k.splits["test"]
    columns = ["step", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "learning_rate"]

    def go(state, record, steps=6):
        metrics = workdir.MetricsFile(tmp_path, columns, step=min(int(state.step), record.get("reported", 0)))
        try:
            return loop.train(
                state,
                record,
                task=task,
                plan=loop.Plan(steps, eval_every=3, log_every=2, save_every=0, learning_rate=lambda step: 0.05),
                data=loop.Data(
                    lambda step: batches.train_batches(images, labels, batch_size=8, seed=0, start=step),
                    loop.EvalData(lambda: eval_step(batches.eval_batches(images[:30], labels[:30], batch_size=8)), 30),
                ),
                devices=1,
                output=loop.Output(checkpoint.Checkpoints(tmp_path), metrics, lambda step, row: None),
                stop=stop,
            )
        finally:
            metrics.close()

    return task, go, counts


class Signal:
    """A stand-in for the stop object: `number` is the number of a received signal, or 0."""

    number = 0


def test_the_loop_traces_each_step_once(mnist5k, tmp_path):
    task, go, counts = loop_parts(mnist5k, tmp_path, Signal(), lambda parts: parts)
    done = go(jax.jit(task.init)(jax.random.key(0)), {})
    assert counts == {"train": 1, "eval": 1} and int(done.state.step) == 6


@pytest.mark.parametrize("start, sizes", [(0, [(20, 20), (28, 28)]), (1, [(20, 20), (28, 28)]), (2, [(28, 28)])])
def test_the_first_steps_see_smaller_images(mnist5k, tmp_path, start, sizes):
    seen = []

    class Pooled(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            if train:
                seen.append(x.shape[1:3])
            return nn.Dense(10)(x.mean((1, 2)))

    task, go, _ = loop_parts(mnist5k, tmp_path, Signal(), lambda parts: parts, model=Pooled(), early=(2, (20, 20)))
    state = jax.jit(task.init)(jax.random.key(0))._replace(step=jnp.int32(start))
    assert int(go(state, {"reported": start}).state.step) == 6
    assert list(dict.fromkeys(seen)) == sizes


def test_a_signal_during_an_evaluation_saves_and_the_evaluation_is_repeated(mnist5k, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        path.mkdir()
    task, go, _ = loop_parts(mnist5k, whole, Signal(), lambda parts: parts)
    expected = go(jax.jit(task.init)(jax.random.key(0)), {})
    stop = Signal()

    def interrupted(parts):
        for i, part in enumerate(parts):
            if i == 2:
                stop.number = 15
            yield part

    task, go, _ = loop_parts(mnist5k, parts, stop, interrupted)
    with pytest.raises(Interrupted, match="stopped at step 3") as caught:
        go(jax.jit(task.init)(jax.random.key(0)), {})
    assert caught.value.exit_status == 143
    task, go, _ = loop_parts(mnist5k, parts, Signal(), lambda parts: parts)
    state, record = checkpoint.Checkpoints(parts).restore(jax.jit(task.init)(jax.random.key(0)))
    assert int(state.step) == 3 and record["reported"] == 2
    found = go(state, record)
    assert leaves.fingerprint(*found.state[::2][:2]) == leaves.fingerprint(*expected.state[::2][:2])
    assert found.metrics == expected.metrics
    assert (parts / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@pytest.mark.parametrize("devices", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_constants_of_the_network_are_not_averaged_over_devices(mnist5k, devices):
    """The mean of K equal numbers may differ from the number if K is not a power of two."""
    task = make_task("data", model="dcnn", axis_name="data", widths=(4, 4, 4))
    state = jax.jit(task.init)(jax.random.key(0))
    whitening = jax.random.normal(jax.random.key(1), state.batch_stats["whitening"].shape)
    state = state._replace(batch_stats={**state.batch_stats, "whitening": whitening})
    images, labels = mnist5k.splits["train"]
    batch = {"image": images[: 2 * devices], "label": labels[: 2 * devices]}
    after, _ = data_parallel.parallelize(task.train_step, devices, donate=False)(state, batch)
    np.testing.assert_array_equal(after.batch_stats["whitening"], whitening)
    before = dict(jax.tree_util.tree_leaves_with_path(state.batch_stats))
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.batch_stats):
        assert path[-1].key == "whitening" or not np.array_equal(leaf, before[path])
