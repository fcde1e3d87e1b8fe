"""A tree as its leaves by name, on the host: what checkpoints hold and fingerprints are taken of."""

import hashlib
from typing import Any

import jax
import numpy as np


def _raw(leaf):
    """Key arrays as their uint32 data; other leaves as they are."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _named(tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_host(tree) -> dict[str, np.ndarray]:
    """Leaves by path, whole and copied: the device's memory may be given to the next step."""
    return {name: np.array(_raw(leaf)) for name, leaf in _named(tree).items()}


def from_host(leaves: dict[str, np.ndarray], like):
    """A tree like `like` with the leaves that `leaves` has, and its own elsewhere."""

    def pick(path, leaf):
        array = leaves.get(jax.tree_util.keystr(path))
        if array is None:
            return leaf
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(jax.numpy.asarray(array)) if is_key else jax.numpy.asarray(array)

    return jax.tree_util.tree_map_with_path(pick, like)


def shapes(tree) -> dict[str, str]:
    """Type and shape by path, as float32[3, 4], of arrays or of shapes; nothing is allocated."""
    abstract = jax.eval_shape(lambda tree: jax.tree.map(_raw, tree), tree)
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(abstract).items()}


def fingerprint(params, opt_state) -> str:
    """SHA-256 over the sorted leaves' paths, dtypes, shapes and bytes of parameters and optimizer state."""
    digest = hashlib.sha256()
    for name, leaf in sorted(to_host({"params": params, "opt_state": opt_state}).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def bit_sum(leaf: np.ndarray) -> int:
    """Sum mod 2^32 of the leaf's bits, as 32-bit words where they divide, times the odd weights 2 i + 1: any one
    flipped bit changes it, and it does not depend on how the array was divided."""
    data = np.frombuffer(np.ascontiguousarray(leaf).tobytes(), np.uint8)
    words = data.view(np.uint32) if data.size % 4 == 0 else data.astype(np.uint32)
    return int((words * (2 * np.arange(words.size, dtype=np.uint32) + 1)).sum(dtype=np.uint32))
