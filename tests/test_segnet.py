"""SegNet's networks: what its decoders pass on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import segnet
from train import optimizers


def test_transposed_convolutions_begin_as_bilinear_interpolation():
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3)).astype(np.float32)
    kernel = segnet.bilinear(None, (4, 4, 3, 3))
    up = jax.lax.conv_transpose(jnp.asarray(x), kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = jax.image.resize(x, (1, 10, 8, 3), "linear")
    np.testing.assert_allclose(up[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("decoder", segnet.DECODERS)
def test_decoders_use_what_they_say(decoder):
    """The place of a maximum inside its window reaches the output through the indices alone, the encoder's other values
    through the sum alone."""
    random = np.random.default_rng(0)
    x, maps = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((1, 2, 2, 3), (1, 4, 4, 3)))
    indices = jnp.asarray(random.integers(0, 4, (1, 2, 2, 3)), jnp.uint8)

    class Up(segnet.nn.Module):
        @segnet.nn.compact
        def __call__(self, maps, indices):
            return segnet._upsampled(x, maps, indices, decoder=decoder, name="up")

    variables = Up().init(jax.random.key(0), maps, indices)
    plain = Up().apply(variables, maps, indices)
    by_maps = bool(jnp.any(plain != Up().apply(variables, maps + 1, indices)))
    by_indices = bool(jnp.any(plain != Up().apply(variables, maps, 3 - indices)))
    assert (by_maps, by_indices) == (decoder == "indices_add", decoder.startswith("indices"))
    assert bool(variables) == (decoder == "transposed")


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="unknown decoder 'deconv'; known: indices, bilinear"):
        segnet.SegNetBasic(3, decoder="deconv").init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("name", ["segnet_basic", "segnet"])
def test_the_authors_rates_fit_each_leaf(name):
    variables = jax.eval_shape(models.create(name, 11).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["params"])
    optimizer = optimizers.create(
        "sgd",
        lambda step: 0.1,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
        groups=models.AUTHOR_GROUPS[name],
    )
    updates, _ = optimizer.update(params, optimizer.init(params), params)  # Gradients of one, weights of one.
    for layer, leaves in updates.items():
        for leaf, value in leaves.items():
            expected = -0.1 * 2 if leaf == "bias" and "bn" not in layer else -0.1 * 1.5
            np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=f"{layer}/{leaf}")
