"""Tests of mixup and CutMix: pixels, weights and losses against NumPy, and any split of the batch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from data import augment, batches
from data.dataset import Dataset
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.setup import training
from models.layers import row_keys
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.tasks import classification

KINDS = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


@functools.cache
def keys_of(count):
    return row_keys(jax.random.key(5), jnp.arange(count))


def expected_share(key, shape, *, mixup=0.0, cutmix=0.0):
    """The share of the image itself in each pixel, computed pixel by pixel in float64."""
    choice, weight_key, center_key = jax.random.split(jax.random.fold_in(key, 4), 3)
    blend = bool(mixup) and (not cutmix or bool(jax.random.bernoulli(choice)))
    alpha = mixup if blend else cutmix
    u, v = np.asarray(jax.random.uniform(weight_key, (2,)), np.float64)
    # Student's t with 2 alpha degrees of freedom (Bailey 1994), whose transform is Beta(alpha, alpha).
    t = np.sqrt(2 * alpha * (u ** (-1 / alpha) - 1)) * np.cos(2 * np.pi * v)
    weight = 0.5 + 0.5 * t / np.sqrt(2 * alpha + t**2)
    if blend:
        return np.full(shape, weight)
    (y, x), (height, width) = np.asarray(jax.random.uniform(center_key, (2,)), np.float64), shape
    sides, share = np.sqrt(1 - weight) * np.array(shape), np.ones(shape)
    for row in range(height):
        for column in range(width):
            away = abs(row + 0.5 - y * height), abs(column + 0.5 - x * width)
            share[row, column] = not (away[0] < sides[0] / 2 and away[1] < sides[1] / 2)
    return share


@pytest.mark.parametrize("options", KINDS)
def test_mixed_images_and_weights_equal_numpy(options):
    images = np.random.default_rng(0).normal(size=(12, 5, 8, 3)).astype(np.float32)
    labels, keys = np.arange(12), keys_of(12)
    mixed, (others, weights) = jax.jit(functools.partial(augment.mix, **options))(images, labels, keys)
    np.testing.assert_array_equal(others, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    shares = np.stack([expected_share(key, (5, 8), **options) for key in keys])
    expected = shares[..., None] * images + (1 - shares[..., None]) * images[np.arange(12) ^ 1]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    np.testing.assert_allclose(weights, shares.mean((1, 2)), atol=1e-5)
    boxes = ((shares == 0) | (shares == 1)).all((1, 2))
    assert boxes.any() == ("cutmix" in options) and boxes.all() == ("mixup" not in options)
    assert 0.05 < shares.mean() < 0.95


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_weights_have_the_beta_distribution(alpha):
    draws = jax.jit(jax.vmap(functools.partial(augment.symmetric_beta, alpha=alpha)))(keys_of(4000))
    found = scipy.stats.kstest(np.asarray(draws, np.float64), scipy.stats.beta(alpha, alpha).cdf)
    assert found.statistic < 0.03  # The critical value for p = 0.001 is 0.031.
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.02)


def test_the_mean_area_of_the_boxes():
    """A box with sides s of the image has the mean area (s - s^2 / 4)^2 inside the image, and s^2 is uniform."""
    images, labels = jnp.zeros((4000, 16, 16, 1)), jnp.zeros(4000, jnp.int32)
    _, (_, weights) = jax.jit(functools.partial(augment.mix, cutmix=1.0))(images, labels, keys_of(4000))
    assert 1 - float(weights.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


def test_mixing_uses_separate_random_keys():
    key = jax.random.key(3)
    own = jax.random.key_data(jax.random.fold_in(key, augment.MIX_KEY))
    others = [*jax.random.split(key, 3), jax.random.fold_in(key, augment.NOISE_KEY)]
    assert all((jax.random.key_data(other) != own).any() for other in others)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def make_task(devices=1, smoothing=0.0, **options):
    return classification.create(
        model=Linear(),
        optimizer=optax.sgd(1.0),
        image_shape=(4, 6, 1),
        class_names=("a", "b", "c"),
        train_prepare=lambda images, keys: augment.flip_shift(images / 255.0, keys, shift=1),
        eval_prepare=lambda images: images / 255.0,
        axis=axis_of(devices),
        smoothing=smoothing,
        mix=functools.partial(augment.mix, mixup=0.4, cutmix=1.0),
        **options,
    )


BATCH = {
    "image": np.random.default_rng(1).integers(0, 256, (16, 4, 6, 1), dtype=np.uint8),
    "label": np.random.default_rng(2).integers(0, 3, 16).astype(np.int32),
}


@functools.cache
def step_of(devices=1, **options):
    task = make_task(devices, **options)
    state = jax.jit(task.init)(jax.random.key(0))
    data_parallel.check_reductions(task.train_step, state, batch=BATCH, devices=devices)
    rows = batches.device_order(16, devices=devices, micro_batches=options.get("accumulate", 1))
    batch = {name: values[rows] for name, values in BATCH.items()}
    after, sums = data_parallel.parallelize(task.train_step, devices, donate=False)(state, batch)
    return jax.device_get((after.params, sums))


def test_loss_and_accuracy_count_both_labels():
    """The loss and the weight gradient of a linear network, in NumPy, with label smoothing."""
    task = make_task(smoothing=0.2)
    state = jax.jit(task.init)(jax.random.key(0))
    after, sums = jax.jit(task.train_step)(state, BATCH)
    image_key, _ = jax.random.split(jax.random.fold_in(state.key, 0))
    keys = row_keys(image_key, jnp.arange(16))
    prepare = jax.jit(functools.partial(augment.flip_shift, shift=1))
    prepared = np.asarray(prepare(BATCH["image"] / np.float32(255), keys), np.float64)
    shares = np.stack([expected_share(key, (4, 6), mixup=0.4, cutmix=1.0) for key in keys])[..., None]
    mixed = (shares * prepared + (1 - shares) * prepared[np.arange(16) ^ 1]).reshape(16, -1)
    weight = shares.mean((1, 2))
    start = jax.device_get(state.params["Dense_0"])
    logits = mixed @ start["kernel"] + start["bias"]
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.eye(3)[BATCH["label"]]
    target = weight * own + (1 - weight) * own[np.arange(16) ^ 1]
    smooth = 0.8 * target + 0.2 / 3
    assert float(sums["loss"]) == pytest.approx(-(smooth * scores).sum(), rel=1e-5)
    hits = np.eye(3)[logits.argmax(-1)]
    assert float(sums["correct"]) == pytest.approx((hits * target).sum(), rel=1e-5) and sums["count"] == 16
    gradient = mixed.T @ (np.exp(scores) - smooth) / 16
    np.testing.assert_allclose(start["kernel"] - after.params["Dense_0"]["kernel"], gradient, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"devices": 2},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"devices": 8}, {"accumulate": 4}, {"devices": 2, "accumulate": 4}, {"remat": True})
        ),
    ],
)
def test_any_split_of_the_batch_gives_the_same_step(options):
    assert tree_error(step_of(**options), step_of()) < 1e-5


@pytest.mark.slow
def test_bfloat16_and_smaller_images():
    assert 1e-5 < tree_error(step_of(dtype="bfloat16")[0], step_of()[0]) < 0.05
    task = make_task(early=(1, (2, 3)))._replace(init=None)
    state = jax.eval_shape(make_task().init, jax.random.key(0))
    small = jax.eval_shape(
        functools.partial(task.early_step.keywords["grad_fn"], model=Pooled()), {}, {}, BATCH, state.key
    )
    assert small[0][0].shape == ()


class Pooled(nn.Module):
    """A network without parameters for images of 2x3 pixels."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        assert x.shape[1:] == (2, 3, 1)
        return x.reshape(-1, 2, 3).mean(1)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_odd_micro_batches_are_refused(name):
    dataset = Dataset("d", {"train": (None, np.zeros(100)), "test": (None, np.zeros(10))}, ())
    for devices, accumulate in ((1, 4), (4, 1), (2, 2)):
        config = ClassifyConfig(batch_size=12, accumulate=accumulate, **{name: 0.5})
        flags = f"--batch_size=12 --devices={devices} --accumulate={accumulate} must give an even number of rows"
        with pytest.raises(UsageError, match=f"--{name}=0.5 mixes pairs of images: {flags} per micro-batch, not 3"):
            training.total_steps(config, dataset, devices)
    assert training.total_steps(ClassifyConfig(batch_size=12, **{name: 0.5}), dataset, 2) == 84
