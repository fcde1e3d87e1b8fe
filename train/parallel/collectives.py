"""What a per-device step needs beside the collectives of jax.lax."""

import jax
from jax import lax


def pcast_varying(tree, axis: str | None):
    """The tree as one that may differ between the devices of `axis`, so that its gradient is that of one device alone
    and the reduction is written out by the step. Unchanged without an axis."""
    return jax.tree.map(lambda x: lax.pcast(x, axis, to="varying"), tree) if axis else tree
