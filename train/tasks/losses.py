"""Losses and top-k accuracy of each example, for classification and segmentation; the caller sums and divides.

A GAN's losses are in gan.py; hybrid parallelism has its own form of cross_entropy, for sharded logits, in
parallel/hybrid.py.
"""

import jax
import jax.numpy as jnp
import optax


def class_logits(logits):
    """Converts the logit [B, 1] of a single sigmoid unit to logits [B, 2], because the softmax of (0, z) is the sigmoid
    of z. Returns other logits [B, C] unchanged."""
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1) if logits.shape[-1] == 1 else logits


def cross_entropy(logits, labels, *, smoothing: float = 0.0):
    """-log p(label) per example [B], in nats, from logits [B, C]; binary cross-entropy for [B, 1].

    With `smoothing` s, the target is (1 - s) for the label plus s / C for every class (Szegedy et al. 2015, section 7).
    """
    scores = class_logits(logits)
    loss = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss - smoothing * jax.nn.log_softmax(scores).mean(-1)


def over_labels(measure, labels, mixture=None):
    """`measure(labels)` [B], a value for each example. For mixed images, `mixture` is (the other images' labels [B],
    the weights [B] of `labels`), and the result is the weighted mean over both labels."""
    if mixture is None:
        return measure(labels)
    others, weight_B = mixture
    return weight_B * measure(labels) + (1 - weight_B) * measure(others)


def in_top(logits, labels, k: int):
    """1.0 for each example [B] whose label is among the k largest logits, else 0.0; ties go to the lower class."""
    scores = class_logits(logits)
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    after = jnp.arange(scores.shape[-1])[None] > labels[:, None]
    beaten = jnp.sum((scores < own) | ((scores == own) & after), axis=-1)  # 0 if the logits are NaN.
    return (scores.shape[-1] - 1 - beaten < k).astype(jnp.float32)
