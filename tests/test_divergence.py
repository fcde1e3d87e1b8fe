"""Tests that training and evaluation detect NaN weights and infinite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from data import augment
from experiments.cli.config import ReconstructConfig
from experiments.setup import reconstruction
from experiments.setup.experiment import DatasetInfo
from models.layers import max_pool, max_pool_with_indices, relu
from train.metrics import TrainingMetrics, check_finite
from train.parallel import data_parallel
from train.tasks import classification, segmentation

FAST = ("perceptron", "cnn")
SMALL = {"densenet": {"depth": 10, "growth_rate": 4}, "vgg11": {"units": 8}, "alexnet_owt": {"units": 8}}
SIZES = {"vgg11": 32, "vgg11_bn": 32, "alexnet_owt": 63, "resnet18": 32, "resnet50": 32}
OTHERS = (
    *(
        "lenet",
        "cifar_resnet20",
        "densenet",
        "segnet_small",
        "mlp",
        "logistic",
        "cuda_convnet",
        "dcnn",
        "cifar_plain20",
        "segnet_basic",
        "segnet",
        "rnn",
        "lstm",
        "gru",
        "vit_tiny",
        "autoencoder",
        "sparse",
        "variational",
    ),
    *("vgg11", "vgg11_bn", "alexnet_owt", "resnet18", "plain18", "resnet50"),
)


def task_of(name):
    spec, classes = models.spec(name), 2 if name == "logistic" else 4
    size = SIZES.get(name, min(spec.image_shape[0], 32))
    shape = (size, size, spec.image_shape[2])
    if spec.task == "reconstruction":
        config = ReconstructConfig(model=name)
        info = DatasetInfo(shape, (0.0,), (1.0,), tuple("abcd"))
        return reconstruction.create_experiment(config, info, devices=1, steps=2).task, shape, classes
    model = models.create(name, classes, **SMALL.get(name, {}))
    common = {"model": model, "optimizer": optax.sgd(0.01), "image_shape": shape, "axis": None}
    common |= {"class_names": tuple("abcd"[:classes]), "eval_prepare": lambda images: images / 255.0}
    if spec.task == "segmentation":
        prepare, weights = lambda images, labels, keys: (images / 255.0, labels), (1.0,) * classes
        return segmentation.create(train_prepare=prepare, class_weights=weights, **common), shape, classes
    return classification.create(train_prepare=lambda images, keys: images / 255.0, **common), shape, classes


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_nan_weight_stops_training_and_evaluation(name):
    task, shape, classes = task_of(name)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, *shape), dtype=np.uint8)
    labels = np.arange(4, dtype=np.int32) % classes
    if task.name == "segmentation":
        labels = np.broadcast_to(labels[:, None, None], images.shape[:3]).astype(np.uint8)
    batch = {"image": images, "label": labels}
    state = jax.jit(task.init)(jax.random.key(0))
    step, evaluate = jax.jit(task.train_step), jax.jit(task.eval_step)
    mask = {"mask": np.ones(4, np.float32), "row": np.arange(4)}

    def train(state):
        metrics = TrainingMetrics(None)
        metrics.push(1, step(state, batch)[1])
        metrics.collect()

    train(state)
    check_finite(jax.device_get(evaluate(state, batch | mask)), 1)
    leaves, tree = jax.tree.flatten(state.params)
    kernel = next(i for i, leaf in enumerate(leaves) if leaf.ndim > 1)  # In one of the first layers, sorted by name.
    leaves[kernel] = leaves[kernel].at[(0,) * leaves[kernel].ndim].set(jnp.nan)
    poisoned = state._replace(params=jax.tree.unflatten(tree, leaves))
    with pytest.raises(FloatingPointError, match="at step 1; earlier checkpoints are kept"):
        train(poisoned)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        check_finite(jax.device_get(evaluate(poisoned, batch | mask)), 1)


@pytest.mark.parametrize("reduce", [lambda x: x.mean((1, 2)), lambda x: x.sum(), lambda x: (x * x).sum(-1)])
def test_a_relu_keeps_nan(reduce):
    x = jnp.full((8, 32, 32, 16), jnp.nan)
    assert jnp.isnan(jax.jit(lambda x: reduce(relu(x)))(x)).all()
    inputs = jnp.array([-1.0, -0.0, 0.0, 2.0])
    np.testing.assert_array_equal(relu(inputs), [0, 0, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: relu(x).sum())(inputs), [0, 0, 0, 1])


def test_max_pooling_keeps_nan_at_any_position():
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, row, column, 0].set(jnp.nan)
        for pooled in (max_pool(x, 2), max_pool_with_indices(x)[0], max_pool(x, 2, stride=1)[:, ::2, ::2]):
            assert jnp.isnan(pooled[0, 0, 0, 0]) and not jnp.isnan(pooled[0, 1:]).any()


def test_the_norm_of_the_gradient_is_checked():
    metrics = TrainingMetrics(None)
    metrics.push(1, {"loss": np.float32(2), "gradient_norm": np.float32(3)})
    metrics.push(2, {"loss": np.float32(2), "gradient_norm": np.float32(np.inf)})
    assert metrics.to_json() == {"loss": 2.0}
    with pytest.raises(FloatingPointError, match="the norm of the gradient is inf at step 2"):
        metrics.collect()


def test_the_gradient_norm_is_that_of_the_global_batch(mnist5k):
    """On one device and on two, and equal to the norm of the gradient that autodiff computes."""
    images, labels = (part[:16] for part in mnist5k.splits["train"])
    norms = []
    for axis, devices in ((None, 1), ("data", 2)):
        task = classification.create(
            model=models.create("perceptron", 10),
            optimizer=optax.sgd(1.0),
            image_shape=(28, 28, 1),
            class_names=tuple("0123456789"),
            train_prepare=lambda images, keys: augment.normalize(images, (33.0,), (79.0,)),
            eval_prepare=lambda images: images,
            axis=axis,
        )
        state = jax.jit(task.init)(jax.random.key(0))
        step = data_parallel.parallelize(task.train_step, devices, donate=False)
        after, sums = step(state, {"image": images, "label": labels})
        moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, jax.device_get(after.params))
        norms += [float(sums["gradient_norm"]), float(optax.tree.norm(moved))]
    assert norms == pytest.approx([norms[0]] * 4, rel=1e-5) and norms[0] > 0.1
