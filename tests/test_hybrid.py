"""Compares Krizhevsky's hybrid parallelism with one device, in float64 where rounding errors would matter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.dataset import Dataset
from experiments.cli import validation
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.setup import training
from models.alexnet import AlexNetOWT, TinyAlexNet
from models.layers import relu
from models.vgg import VGG
from models.vgg import TinyVGG as TINY_VGG
from train import optimizers
from train.equality import tree_error
from train.parallel import data_parallel, hybrid
from train.parallel.devices import axis_of
from train.tasks import classification

CLASSES = 10  # Neither the classes nor the units are divisible by four or eight.


class Tiny(AlexNetOWT):
    """AlexNet with only its first convolution before the dense layers, so that it compiles fast."""

    def features(self, x, train: bool = False):
        del train
        return relu(self.conv1(x)).reshape(x.shape[0], -1)


class TinyVGG(VGG):
    """VGG with only its first convolution before the dense layers, and with batch norm."""

    def features(self, x, train: bool = False):
        x = self.bn1_1(self.conv1_1(x), use_running_average=not train)
        return relu(x).reshape(x.shape[0], -1)


SIDES = {Tiny: 15, AlexNetOWT: 63, TinyVGG: 4}


def make(devices, *, network=Tiny, optimizer=None, passes=1, update="accumulate", smoothing=0.1, **options):
    axis = axis_of(devices)
    small = TINY_VGG.keywords | {"batch_norm": True} if network is TinyVGG else TinyAlexNet.keywords
    model = network(CLASSES, axis_name=axis, **small, **options)
    optimizer = optimizer or optax.sgd(1.0)
    side = SIDES[network]

    def prepare(images, keys):
        return images / 255.0 - 0.5

    task = classification.create(
        model=model,
        optimizer=optimizer,
        image_shape=(side, side, 3),
        class_names=tuple("0123456789"),
        train_prepare=prepare,
        eval_prepare=functools.partial(prepare, keys=None),
        axis=axis,
        smoothing=smoothing,
    )
    keywords = {"model": model, "optimizer": optimizer, "prepare": prepare, "smoothing": smoothing}
    return task, hybrid.parallelized(task, axis=axis, devices=devices, passes=passes, update=update, **keywords)


def batch_of(rows, side=SIDES[Tiny]):
    random = np.random.default_rng(0)
    return {"image": random.uniform(0, 255, (rows, side, side, 3)), "label": np.arange(rows, dtype=np.int32) % CLASSES}


def start(task):
    """An initial state with nonzero biases, in the current default precision."""
    state = jax.jit(task.init)(jax.random.key(0))
    cast = jnp.zeros(()).dtype
    params = jax.tree.map(lambda x: x.astype(cast) + (0.01 if x.ndim == 1 else 0.0), state.params)
    batch_stats = jax.tree.map(lambda x: x.astype(cast), state.batch_stats)
    return state._replace(params=params, batch_stats=batch_stats)


def one_step(task, state, batch, devices, through):
    step = data_parallel.parallelize(
        task.train_step, devices, donate=False, is_sharded=task.is_sharded, through=through
    )
    after, sums = step(task.shard(state), batch)
    after = task.unshard(after)
    return jax.device_get((after.params, after.batch_stats)), jax.device_get(sums)


@pytest.fixture(scope="module")
def expected():
    found = {}

    def compute(network, **options):
        key = network, tuple(options.items())
        if key not in found:
            with jax.enable_x64(True):
                task, _ = make(1, network=network, **options)
                batch = batch_of(16, SIDES[network])
                found[key] = one_step(task, start(task), batch, 1, "pmap")
        return found[key]

    return compute


CASES = [(4, 1, "pmap"), (8, 2, "pmap")]
SLOW_CASES = [
    (2, 2, "shard_map"),
    (1, 4, "pmap"),
    (2, 2, "pmap"),
    (4, 1, "shard_map"),
    (8, 2, "shard_map"),
    (8, 1, "pmap"),
]


@pytest.mark.parametrize(
    "devices, passes, through", [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)]
)
def test_loss_and_gradients_equal_those_of_one_device(expected, devices, passes, through):
    with jax.enable_x64(True):
        _, task = make(devices, passes=passes)
        found = one_step(task, start(task), batch_of(16), devices, through)
    params, sums = expected(Tiny)
    assert tree_error(found[0], params) < 1e-12
    assert found[1]["count"] == 16 and found[1]["correct"] == sums["correct"]
    assert found[1]["loss"] == pytest.approx(sums["loss"], rel=1e-12)


@pytest.mark.parametrize(
    "network, options",
    [
        pytest.param(AlexNetOWT, {}, marks=pytest.mark.slow),
        (Tiny, {"dropout_after": True}),
        pytest.param(TinyVGG, {}, marks=pytest.mark.slow),
    ],
)
def test_other_networks_and_dropout_orders_equal_one_device(expected, network, options):
    with jax.enable_x64(True):
        _, task = make(4, network=network, passes=4, **options)
        found = one_step(task, start(task), batch_of(16, SIDES[network]), 4, "pmap")
    assert tree_error(found[0], expected(network, **options)[0]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_each_pass_updates_the_dense_layers(devices):
    """Compares with explicit passes, on any number of devices: the first pass takes every second row and updates the
    dense layers, the second pass takes the other rows."""
    with jax.enable_x64(True):
        _, task = make(devices, passes=2, update="each_pass", dropout=0.0, smoothing=0.0, optimizer=optax.sgd(0.1))
        state, batch = start(task), batch_of(8)
        (found, _), _ = one_step(task, state, batch, devices, "pmap")

        model = Tiny(CLASSES, widths=(4, 8, 8, 8, 8), units=14, dropout=0.0)
        images = batch["image"] / 255.0 - 0.5
        dense = {name: state.params[name] for name in model.CLASSIFIER}
        shared = {name: leaf for name, leaf in state.params.items() if name not in dense}
        gradient = jax.tree.map(jnp.zeros_like, shared)
        for part in range(2):
            rows = np.arange(part, 8, 2)

            def loss(shared, dense, rows=rows):
                logits = model.apply({"params": {**shared, **dense}}, images[rows], train=True)
                scores = jax.nn.log_softmax(logits)
                return -scores[np.arange(len(rows)), batch["label"][rows]].mean()

            of_shared, of_dense = jax.grad(loss, (0, 1))(shared, dense)
            gradient = jax.tree.map(lambda total, g: total + g / 2, gradient, of_shared)
            dense = jax.tree.map(lambda w, g: w - 0.1 * g, dense, of_dense)
        expected = {**jax.tree.map(lambda w, g: w - 2 * 0.1 * g, shared, gradient), **dense}
    assert tree_error(found, jax.device_get(expected)) < 1e-12


@pytest.mark.parametrize("devices, update", [(2, "accumulate"), (8, "each_pass")])
def test_the_step_reduces_all_gradients(devices, update):
    _, task = make(devices, passes=2, update=update, optimizer=optax.sgd(lambda step: 0.1, momentum=0.9))
    state = jax.eval_shape(task.shard, jax.eval_shape(task.init, jax.random.key(0)))
    batch = batch_of(16) | {"image": batch_of(16)["image"].astype(np.float32)}
    data_parallel.check_reductions(task.train_step, state, batch=batch, devices=devices, is_sharded=task.is_sharded)


def test_sharding_and_unsharding():
    _, task = make(4, optimizer=optax.sgd(0.1, momentum=0.9))
    state = jax.jit(task.init)(jax.random.key(0))
    sharded = task.shard(state)
    assert sharded.params["fc7"]["kernel"].shape == (14, 4, 4) and sharded.params["logits"]["bias"].shape == (4, 3)
    assert sharded.params["conv1"]["kernel"].shape == state.params["conv1"]["kernel"].shape
    assert sharded.opt_state[0].trace["fc7"]["kernel"].shape == (14, 4, 4)
    for ours, theirs in zip(jax.tree.leaves(task.unshard(sharded)[:3]), jax.tree.leaves(state[:3]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_an_evaluation_uploads_the_dense_layers_once():
    """They are on all devices before the first batch, and results equal those computed from parameters on the host."""
    task, hybrid_task = make(4, optimizer=optax.sgd(0.1, momentum=0.9))
    steps = data_parallel.DeviceSteps(hybrid_task, 4)
    batch = batch_of(16) | {"image": batch_of(16)["image"].astype(np.float32), "mask": np.ones(16, np.float32)}
    state = steps.shard(jax.jit(task.init)(jax.random.key(0)))
    placed = steps.for_evaluation(state)
    for leaf in jax.tree.leaves((placed.params, placed.batch_stats)):
        assert leaf.is_fully_replicated and len(leaf.sharding.device_set) == 4
    assert isinstance(placed.opt_state[0].trace["fc7"]["kernel"], np.ndarray)  # An evaluation does not need it.
    found, expected = steps.evaluate(placed, batch), steps.evaluate(steps.unshard(state), batch)
    assert found["count"] == 16
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_momentum_on_two_then_four_devices_equals_data_parallelism():
    optimizer = optax.sgd(lambda step: 0.05, momentum=0.9)
    batch = batch_of(16) | {"image": batch_of(16)["image"].astype(np.float32)}
    task, _ = make(1, optimizer=optimizer)
    whole = expected = start(task)
    plain = data_parallel.parallelize(task.train_step, 1, donate=False)
    for devices in (2, 4):
        _, task = make(devices, optimizer=optimizer)
        step = data_parallel.parallelize(task.train_step, devices, donate=False, is_sharded=task.is_sharded)
        sharded = task.shard(whole)
        for _ in range(2):
            sharded, _ = step(sharded, batch)
            expected, _ = plain(expected, batch)
        whole = jax.tree.map(np.asarray, task.unshard(sharded)._replace(key=None))._replace(key=expected.key)
    assert int(whole.step) == 4
    assert tree_error(whole.params, jax.device_get(expected.params)) < 1e-5
    assert tree_error(whole.opt_state[0].trace, jax.device_get(expected.opt_state[0].trace)) < 1e-5


@pytest.mark.slow
def test_gradients_are_clipped_by_the_norm_of_all_shards():
    batch = batch_of(16) | {"image": batch_of(16)["image"].astype(np.float32)}
    options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01}
    found = {}
    for clip_norm in (0.0, 0.1):
        for devices in (1, 4):
            optimizer = optimizers.create("sgd", lambda step: 0.05, clip_norm=clip_norm, **options)
            plain, hybrid_task = make(devices, optimizer=optimizer)
            task = plain if devices == 1 else hybrid_task
            found[clip_norm, devices] = one_step(task, start(task), batch, devices, "pmap")
    (whole, sums), (parts, _) = found[0.1, 1], found[0.1, 4]
    assert sums["gradient_norm"] > 0.2  # Otherwise nothing would be clipped.
    assert tree_error(whole[0], parts[0]) < 1e-6
    assert tree_error(whole[0], found[0.0, 1][0][0]) > 1e-4


@pytest.mark.parametrize(
    "flag, value", [("optimizer", "muon"), ("early_size", 16), ("accumulate", 2), ("remat", True), ("fc_passes", 3)]
)
def test_flags_unsupported_by_hybrid_are_refused(flag, value):
    config = ClassifyConfig(model="alexnet_owt", batch_size=16, fc_passes=2, parallelism="hybrid")
    dataset = Dataset("", {"train": (None, np.zeros(32))}, ())

    def check(config):
        validation.check_classify(config)
        return training.total_steps(config, dataset, 4)

    assert check(config) == 20
    with pytest.raises(UsageError, match=f"--{flag}"):
        check(dataclasses.replace(config, **{flag: value}))
