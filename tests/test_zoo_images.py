"""Tests of the zoo's deconvolutional network and inverse graphics: features, rotations and clamping against NumPy,
short and full runs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lecture.zoo import deconvolutional, pixels
from experiments.lecture.zoo import inverse_graphics as zoo_graphics
from models.cnn import TinyCNN
from models.deconvolutional import UpConvolution
from train.tasks import inverse_graphics, reconstruction

CARDS = {card.name: card for card in (*deconvolutional.CARDS, *zoo_graphics.CARDS)}


@pytest.fixture
def few_digits(monkeypatch, mnist5k):
    (train, train_labels), (test, test_labels) = (mnist5k.splits[split] for split in ("train", "test"))
    a, b = pixels.one_of_each(train_labels), pixels.one_of_each(test_labels)
    digits = pixels.Digits(train[a], train_labels[a], test[b], test_labels[b])
    monkeypatch.setattr(pixels, "digits", lambda: digits)
    monkeypatch.setattr(pixels, "BATCH_SIZE", 10)
    return digits


def test_features_are_the_inputs_of_the_layers():
    """The features of conv3 determine the features of the dense layer, which determine the logits."""
    model, x = TinyCNN(num_classes=10), np.random.default_rng(0).random((2, 16, 16, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    found = jax.jit(functools.partial(deconvolutional.features, model=model, variables=variables))(x)
    params = variables["params"]
    assert {layer: found[layer].shape for layer in deconvolutional.LAYERS} == {
        "conv1": (2, 8, 8, 4),
        "conv2": (2, 4, 4, 8),
        "conv3": (2, 32),
        "dense": (2, 8),
        "logits": (2, 10),
    }
    np.testing.assert_allclose(found["dense"] @ params["logits"]["kernel"], found["logits"], atol=1e-5)
    sums = np.asarray(found["conv3"] @ params["dense"]["kernel"])  # Initial batch norm divides by sqrt(1 + 1e-5).
    np.testing.assert_allclose(np.maximum(sums, 0) / np.sqrt(1 + 1e-5), found["dense"], atol=1e-5)


@pytest.mark.parametrize("shape", [(10,), (2, 2, 6), (3, 3, 5), (6, 6, 4)])
def test_output_shapes_of_up_convolution(shape):
    model, x = UpConvolution(side=3, width=4), np.ones((2, *shape), np.float32)
    found = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x)[0])
    assert found.shape == (2, 12, 12, 1)


def test_rotation():
    image = np.random.default_rng(0).random((1, 6, 6, 2)).astype(np.float32)
    found = inverse_graphics.rotated(np.repeat(image, 3, 0), np.array([0.0, 90.0, -90.0], np.float32))
    for turned, count in zip(found, (0, 1, -1), strict=True):
        np.testing.assert_allclose(turned, np.rot90(image[0], count), atol=1e-5)
    corner = np.asarray(inverse_graphics.rotated(np.ones((1, 7, 7, 1), np.float32), np.array([45.0], np.float32)))[0]
    assert corner[0, 0, 0] == 0 and corner[3, 3, 0] == pytest.approx(1)


def test_clamping():
    """The output is the batch mean, the gradient the difference from it times the pull; active variables are kept."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    active = jnp.array([True, False, True])
    out, pull_back = jax.vjp(lambda z: inverse_graphics.clamped(z, active, 0.25), z)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    found = pull_back(gradient)[0]
    np.testing.assert_array_equal(out[:, [0, 2]], z[:, [0, 2]])
    np.testing.assert_allclose(out[:, 1], np.full(5, np.asarray(z)[:, 1].mean()), rtol=1e-5)
    np.testing.assert_array_equal(found[:, [0, 2]], gradient[:, [0, 2]])
    np.testing.assert_allclose(
        found[:, 1], 0.25 * (np.asarray(z)[:, 1] - np.asarray(z)[:, 1].mean()), rtol=1e-4, atol=1e-7
    )


def test_a_batch_varies_only_one_factor():
    given = np.random.default_rng(0).random((4, 6, 6, 1)).astype(np.float32)
    seen, make = set(), jax.jit(inverse_graphics.one_factor)
    for number in range(12):
        found, active = (np.asarray(x) for x in make(given, jax.random.key(number)))
        key, limit = jax.random.key(number), inverse_graphics.LIMIT
        degrees = jax.random.uniform(jax.random.fold_in(key, 2), (4,), minval=-limit, maxval=limit)
        if active[0]:
            expected = inverse_graphics.rotated(np.repeat(given[:1], 4, 0), degrees)
        else:
            expected = inverse_graphics.rotated(given, jnp.repeat(degrees[:1], 4))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert active.tolist() in ([True, False], [False, True])
        seen.add(bool(active[0]))
    assert seen == {True, False}


@pytest.mark.slow
def test_the_loss_without_clamping_equals_the_elbo():
    """Without clamping, the loss is the reconstruction error plus the KL divergence; the pull does not change it."""

    def apply(x, *, method):
        flat = x.reshape(len(x), -1)
        return (flat[:, :2], flat[:, 2:4]) if method == "encode" else jnp.tile(flat, 18).reshape(-1, 6, 6, 1)

    given = np.random.default_rng(0).random((4, 6, 6, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    turned = inverse_graphics.any_factors(given, keys)
    mean, log_variance = apply(turned, method="encode")
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, 1), (2,)) for key in keys])
    z = mean + jnp.exp(log_variance / 2) * noise
    expected = reconstruction.bernoulli_nll(apply(z, method="decode"), turned) + reconstruction.gaussian_kl(
        mean, log_variance
    )
    np.testing.assert_allclose(inverse_graphics.variational_loss(apply, given, keys)[0], expected, rtol=1e-5)
    one, two = (inverse_graphics.one_factor_loss(apply, given, keys, pull=pull, size=2)[0] for pull in (0.0, 1.0))
    np.testing.assert_array_equal(one, two)


def test_rotations_do_not_depend_on_the_latent_noise(monkeypatch):
    """The rotation of the first of two images against its noise, over 60 mini-batches. Pixels are the angles, latent
    variables the noise."""
    seen = {}

    def apply(x, *, method):
        seen[method] = np.asarray(x).reshape(len(x), -1)[::2, 0]
        return (jnp.zeros((len(x), 1)),) * 2 if method == "encode" else jnp.zeros((len(x), 3, 3, 1))

    monkeypatch.setattr(inverse_graphics, "rotated", lambda images, degrees: images + degrees[:, None, None, None])
    monkeypatch.setattr(inverse_graphics, "clamped", lambda z, active, pull: z)
    images, keys = jnp.zeros((120, 3, 3, 1)), jax.random.split(jax.random.key(0), 120)
    inverse_graphics.one_factor_loss(apply, images, keys, pull=0.0, size=2)
    assert len(np.unique(seen["encode"])) == len(np.unique(seen["decode"])) == 60
    assert abs(np.corrcoef(seen["encode"], seen["decode"])[0, 1]) < 0.4  # Three standard deviations.


def test_responses():
    """The first variable follows the angle, the second the digit, the third both equally."""
    angle, digit = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 20))
    means = np.stack([2 * angle, digit, angle + digit], -1)
    found = zoo_graphics.responses(means)
    np.testing.assert_allclose(found["share"], [0.8, 0, 0.2], atol=1e-6)
    part = angle.var() / (angle.var() + digit.var())
    np.testing.assert_allclose(found["explained"], [1, 0, part], atol=1e-6)
    np.testing.assert_allclose(found["correlation"], [1, 0, np.sqrt(part)], atol=1e-6)


SMALL = {
    "deconvolutional": {"classifier_steps": 2, "steps": 2, "widths": (2, 2, 2), "width": 2},
    "inverse_graphics": {"steps": 2, "latent": 3, "width": 4, "hidden": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_and_its_report(name, few_digits):
    card = CARDS[name]
    result = json.loads(json.dumps(card.run(0, **SMALL[name])))
    found = card.report([result])
    assert found.figure.axes[0].images and found.caption
    if name == "deconvolutional":
        assert found.numbers["conv2_psnr"]["mean"] == pytest.approx(result["network"]["conv2_psnr"])
        assert found.baseline["logits_psnr"]["mean"] == pytest.approx(result["class_mean"]["psnr"])
    else:
        assert found.numbers["rotation_share"]["mean"] == pytest.approx(result["clamped"]["share"][0])
        assert found.baseline["rotation_share"]["mean"] == pytest.approx(max(result["plain"]["share"]))
        assert ("not more than" in found.text) == (result["clamped"]["share"][0] <= max(result["plain"]["share"]))


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_digits_are_reconstructed_from_every_layer():
    found = CARDS["deconvolutional"].report([CARDS["deconvolutional"].run(0)])
    psnr = [found.numbers[f"{layer}_psnr"]["mean"] for layer in deconvolutional.LAYERS]
    assert psnr == sorted(psnr, reverse=True) and psnr[0] > 20
    assert psnr[-1] > found.baseline["logits_psnr"]["mean"]
    assert found.numbers["classifier_accuracy"]["mean"] > 0.95


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_one_latent_variable_rotates():
    found = CARDS["inverse_graphics"].report([CARDS["inverse_graphics"].run(0)])
    assert found.numbers["rotation_share"]["mean"] > found.baseline["rotation_share"]["mean"] + 0.2
    assert found.numbers["moved_error"]["mean"] < 0.85 * found.numbers["still_error"]["mean"]
