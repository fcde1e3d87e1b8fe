"""Scores of generated images. Moments and distances are computed on the device, scores from their sums on the host."""

import jax.numpy as jnp
import numpy as np
from jax import lax


def moments(features, weights) -> dict:
    """Sums over the rows of features [B, F], from which `gaussian` computes mean and covariance."""
    weighted = features * weights[:, None]
    return {"sum": weighted.sum(0), "products": weighted.T @ features}


def nearest(images, others, chunk: int = 1000):
    """The root mean square pixel difference [B], on the scale 0 to 1, between each image and the nearest of `others`;
    both are uint8 [., H, W, C]."""
    flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
    size = (flat**2).sum(1)
    count = min(chunk, len(others))
    starts = jnp.minimum(jnp.arange(-(-len(others) // count)) * count, len(others) - count)

    def closer(best, start):
        there = lax.dynamic_slice_in_dim(others, start, count).reshape(count, -1).astype(jnp.float32) / 255
        squares = size[:, None] + (there**2).sum(1)[None] - 2 * flat @ there.T
        return jnp.minimum(best, squares.min(1)), None

    best, _ = lax.scan(closer, jnp.full_like(size, jnp.inf), starts)
    return jnp.sqrt(jnp.maximum(best, 0) / flat.shape[1])


def gaussian(sums, count) -> tuple[np.ndarray, np.ndarray]:
    """(mean [F], unbiased covariance [F, F]) from `moments`."""
    mean = np.asarray(sums["sum"], np.float64) / count
    products = np.asarray(sums["products"], np.float64)
    return mean, (products - count * np.outer(mean, mean)) / max(count - 1, 1)


def frechet_distance(one, other) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (mean, covariance) (Dowson & Landau 1982; Heusel et
    al. 2017, "GANs trained by a two time-scale update rule", eq. 6). It is never negative, despite rounding."""
    (m1, c1), (m2, c2) = one, other
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c2 @ root), 0)).sum()
    return max(0.0, float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross))


def inception_score(sums, count) -> float:
    """exp of the mean divergence of p(class | sample) from p(class) (Salimans et al. 2016, "Improved techniques for
    training GANs", section 4), according to the project's classifier."""
    marginal = np.maximum(np.asarray(sums["probabilities"], np.float64) / count, 1e-12)
    return float(np.exp(sums["negative_entropy"] / count - (marginal * np.log(marginal)).sum()))
