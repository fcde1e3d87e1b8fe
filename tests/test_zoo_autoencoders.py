"""Tests of the zoo's autoencoders: losses against NumPy, the ELBO against quadrature, baselines, short runs."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.lecture.zoo import autoencoders, pixels, variational
from experiments.reporting.reconstruction_report import manifold
from models.autoencoder import Autoencoder, SparseAutoencoder, VariationalAutoencoder
from models.layers import row_keys
from train.tasks import reconstruction

CARDS = {card.name: card for card in (*autoencoders.CARDS, *variational.CARDS)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bernoulli_nll(p, x):
    return -(x * np.log(p) + (1 - x) * np.log1p(-p)).sum(-1)


@pytest.fixture
def few_digits(monkeypatch, mnist5k):
    """20 training and 20 test digits, two of each class."""
    (train, train_labels), (test, test_labels) = (mnist5k.splits[split] for split in ("train", "test"))

    def two_of_each(labels):
        return np.concatenate([np.flatnonzero(labels == digit)[:2] for digit in range(10)])

    a, b = two_of_each(train_labels), two_of_each(test_labels)
    digits = pixels.Digits(train[a], train_labels[a], test[b], test_labels[b])
    monkeypatch.setattr(pixels, "digits", lambda: digits)
    monkeypatch.setattr(pixels, "BATCH_SIZE", 10)
    return digits


def test_kl_divergence_against_the_closed_form_and_samples():
    random = np.random.default_rng(0)
    mean, log_variance = random.normal(size=(3, 4)), random.normal(size=(3, 4))
    found = np.asarray(reconstruction.gaussian_kl(mean, log_variance))
    expected = sum((np.exp(log_variance) + mean**2 - 1 - log_variance).T) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    noise = random.normal(size=(100_000, 3, 4))
    z = mean + np.exp(log_variance / 2) * noise
    log_ratios = ((z**2 - noise**2 - log_variance) / 2).sum(-1)  # log q(z) - log p(z).
    error = log_ratios.std(0) / math.sqrt(len(noise))
    assert (np.abs(log_ratios.mean(0) - found) < 4 * error).all() and (error < 0.02 * found).all()
    np.testing.assert_array_equal(reconstruction.gaussian_kl(np.zeros((2, 5)), np.zeros((2, 5))), 0)


def test_the_reparameterized_gradient():
    """d/dm E[z^3] = 3 (m^2 + v) and d/d(log v) E[z^3] = 3 m v, for z from N(m, v)."""
    noise = np.random.default_rng(0).normal(size=20_000)
    noise = np.concatenate([noise, -noise])
    noise /= noise.std()
    m, log_v = 0.7, -0.4

    def cube(m, log_v):
        return (reconstruction.reparameterized(m, log_v, jnp.asarray(noise, jnp.float32)) ** 3).mean()

    by_mean, by_log_variance = jax.grad(cube, argnums=(0, 1))(m, log_v)
    np.testing.assert_allclose(by_mean, 3 * (m**2 + math.exp(log_v)), rtol=1e-4)
    np.testing.assert_allclose(by_log_variance, 3 * m * math.exp(log_v), rtol=1e-4)


@pytest.mark.slow
def test_the_elbo_against_quadrature():
    """With one latent variable, log p(x) is a one-dimensional integral; the ELBO is log p(x) - KL(q || posterior)."""
    model = VariationalAutoencoder(shape=(2, 2, 1), code=1, hidden=())
    random = np.random.default_rng(3)
    sizes = {"encoder_0": (4, 2), "decoder_0": (1, 4)}
    params = {
        name: {
            "kernel": random.normal(size=size).astype(np.float32),
            "bias": random.normal(size=size[1]).astype(np.float32),
        }
        for name, size in sizes.items()
    }
    apply, x = functools.partial(model.apply, {"params": params}), np.array([1.0, 0, 0, 1], np.float32)
    mean, log_variance = x @ params["encoder_0"]["kernel"] + params["encoder_0"]["bias"]
    z = np.linspace(-12, 12, 20_001)
    step = z[1] - z[0]
    p = sigmoid(z[:, None] * params["decoder_0"]["kernel"] + params["decoder_0"]["bias"])
    prior = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    q = np.exp(-((z - mean) ** 2) / 2 / np.exp(log_variance)) / np.sqrt(2 * math.pi * np.exp(log_variance))
    joint = np.exp(-bernoulli_nll(p, x)) * prior
    log_p = math.log(joint.sum() * step)
    elbo = float((q * (np.log(joint) - np.log(q + 1e-300))).sum() * step)
    divergence = float((q * (np.log(q + 1e-300) - np.log(joint) + log_p)).sum() * step)
    np.testing.assert_allclose(elbo, log_p - divergence, rtol=1e-6)

    image = x.reshape(1, 2, 2, 1)
    weights = np.asarray(reconstruction.log_weights(apply, image, jax.random.key(0), samples=2000))[:, 0]
    assert abs(weights.mean() - elbo) < 4 * weights.std() / math.sqrt(2000)
    bound = np.log(np.exp(weights).mean())
    assert elbo < bound and abs(bound - log_p) < 0.05
    many = np.repeat(image, 2000, 0)
    loss, terms = reconstruction.variational_loss(apply, many, row_keys(jax.random.key(1), jnp.arange(2000)))
    loss = np.asarray(loss)
    assert abs(-loss.mean() - elbo) < 4 * loss.std() / math.sqrt(2000)
    np.testing.assert_allclose(terms["reconstruction"] + terms["kl"], loss, rtol=1e-5)


def test_likelihood_and_psnr():
    random = np.random.default_rng(1)
    logits, x = (
        random.normal(size=(3, 2, 2, 1)).astype(np.float32),
        random.integers(2, size=(3, 2, 2, 1)).astype(np.float32),
    )
    expected = bernoulli_nll(sigmoid(logits).reshape(3, -1), x.reshape(3, -1))
    np.testing.assert_allclose(reconstruction.bernoulli_nll(logits, x), expected, rtol=1e-5)
    np.testing.assert_allclose(reconstruction.psnr(np.array([1.0, 0.01])), [0.0, 20.0], atol=1e-5)
    found = pixels.errors(np.array([[0.1, 0.1], [0.5, 0.7]]), np.array([[0.0, 0.0], [0.5, 0.5]]))
    expected = {"squared_error": (0.01 + 0.02) / 2, "psnr": (20 + 10 * math.log10(50)) / 2}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_noise_depends_only_on_the_examples_key():
    keys, images = row_keys(jax.random.key(2), jnp.arange(40)), jnp.full((40, 5, 5, 1), 0.5)
    for noise in (functools.partial(reconstruction.masked, rate=0.3), reconstruction.binarized):
        found = np.asarray(noise(images, keys))
        np.testing.assert_array_equal(noise(images[7:9], keys[7:9]), found[7:9])
        assert abs((found == 0).mean() - (0.3 if noise is not reconstruction.binarized else 0.5)) < 0.06
        assert set(np.unique(found)) == ({0.0, 1.0} if noise is reconstruction.binarized else {0.0, 0.5})
    assert np.asarray(reconstruction.masked(np.full((2, 3, 3, 1), 9, np.uint8), keys[:2], rate=0.0)).dtype == np.uint8
    sure = np.array([0.0, 1.0] * 2, np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(reconstruction.binarized(sure, keys[:1]), sure)


def test_a_step_against_backpropagation_by_hand():
    """One step of gradient descent for a 4-3-4 network with ReLU code, sigmoid output and half the squared error."""
    model, rate = Autoencoder(shape=(2, 2, 1), code=3, hidden=()), 0.1
    task = reconstruction.create(
        model=model, optimizer=optax.sgd(rate), image_shape=(2, 2, 1), loss=reconstruction.squared_loss
    )
    images = np.random.default_rng(0).integers(256, size=(5, 2, 2, 1)).astype(np.uint8)
    state = task.init(jax.random.key(1))
    w1, w2 = (np.asarray(state.params[name]["kernel"], np.float64) for name in ("encoder_0", "decoder_0"))
    x = images.reshape(5, 4) / 255
    code = np.maximum(x @ w1, 0)
    y = sigmoid(code @ w2)
    delta2 = (y - x) * y * (1 - y)
    delta1 = delta2 @ w2.T * (code > 0)
    after, sums = task.train_step(state, {"image": images})
    np.testing.assert_allclose(sums["loss"], 0.5 * ((y - x) ** 2).sum(), rtol=1e-5)
    for name, before, delta, inputs in (("encoder_0", w1, delta1, x), ("decoder_0", w2, delta2, code)):
        np.testing.assert_allclose(after.params[name]["kernel"], before - rate * inputs.T @ delta / 5, atol=1e-6)
        np.testing.assert_allclose(after.params[name]["bias"], -rate * delta.mean(0), atol=1e-6)
    batch = {"image": images, "row": np.arange(5), "mask": np.array([1, 1, 0, 0, 0], np.float32)}
    metrics = task.compute_metrics(task.eval_step(state, batch))
    assert metrics == pytest.approx(
        {"loss": 0.5 * ((y - x) ** 2)[:2].sum() / 2} | pixels.errors(y[:2], x[:2]), rel=1e-4
    )


def test_the_sparse_loss():
    model = SparseAutoencoder(shape=(2, 2, 1), code=3)
    x = np.random.default_rng(0).random((5, 2, 2, 1)).astype(np.float32)
    params = model.init(jax.random.key(0), x)["params"]
    apply = functools.partial(model.apply, {"params": params})
    parts = np.asarray(apply(method="parts"))
    np.testing.assert_allclose((parts**2).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(parts, params["directions"] / np.linalg.norm(params["directions"], axis=1)[:, None])
    offset, bias = np.array([0.1, -0.2, 0.0, 0.3], np.float32), np.array([-0.1, 0.2, 0.0], np.float32)
    apply = functools.partial(model.apply, {"params": params | {"offset": offset, "bias": bias}})
    flat = x.reshape(5, -1)
    code = np.maximum((flat - offset) @ parts.T + bias, 0)
    expected = 0.5 * ((code @ parts + offset - flat) ** 2).sum(1) + 0.7 * code.sum(1)
    loss, terms = reconstruction.sparse_loss(apply, x, None, penalty=0.7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(terms["active"], (code > 0).mean(1))


@pytest.mark.slow
def test_pca_against_the_covariance():
    digits = pixels.Digits(*(part[::8] for part in pixels.digits()))
    train, test = pixels.flat(digits.train).astype(np.float64), pixels.flat(digits.test)
    mean = train.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train.T))
    largest = vectors[:, -32:]
    output = (test - mean) @ largest @ largest.T + mean
    found = autoencoders.pca_errors(digits, 32)
    assert found["squared_error"] == pytest.approx(((output - test) ** 2).mean(), rel=1e-4)


def test_the_mixtures_probabilities_sum_to_one():
    random = np.random.default_rng(0)
    train = (random.random((60, 4)) < np.repeat([[0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.9, 0.9]], 30, 0)).astype(np.float64)
    images = np.array([[n >> i & 1 for i in range(4)] for n in range(16)], np.float64)

    def log_p(test, clusters, steps):
        return variational.mixture_likelihood(train, test, clusters=clusters, steps=steps, seed=0)

    total = sum(math.exp(log_p(image[None], 2, 5)) for image in images)
    assert total == pytest.approx(1, rel=1e-6)
    total = sum(math.exp(variational.independent_likelihood(train, image[None])) for image in images)
    assert total == pytest.approx(1, rel=1e-6)
    p = (train.sum(0) + train.mean(0)) / 61
    one = (images @ np.log(p) + (1 - images) @ np.log1p(-p)).mean()
    assert log_p(images, 1, 3) == pytest.approx(one, rel=1e-6)  # A single component is fitted in one step.
    assert log_p(train, 2, 5) > log_p(train, 1, 5) + 0.3


def test_the_manifold_covers_the_quantiles():
    found = manifold(3)
    assert found.shape == (9, 2) and found[4] == pytest.approx([0, 0], abs=1e-6)
    assert found[0] == pytest.approx([-0.96742, 0.96742], rel=1e-4)  # The quantile of 5/6.
    assert (found[:3, 1] == found[0, 1]).all() and (found[::3, 0] == found[0, 0]).all()


SMALL = {
    "autoencoder": {"steps": 2, "code": 3, "hidden": 8},
    "denoising": {"steps": 2, "code": 20},
    "sparse": {"steps": 2, "code": 24},
    "variational": {"steps": 2, "hidden": 8, "draws": 2, "clusters": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_and_its_report(name, few_digits):
    card = CARDS[name]
    results = [json.loads(json.dumps(card.run(seed, **SMALL[name]))) for seed in (0,)]
    found = card.report(results)
    measured = {"autoencoder": "network", "denoising": "denoising", "sparse": "sparse"}.get(name)
    key = "squared_error" if measured else "elbo"
    value = results[0][measured][key] if measured else results[0][key]
    assert found.numbers[key] == {"mean": pytest.approx(value), "std": 0.0}
    assert key in found.baseline and found.figure.axes[0].images
    negated = "not less than" if found.numbers[key]["mean"] >= found.baseline[key]["mean"] else "less than"
    assert name in ("variational", "denoising", "sparse") or negated in found.text


# --- The claims, checked in full runs


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_autoencoder_beats_pca():
    found = CARDS["autoencoder"].report([CARDS["autoencoder"].run(0, steps=1500)])
    assert found.numbers["squared_error"]["mean"] < 0.9 * found.baseline["squared_error"]["mean"]
    assert found.numbers["psnr"]["mean"] > found.baseline["psnr"]["mean"] + 0.5


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_denoising_autoencoder_improves_psnr():
    found = CARDS["denoising"].report([CARDS["denoising"].run(0)])
    assert found.numbers["psnr_gain"]["mean"] > 4
    assert found.numbers["psnr"]["mean"] > found.baseline["psnr"]["mean"] + 0.5
    assert found.numbers["psnr"]["mean"] > found.baseline["psnr_trained_without_noise"]["mean"] + 1


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_sparse_code_is_sparse():
    found = CARDS["sparse"].report([CARDS["sparse"].run(0)])
    assert found.numbers["active"]["mean"] < 0.2 and found.baseline["active"]["mean"] > 0.8
    assert found.numbers["unused"]["mean"] < 0.05 and found.numbers["psnr"]["mean"] > 15


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_the_variational_bound_beats_the_mixture():
    found = CARDS["variational"].report([CARDS["variational"].run(0, steps=800)])
    numbers, baseline = found.numbers, found.baseline
    assert numbers["elbo"]["mean"] > baseline["elbo"]["mean"] + 5
    assert numbers["elbo"]["mean"] > numbers["elbo_of_two_latents"]["mean"] + 10
    assert numbers["importance_weighted_bound"]["mean"] > numbers["elbo"]["mean"]
