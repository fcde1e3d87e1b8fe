"""The generative adversarial network: a DCGAN with few channels on the digits of mnist5k.

Its samples are scored as in experiments.generate, but with a LeNet that is trained in the same run within seconds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import data
import models
from experiments.lecture import deep_nets, topic
from experiments.lecture.zoo import digits
from experiments.lecture.zoo.card import Card, Findings
from experiments.lecture.zoo.drawing import Diagram, Layer
from experiments.reporting import figures
from experiments.setup import small_training
from models import dcgan
from train import optimizers
from train.tasks import gan, gan_scores

SIDE = 32  # Side of the networks' images in pixels; the 28x28 digits are padded with black.
SHOWN = 40  # Samples in the figure.
SCORES = ("frechet_distance", "inception_score", "confident_share")


def classifier(*, steps: int):
    """A LeNet trained with a fixed seed, as a function uint8 [B, 28, 28, 1] -> (features [B, 84], logits [B, 10])."""
    model, prepare = models.create("lenet", 10, activation="relu"), deep_nets.digits().prepare
    learned = digits.learn(model, steps=steps, seed=0, rate=0.003)

    def features(images):
        logits, kept = model.apply(
            {"params": learned.params},
            prepare(images),
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "f6",
        )
        return jax.nn.relu(kept["intermediates"]["f6"]["__call__"][0]), logits

    return features


def form() -> gan.Form:
    edges, inside = (SIDE - 28) // 2, slice((SIDE - 28) // 2, (SIDE + 28) // 2)
    around = ((0, 0), (edges, edges), (edges, edges), (0, 0))

    def to_network(images):
        return jnp.pad(images.astype(jnp.float32) / 127.5 - 1, around, constant_values=-1)

    def to_image(made):
        return jnp.clip(jnp.round((made[:, inside, inside] + 1) * 127.5), 0, 255).astype(jnp.uint8)

    return gan.Form(to_network, to_image, dcgan.latents)


def scores(features, images: np.ndarray, real: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Scores images with the classifier: the Fréchet distance to the Gaussian `real`, the inception score, and the
    fraction of images that it assigns to a class with a probability of at least 90 %."""
    found, logits = features(images)
    found, p = np.asarray(found, np.float64), np.asarray(jax.nn.softmax(logits), np.float64)
    sums = {"probabilities": p.sum(0), "negative_entropy": (p * np.log(np.maximum(p, 1e-12))).sum()}
    return {
        "frechet_distance": gan_scores.frechet_distance((found.mean(0), np.cov(found.T)), real),
        "inception_score": gan_scores.inception_score(sums, len(images)),
        "confident_share": float((p.max(1) >= 0.9).mean()),
    }


def run(seed: int, *, steps: int = 1800, width: int = 16, classifier_steps: int = 400) -> dict[str, Any]:
    splits = data.load("mnist5k").splits
    features = jax.jit(classifier(steps=classifier_steps))
    model = dcgan.DCGAN(10, size=SIDE, channels=1, width=width)
    rate = optimizers.schedule("constant", learning_rate=0.001, steps=steps)
    task = gan.create(
        model=model,
        optimizer=optimizers.create("adam", rate, momentum=0.5, nesterov=False, weight_decay=0.0),
        image_shape=(SIDE, SIDE, 1),
        form=form(),
        scorer=None,
        ema=0.0,
        axis=None,
    )
    tests, _ = splits["test"]
    real = np.asarray(features(tests)[0], np.float64)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(len(tests)))
    latents = {"latent": dcgan.latents(keys), "label": np.zeros(len(tests), np.int32)}
    sample, made = jax.jit(task.predict_step), {}

    def watch(step, state):
        made[step] = np.asarray(sample(state, latents))

    small_training.train(task, *splits["train"], batch_size=64, steps=steps, seed=seed, every=0, watch=watch)
    rows = np.random.default_rng(seed).permutation(len(splits["train"][0]))[: len(tests)]
    compared = {"samples": made[steps], "untrained": made[0], "digits": splits["train"][0][rows]}
    score = functools.partial(scores, features, real=(real.mean(0), np.cov(real.T)))
    found: dict[str, Any] = {name: score(images) for name, images in compared.items()}
    classes = np.bincount(np.asarray(features(made[steps])[1]).argmax(-1), minlength=10)
    return {**found, "steps": steps, "classes": classes.tolist(), "images": made[steps][:SHOWN, ..., 0].tolist()}


def report(results: list[dict[str, Any]]) -> Findings:
    means = {
        kind: {name: topic.mean_and_std([result[kind][name] for result in results]) for name in SCORES}
        for kind in ("samples", "untrained", "digits")
    }
    share = np.array([result["classes"] for result in results], np.float64)
    numbers = means["samples"] | {"rarest_class_share": topic.mean_and_std(share.min(1) / share.sum(1))}
    baseline = means["untrained"] | {f"{name}_of_digits": value for name, value in means["digits"].items()}
    distance = {kind: each["frechet_distance"]["mean"] for kind, each in means.items()}
    # On a scale from 0 (real digits) to 1 (untrained generator).
    rest = (distance["samples"] - distance["digits"]) / (distance["untrained"] - distance["digits"])
    verdict = "resemble digits" if rest < 0.2 else "hardly resemble digits" if rest < 0.5 else "do not resemble digits"
    sure = {kind: f"{100 * each['confident_share']['mean']:.0f} %" for kind, each in means.items()}
    text = (
        f"After {results[0]['steps']} steps the Fréchet distance of the samples to test digits is "
        f"{distance['samples']:.0f}; it is {distance['digits']:.1f} for real training digits and "
        f"{distance['untrained']:.0f} for the untrained generator, so the samples {verdict}. A classifier assigns "
        f"{sure['samples']} of the samples and {sure['digits']} of real digits to a class with at least 90 % "
        f"confidence; its rarest class has {100 * numbers['rarest_class_share']['mean']:.0f} % of the samples."
    )
    images = np.array(results[0]["images"], np.float64) / 255
    figure = figures.image_grid(images, title="Samples of the generator", normalize=False, columns=8)
    caption = "samples from random latent vectors, not selected; first seed"
    return Findings(text, numbers, baseline, figure, caption, "untrained generator")


GAN = Card(
    name="gan",
    title="Generative adversarial network (GAN)",
    diagram=Diagram(
        (
            Layer("backfed", 3),
            Layer("hidden", 4),
            Layer("hidden", 4),
            Layer("match", 3),
            Layer("hidden", 4),
            Layer("hidden", 4),
            Layer("match", 3),
        )
    ),
    idea="A generator creates images from random vectors, and a discriminator learns to distinguish them from real "
    "ones. The generator learns from the discriminator's gradient how to make its images more realistic.",
    formula=r"\min_G \max_D E_x \log D(x) + E_z \log(1 - D(G(z)))",
    rule="Alternating steps: the discriminator is trained on real and generated images, then the generator by "
    "backpropagation through the discriminator; in practice it minimizes -log D(G(z)), whose gradient is larger at "
    "first.",
    reference="Ian Goodfellow et al., 2014, “Generative adversarial nets”; the networks: Alec Radford et al., 2016, "
    "“Unsupervised representation learning with deep convolutional generative adversarial networks”",
    run=run,
    report=report,
    command="python -m experiments.generate --workdir=NEW",
)

CARDS = (GAN,)
