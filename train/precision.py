"""Mixed precision: the network computes in a lower precision; its parameters and its loss stay in float32."""

import functools

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


def in_full_precision(step):
    """Returns `step`, traced so that products and convolutions of float32 values use float32 arithmetic. By default,
    XLA rounds their operands to TensorFloat-32 (10 bits) on a GPU and to bfloat16 (7 bits) on a TPU."""

    @functools.wraps(step)
    def run(*operands):
        with jax.default_matmul_precision("highest"):
            return step(*operands)

    return run
