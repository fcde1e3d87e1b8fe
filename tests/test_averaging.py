"""Tests of the average of the weights (--ema): its values, and that evaluations and stored runs use it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_run
import numpy as np
import optax
import pytest
from test_hybrid import Tiny, batch_of

from data.dataset import Dataset
from experiments import filters, load_run
from experiments.cli.config import ClassifyConfig
from experiments.reporting import classification_report
from experiments.setup import classification as setup
from experiments.setup import stored_network
from models.alexnet import TinyAlexNet
from models.layers import BatchNorm
from train import averaging, leaves
from train.checkpoint import Checkpoints
from train.equality import tree_error
from train.parallel import data_parallel, hybrid
from train.parallel.devices import axis_of
from train.tasks import classification

DECAY = 0.3  # From the fourth step on, it is smaller than (1 + step) / (10 + step).


class Normed(nn.Module):
    """A network with batch norm and a constant in its batch statistics."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        constant = self.variable("batch_stats", "whitening", lambda: jnp.full((4,), 0.1))
        x = x.reshape(x.shape[0], -1) * constant.value[None]
        return nn.Dense(3)(BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x))


def make_task(devices=1, ema=DECAY, **options):
    return classification.create(
        model=Normed(axis_of(devices)),
        optimizer=optax.sgd(0.5),
        image_shape=(2, 2, 1),
        class_names=("a", "b", "c"),
        train_prepare=lambda images, keys: images / 255.0,
        eval_prepare=lambda images: images / 255.0,
        axis=axis_of(devices),
        ema=ema,
        **options,
    )


def batches(count):
    random = np.random.default_rng(0)
    return [
        {"image": random.integers(0, 256, (8, 2, 2, 1), dtype=np.uint8), "label": np.arange(8, dtype=np.int32) % 3}
        for _ in range(count)
    ]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_average_equals_a_recursion_in_numpy(devices):
    task = make_task(devices)
    state = jax.jit(task.init)(jax.random.key(0))
    data_parallel.check_reductions(task.train_step, state, batch=batches(1)[0], devices=devices)
    step = data_parallel.parallelize(task.train_step, devices, donate=False)
    plain = data_parallel.parallelize(make_task(devices, ema=0.0).train_step, devices, donate=False)
    without = state._replace(average=())
    expected = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    for n, batch in enumerate(batches(5)):
        state, without = step(state, batch)[0], plain(without, batch)[0]
        keep, new = min(DECAY, (1 + n) / (10 + n)), jax.device_get((state.params, state.batch_stats))
        new = dict(zip(("params", "batch_stats"), new, strict=True))
        expected = jax.tree.map(lambda a, x, keep=keep: keep * a + (1 - keep) * x, expected, new)
    assert keep == DECAY and tree_error(state.average, expected) < 1e-6
    assert tree_error(state.average, new) > 1e-3  # Otherwise this test would be meaningless.
    np.testing.assert_array_equal(state.average["batch_stats"]["whitening"], np.full(4, 0.1, np.float32))
    # The average does not change the training, and without it the state has no additional leaf.
    named = leaves.to_host(without)
    assert {name: x for name, x in leaves.to_host(state).items() if "average" not in name}.keys() == named.keys()
    for name, leaf in named.items():
        np.testing.assert_array_equal(leaves.to_host(state)[name], leaf)
    assert leaves.fingerprint(state.params, ()) != leaves.fingerprint(state.params, (), state.average)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluations_use_the_average(devices):
    task = make_task(devices)
    state = jax.jit(task.init)(jax.random.key(0))
    other = jax.jit(task.init)(jax.random.key(1))
    averaged = state._replace(average={"params": other.params, "batch_stats": other.batch_stats})
    batch = batches(1)[0] | {"mask": np.ones(8, np.float32)}
    steps = data_parallel.DeviceSteps(task, devices)
    sums, expected = (steps.evaluate(steps.for_evaluation(state), batch) for state in (averaged, other))
    assert float(sums["loss"]) == float(expected["loss"])
    assert float(steps.evaluate(steps.for_evaluation(state), batch)["loss"]) != float(sums["loss"])
    np.testing.assert_array_equal(task.predict_step(averaged, batch), task.predict_step(other, batch))


def test_the_average_starts_from_the_given_weights():
    task = make_task()
    state = jax.jit(task.init)(jax.random.key(0))
    given = state._replace(params=jax.tree.map(lambda x: x + 1, state.params))
    restarted = averaging.restarted(given)
    assert tree_error(restarted.average["params"], jax.device_get(given.params)) == 0
    step = data_parallel.parallelize(task.train_step, 1, donate=True)  # No leaf may share its memory with another.
    assert int(step(restarted, batches(1)[0])[0].step) == 1
    assert averaging.restarted(state._replace(average=())).average == ()


@pytest.mark.slow
@pytest.mark.parametrize("update", ["accumulate", "each_pass"])
def test_hybrid_parallelism_averages_the_sharded_layers(update):
    axis = axis_of(2)

    def prepare(images, keys=None):
        del keys
        return images / 255.0 - 0.5

    model = Tiny(10, axis_name=axis, **TinyAlexNet.keywords)
    keywords = {"model": model, "optimizer": optax.sgd(0.5), "smoothing": 0.0, "axis": axis}
    task = classification.create(
        image_shape=(15, 15, 3),
        class_names=tuple("0123456789"),
        train_prepare=prepare,
        eval_prepare=prepare,
        ema=DECAY,
        **keywords,
    )
    task = hybrid.parallelized(task, devices=2, prepare=prepare, passes=2, update=update, ema=DECAY, **keywords)
    start = jax.jit(task.init)(jax.random.key(0))
    step = data_parallel.parallelize(task.train_step, 2, donate=False, is_sharded=task.is_sharded)
    sharded, _ = step(task.shard(start), batch_of(8))
    after = task.unshard(sharded)
    expected = jax.tree.map(lambda a, b: 0.1 * np.asarray(a) + 0.9 * np.asarray(b), start.params, after.params)
    assert tree_error(after.average["params"], expected) < 1e-6 and tree_error(after.params, expected) > 1e-6
    evaluated = data_parallel.DeviceSteps(task, 2).for_evaluation(sharded)
    assert tree_error(evaluated.params, expected) < 1e-6 and evaluated.average == ()


@pytest.fixture(scope="module")
def averaged_run(tmp_path_factory):
    """A stored run whose average differs from its weights, and its last state."""
    path = tmp_path_factory.mktemp("averaged") / "w"
    random = np.random.default_rng(0)
    part = random.integers(0, 256, (6, 4, 4, 1), dtype=np.uint8), np.arange(6, dtype=np.int32) % 3
    dataset = Dataset("small", {"train": part, "val": part}, ("a", "b", "c"))
    config = ClassifyConfig(workdir=str(path), model="mlp", hidden=(5,), ema=0.9)
    *_, state = made_run.make_run(path, setup, config, dataset, setup.dataset_info(config, dataset))
    twice = {"params": jax.tree.map(lambda x: 2 * x + 0.1, state.params), "batch_stats": state.batch_stats}
    state = state._replace(average=twice, step=jnp.int32(2))
    checkpoints = Checkpoints(path)
    checkpoints.save(2, state, record={})
    checkpoints.wait()
    return path, state, part[0]


def test_stored_runs_are_read_with_their_average(averaged_run):
    path, state, images = averaged_run
    run, expected = load_run(str(path)), jax.device_get(state.average["params"])
    assert tree_error(run.variables["params"], expected) == 0
    assert tree_error(filters.evaluation_variables(run.state)["params"], expected) == 0
    mean, std = (np.asarray(values, np.float32) for values in (run.experiment.info.mean, run.experiment.info.std))
    logits = run.experiment.model.apply({"params": expected}, (images - mean) / std)
    np.testing.assert_allclose(run.predict(images), jax.nn.softmax(logits), rtol=1e-4)
    templates = classification_report.weight_images(run.state, "mlp", "dense1", (4, 4, 1))
    assert templates.size == 80 and np.isin(templates, expected["dense1"]["kernel"]).all()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_init_from_takes_the_average(averaged_run, ema):
    path, stored, _ = averaged_run
    config = ClassifyConfig(workdir="W", model="mlp", hidden=(5,), ema=ema, init_from=str(path))
    experiment = setup.create_experiment(config, load_run(str(path)).experiment.info, devices=1, steps=1)
    state = jax.jit(experiment.task.init)(jax.random.key(9))
    found = averaging.restarted(stored_network.init_from(config, state))
    expected = jax.device_get(stored.average["params"])
    assert tree_error(found.params, expected) == 0 and int(found.step) == 0
    assert (found.average == ()) == (ema == 0)
    assert ema == 0 or tree_error(found.average["params"], expected) == 0
