"""The zoo's variational autoencoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lecture.topic import mean_and_std
from experiments.lecture.zoo import pixels
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting.figures_rows import Row, image_rows
from experiments.reporting.reconstruction_report import manifold
from models.autoencoder import VariationalAutoencoder
from models.layers import row_keys
from train.tasks import reconstruction

LATENT, DRAWS = 20, 64  # Latent variables; samples of them per test digit.
CLUSTERS, EM_STEPS = 50, 20  # Components and EM steps of the baseline, a mixture model.
SIDE = 12  # Digits per row of the images of the manifold and of the samples.


def independent_likelihood(train: np.ndarray, test: np.ndarray) -> float:
    """The mean log p(x) in nats of binary images [N, M] under independent pixels with the training images' means."""
    p = (train.sum(0) + 0.5) / (len(train) + 1)
    return float((test @ np.log(p) + (1 - test) @ np.log1p(-p)).mean())


def mixture_likelihood(train: np.ndarray, test: np.ndarray, *, clusters: int, steps: int, seed: int) -> float:
    """The mean log p(x) in nats of binary images [N, M] under a mixture of Bernoulli distributions, fitted to the
    training images by `steps` steps of the EM algorithm, initialized with k-means. The mean image is added to each
    component as one pseudo-observation, so that no pixel has probability zero."""
    from scipy.special import logsumexp
    from sklearn.cluster import KMeans

    shares = np.eye(clusters)[KMeans(clusters, n_init=1, max_iter=20, random_state=seed).fit(train).labels_]
    mean = np.clip(train.mean(0), 1e-3, 1 - 1e-3)

    def joint(images, shares):
        p = (shares.T @ train + mean[None]) / (shares.sum(0)[:, None] + 1)
        weights = (shares.sum(0) + 1) / (len(shares) + clusters)
        return images @ np.log(p).T + (1 - images) @ np.log1p(-p).T + np.log(weights)[None]

    for _ in range(steps):
        log_p = joint(train, shares)
        shares = np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))
    return float(logsumexp(joint(test, shares), axis=1).mean())


def _trained(digits: pixels.Digits, *, latent: int, hidden: int, steps: int, seed: int):
    """Trains the network; returns (its apply function, its metrics on the test digits)."""
    model = VariationalAutoencoder(code=latent, hidden=(hidden,))
    task = reconstruction.create(
        model=model,
        optimizer=pixels.annealed_adam(3e-3, steps),
        image_shape=pixels.SHAPE,
        loss=reconstruction.variational_loss,
        terms=("reconstruction", "kl"),
    )
    state = pixels.fit(task, digits.train, digits.train_labels, steps=steps, seed=seed)
    return functools.partial(model.apply, {"params": state.params}), pixels.evaluated(task, state, digits.test)


def run_variational(
    seed: int, *, steps: int = 1500, hidden: int = 256, draws: int = DRAWS, clusters: int = CLUSTERS
) -> dict:
    digits = pixels.digits()
    keys = row_keys(jax.random.key(reconstruction.EVAL_SEED), jnp.arange(len(digits.test)))
    binary = jax.jit(reconstruction.binarized)(reconstruction.pixels(digits.test), keys)
    apply, found = _trained(digits, latent=LATENT, hidden=hidden, steps=steps, seed=seed)
    weights = jax.jit(functools.partial(reconstruction.log_weights, apply, samples=draws))(binary, jax.random.key(seed))
    samples = jax.random.normal(jax.random.key(seed), (SIDE * SIDE // 2, LATENT))
    flat_apply, flat = _trained(digits, latent=2, hidden=hidden, steps=steps, seed=seed)
    train, test = pixels.flat(digits.train), np.asarray(binary).reshape(len(digits.test), -1)
    return {
        "elbo": float(weights.mean()),
        "bound": float((jax.nn.logsumexp(weights, axis=0) - np.log(draws)).mean()),
        "draws": draws,
        "kl": found["kl"],
        "elbo_of_two_latents": -flat["loss"],
        "mixture": mixture_likelihood(train, test, clusters=clusters, steps=EM_STEPS, seed=seed),
        "clusters": clusters,
        "independent": independent_likelihood(train, test),
        "samples": pixels.as_lists(jax.nn.sigmoid(apply(samples, method="decode"))),
        "manifold": pixels.as_lists(jax.nn.sigmoid(flat_apply(manifold(SIDE), method="decode"))),
    }


def report_variational(results: list[dict]) -> Findings:
    def spread(key):
        return mean_and_std([result[key] for result in results])

    first = results[0]
    numbers = {key: spread(key) for key in ("elbo", "kl", "elbo_of_two_latents")}
    numbers["importance_weighted_bound"] = spread("bound")
    baseline = {"elbo": spread("mixture"), "log_p_of_independent_pixels": spread("independent")}
    own, mixture = numbers["elbo"]["mean"], baseline["elbo"]["mean"]
    relation = "above" if own > mixture else "not above"
    text = (
        f"The test ELBO, a lower bound of log p(x), is {own:.1f} nats per binary digit with {LATENT} latent variables "
        f"({numbers['importance_weighted_bound']['mean']:.1f} with importance weighting) and "
        f"{numbers['elbo_of_two_latents']['mean']:.1f} with two. With {LATENT} it is {relation} the {mixture:.1f} of a "
        f"mixture of {first['clusters']} Bernoulli distributions; independent pixels have "
        f"{baseline['log_p_of_independent_pixels']['mean']:.1f}."
    )
    rows = [
        Row("grid of two latent variables, left to right and bottom to top", first["manifold"]),
        Row(f"samples with {LATENT} latent variables", first["samples"]),
    ]
    caption = "Pixel probabilities of the decoder for a grid of two latent variables, and for random vectors; seed 0"
    figure = image_rows(f"Test ELBO: {own:.1f} nats, mixture: {mixture:.1f}", rows, columns=SIDE)
    return Findings(text, numbers, baseline, figure, caption, "mixture of Bernoullis, log p(x)")


FORMULA = (
    r"\begin{array}{l} \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - \mathrm{KL}(q(z|x) \| p(z)) \\ "
    r"z = \mu + \sigma \varepsilon \end{array}"
)

CARDS = (
    Card(
        name="variational",
        title="Variational autoencoder (VAE)",
        diagram=Diagram((Layer("input", 4), Layer("probabilistic", 2), Layer("match", 4))),
        idea="The code of an image is a normal distribution instead of a point, and all codes together should follow a "
        "standard normal distribution. So random codes decode to images like digits, and the network can generate new "
        "ones.",
        formula=FORMULA,
        rule="Gradient ascent (Adam) on a lower bound of the images' log-probability; the reparameterization trick "
        "allows gradients to pass through the random code.",
        reference="Kingma & Welling, 2013, “Auto-encoding variational Bayes”",
        run=run_variational,
        report=report_variational,
        command="python -m experiments.reconstruct --model=variational --workdir=NEW",
    ),
)
