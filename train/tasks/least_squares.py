"""A linear readout by ridge regression: minimizes |F W - Y|^2 + penalty |W|^2 over the weights W.

The rows of (F, Y) may come in batches. The state has the sums of the normal equations, computed with NumPy in float64,
because the normal equations square the condition number of the features, which is too much for float32.
"""

from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    """Sums over all rows processed so far, float64: F^T F plus `penalty` on the diagonal [M, M], and F^T Y [M, C]."""

    gram: np.ndarray
    products: np.ndarray


def init(features: int, targets: int, penalty: float) -> State:
    """The state before the first batch."""
    return State(penalty * np.eye(features), np.zeros((features, targets)))


def step(state: State, batch) -> tuple[State, dict]:
    """Adds the rows of {"features": [B, M], "targets": [B, C]}."""
    f, y = (np.asarray(batch[name], np.float64) for name in ("features", "targets"))
    return State(state.gram + f.T @ f, state.products + f.T @ y), {"count": np.float64(len(f))}


def weights(state: State) -> np.ndarray:
    """W [M, C], float32. Without a penalty the features must be linearly independent: NumPy raises LinAlgError if a
    pivot is exactly 0, but if rounding hides the dependence, the weights are large and meaningless."""
    return np.linalg.solve(state.gram, state.products).astype(np.float32)


def with_constant(features_BM) -> np.ndarray:
    """Appends the constant feature 1, whose weight is the readout's bias: [B, M + 1]."""
    features = np.asarray(features_BM)
    return np.concatenate([features, np.ones((len(features), 1), features.dtype)], 1)


def fit(features_BM, targets_BC, penalty: float = 0.0) -> np.ndarray:
    """W [M, C] for a single batch."""
    start = init(features_BM.shape[1], targets_BC.shape[1], penalty)
    return weights(step(start, {"features": features_BM, "targets": targets_BC})[0])
