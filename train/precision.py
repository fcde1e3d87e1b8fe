"""Mixed precision: the network computes in a lower precision; its parameters and its loss stay in float32."""

import jax
import jax.numpy as jnp


def cast_floating(tree, dtype):
    """The tree with its floating-point leaves in `dtype`; unchanged if `dtype` is None."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def at_least_float32(logits):
    """Casts logits of lower precision to float32; returns others unchanged."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
