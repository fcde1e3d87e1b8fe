"""Compares implementations for CPUs with the plain ones: dense blocks with C kernels, scans over equal blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.cpu_kernels import ffi, ops
from train import optimizers
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.tasks import classification

SLOW = pytest.mark.slow
FORMS = [{"depth": 10}, {"depth": 10, "bottleneck": True, "compression": 0.5}, {"depth": 5, "blocks": 1}]


def task_of(axis=None, name="densenet", **options):
    return classification.create(
        model=models.create(name, 10, axis_name=axis, **options),
        optimizer=optimizers.create("sgd", lambda step: 1.0, momentum=0.0, nesterov=False, weight_decay=0.0),
        image_shape=(9, 12, 3),
        class_names=tuple("0123456789"),
        train_prepare=lambda images, keys: images,
        eval_prepare=lambda images: images,
        axis=axis,
    )


def batch_of(count, seed=0):
    random = np.random.default_rng(seed)
    images = random.normal(size=(count, 9, 12, 3)).astype(np.float32)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % 10}


def steps(task, devices=1, seeds=(0,)):
    """For each seed, the state after one step with learning rate 1, which reveals the gradients, and new statistics."""
    state = jax.jit(task.init)(jax.random.key(0))
    # Random scales and biases; with ones and zeros many gradients would agree by chance.
    random = np.random.default_rng(1)  # NumPy, because JAX would compile for each shape.
    params = jax.tree.map(lambda x: np.float32(x + 0.1 * random.normal(size=x.shape)), state.params)
    step = data_parallel.parallelize(task.train_step, devices, donate=False)
    return [step(state._replace(params=params), batch_of(16, seed))[0] for seed in seeds]


def least_error(found, expected):
    """The smallest errors over three batches: (of the parameters, of the statistics). In a single batch, rounding may
    flip the sign of a ReLU input near zero, which causes large errors; a real mistake shows in all batches."""
    pairs = zip(found, expected, strict=True)
    errors = [(tree_error(a.params, b.params), tree_error(a.batch_stats, b.batch_stats)) for a, b in pairs]
    return np.min(errors, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", FORMS[:3])
def test_a_step_with_the_kernels_equals_one_without(monkeypatch, options):
    kept = steps(task_of(**options), seeds=range(3))
    monkeypatch.setattr(ffi, "_disabled", True)
    errors = least_error(kept, steps(task_of(**options), seeds=range(3)))
    assert errors[0] < 1e-5 and errors[1] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [FORMS[1], FORMS[2]])
def test_four_devices_equal_one(options):
    axis = axis_of(4)
    task = task_of(axis, **options)
    state = jax.eval_shape(task.init, jax.random.key(0))
    data_parallel.check_reductions(task.train_step, state, batch=batch_of(16), devices=4, is_sharded=None)
    errors = least_error(steps(task, 4, range(3)), steps(task_of(**options), seeds=range(3)))
    assert errors[0] < 1e-5 and errors[1] < 1e-5


def test_the_dense_block_kernels_are_used_only_where_they_apply():
    def calls(name, train=True, dtype=jnp.float32, images_dtype=None, count=2, **options):
        model = models.create("densenet", 10, depth=7, blocks=1, **options)
        init = functools.partial(model.init, jax.random.key(0), train=False)
        shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
        variables = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
        images = jax.ShapeDtypeStruct((count, 8, 8, 3), images_dtype or dtype)
        apply = functools.partial(
            model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )
        return str(jax.make_jaxpr(apply)(variables, images)).count(f"nutshell_{name}")

    assert calls("convolution") == 6 and calls("affine") == 5  # For the input and for five layers.
    for options in ({"train": False}, {"dropout": 0.2}):
        assert calls("", **options) == 6 and calls("affine", **options) == 0
    assert calls("", dtype=jnp.bfloat16) == 0
    assert calls("affine", dtype=jnp.bfloat16, images_dtype=jnp.float32) == calls("affine", count=0) == 0


@pytest.mark.slow
def test_memory_grows_linearly_with_depth():
    """The temporary memory of a step is two buffers of all feature maps plus the memory of one layer."""

    def taken(layers):
        task = task_of(depth=layers + 2, blocks=1)
        state, batch = jax.eval_shape(task.init, jax.random.key(0)), jax.eval_shape(lambda: batch_of(64))
        return jax.jit(task.train_step).lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    few, more, most = (taken(layers) for layers in (5, 10, 20))
    assert most - more < 2.5 * (more - few)  # Quadratic growth would give a factor of four.


def test_gradients_of_the_fused_convolution_equal_autodiff():
    random = np.random.default_rng(0)
    operands = [
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((3, 7, 6, 33), (2, 33), (3, 3, 33, 20))
    ]

    def plain(x, ab, kernel):
        a, b = ab
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(jax.nn.relu(a * x + b), kernel, (1, 1), "SAME", dimension_numbers=layout)

    assert ops.use_cpu_kernels(*operands)
    with jax.numpy_rank_promotion("allow"):
        (found, pull), (expected, pull_plain) = (jax.vjp(f, *operands) for f in (ops.affine_relu_convolution, plain))
        gradient = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        for ours, theirs in zip((found, *pull(gradient)), (expected, *pull_plain(gradient)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(jnp.abs(theirs).max()))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_scanning_over_equal_blocks_gives_the_same_network(monkeypatch, devices):
    axis = axis_of(devices)
    plain = steps(task_of(axis, "cifar_resnet20"), devices)[0]
    monkeypatch.setattr(ops, "MANY_BLOCKS", 2)
    task = task_of(axis, "cifar_resnet20")
    if devices > 1:
        state = jax.eval_shape(task.init, jax.random.key(0))
        data_parallel.check_reductions(task.train_step, state, batch=batch_of(16), devices=devices, is_sharded=None)
    lowered = jax.jit(task_of(name="cifar_resnet20").train_step).trace(
        jax.eval_shape(task.init, jax.random.key(0)), batch_of(16)
    )
    assert str(lowered.jaxpr).count("scan[") == 6  # Three stages, forward and backward.
    looped = steps(task, devices)[0]
    assert tree_error(looped.params, plain.params) < 1e-5
    assert tree_error(looped.batch_stats, plain.batch_stats) < 1e-6
