"""Trees as dictionaries of named leaves on the host, for checkpoints and fingerprints."""

import hashlib
from typing import Any

import jax
import numpy as np


def _raw(leaf):
    """Converts key arrays to their uint32 data; returns other leaves unchanged."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _named(tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_host(tree) -> dict[str, np.ndarray]:
    """Leaves by path, unsharded and copied, because the next step may reuse the device memory."""
    return {name: np.array(_raw(leaf)) for name, leaf in _named(tree).items()}


def from_host(leaves: dict[str, np.ndarray], like):
    """The tree `like`, in which the leaves named in `leaves` are replaced."""

    def pick(path, leaf):
        array = leaves.get(jax.tree_util.keystr(path))
        if array is None:
            return leaf
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(jax.numpy.asarray(array)) if is_key else jax.numpy.asarray(array)

    return jax.tree_util.tree_map_with_path(pick, like)


def shapes(tree) -> dict[str, str]:
    """Dtype and shape by path, such as "float32[3, 4]", of arrays or shapes; nothing is allocated."""
    abstract = jax.eval_shape(lambda tree: jax.tree.map(_raw, tree), tree)
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _named(abstract).items()}


def fingerprint(params, opt_state, average=()) -> str:
    """SHA-256 over the sorted leaves' paths, dtypes, shapes and bytes of parameters, optimizer state and average."""
    digest = hashlib.sha256()
    for name, leaf in sorted(to_host({"params": params, "opt_state": opt_state, "average": average}).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def bit_sum(leaf: np.ndarray) -> int:
    """A checksum: the sum mod 2^32 of the leaf's 32-bit words, or bytes if the size is not a multiple of 4, times the
    odd weights 2 i + 1. Any single flipped bit changes it, and it does not depend on the sharding of the array."""
    data = np.frombuffer(np.ascontiguousarray(leaf).tobytes(), np.uint8)
    words = data.view(np.uint32) if data.size % 4 == 0 else data.astype(np.uint32)
    return int((words * (2 * np.arange(words.size, dtype=np.uint32) + 1)).sum(dtype=np.uint32))
