"""The difference between two trees of parameters or gradients."""

import jax
import numpy as np


def tree_error(ours, reference) -> float:
    """The maximum over the leaves of max|a - b| / max(max|b|, 1e-3 x the largest entry of the whole reference).

    Elementwise relative errors are meaningless where the true value is zero, such as the gradient of a bias before
    batch norm.
    """
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True))
    floor = 1e-3 * max(float(np.abs(b).max()) for _, b in pairs)
    errors = [float(np.abs(np.asarray(a) - b).max()) / max(float(np.abs(b).max()), floor, 1e-300) for a, b in pairs]
    return float(np.max(errors))  # NaN if one of them is, unlike Python's max.
