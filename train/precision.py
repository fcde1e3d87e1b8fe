"""Lower precision: the network computes in one type, its parameters and its loss stay in float32."""

import jax
import jax.numpy as jnp


def cast_floating(tree, dtype):
    """The tree with its floating-point leaves in `dtype`; unchanged where that is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def at_least_float32(logits):
    """Logits of a lower precision in float32; others unchanged."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
