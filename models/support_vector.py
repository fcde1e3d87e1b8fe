"""Support-vector machines for two classes, linear and with a Gaussian kernel (Cortes & Vapnik 1995, "Support-vector
networks"). Scores are positive for one class and negative for the other. Functions evaluate K machines at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.rbf import squared_distances


def linear_scores(weights_DK, x_BD):
    """Scores [B, K]; the last row of the weights [D + 1, K] contains the biases."""
    return x_BD @ weights_DK[:-1] + weights_DK[-1][None]


class KernelMachine(NamedTuple):
    """Examples [N, D], their coefficients [K, N] (0 unless they are support vectors), biases [K], and gamma []."""

    examples: jax.Array
    coefficients: jax.Array
    bias: jax.Array
    gamma: jax.Array


def gaussian_kernel(x_BD, z_ND, gamma):
    """exp(-gamma |x - z|^2) of each pair, [B, N]."""
    return jnp.exp(-gamma * squared_distances(x_BD, z_ND))


def kernel_scores(params: KernelMachine, x_BD):
    """Scores [B, K]."""
    kernel = gaussian_kernel(x_BD, params.examples, params.gamma)
    return kernel @ params.coefficients.T + params.bias[None]
