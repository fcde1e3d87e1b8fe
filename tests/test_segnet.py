"""Tests of SegNet and its decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import segnet
from train import optimizers


def test_transposed_convolutions_are_initialized_as_bilinear_interpolation():
    x = np.random.default_rng(0).normal(size=(1, 5, 4, 3)).astype(np.float32)
    kernel = segnet.bilinear(None, (4, 4, 3, 3))
    up = jax.lax.conv_transpose(jnp.asarray(x), kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = jax.image.resize(x, (1, 10, 8, 3), "linear")
    np.testing.assert_allclose(up[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("decoder", segnet.DECODERS)
def test_only_decoders_with_indices_use_the_indices(decoder):
    """Only through the indices does the position of a maximum within its window affect the output."""
    random = np.random.default_rng(0)
    x, maps = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((1, 2, 2, 3), (1, 4, 4, 3)))
    indices = jnp.asarray(random.integers(0, 4, (1, 2, 2, 3)), jnp.uint8)

    class Up(segnet.nn.Module):
        @segnet.nn.compact
        def __call__(self, maps, indices):
            return segnet._upsampled(x, maps, indices, decoder=decoder, name="up")

    variables = Up().init(jax.random.key(0), maps, indices)
    plain = Up().apply(variables, maps, indices)
    assert bool(jnp.all(plain == Up().apply(variables, maps + 1, indices)))
    by_indices = bool(jnp.any(plain != Up().apply(variables, maps, 3 - indices)))
    assert by_indices == decoder.startswith("indices") and bool(variables) == (decoder == "transposed")


def test_indices_add_adds_the_encoders_feature_maps():
    add, plain = (segnet.SegNetBasic(5, widths=(4,), decoder=decoder) for decoder in ("indices_add", "indices"))
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 7, 6, 3)), jnp.float32)
    variables = add.init(jax.random.key(0), x)
    logits, kept = plain.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    maps = jax.nn.relu(kept["intermediates"]["encoder1_bn"]["__call__"][0])
    expected = logits + jnp.einsum("bhwi,io->bhwo", maps, variables["params"]["logits"]["kernel"][0, 0])
    np.testing.assert_allclose(add.apply(variables, x), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="needs encoders of one width, not \\[4, 3\\]"):
        segnet.SegNetBasic(5, widths=(4, 3), decoder="indices_add").init(jax.random.key(0), x)
    whole = segnet.SegNet(5, decoder="indices_add")  # Its widths match.
    assert jax.eval_shape(whole.init_with_output, jax.random.key(0), jnp.zeros((1, 33, 40, 3)))[0].shape == (
        1,
        33,
        40,
        5,
    )


def test_segnet_small_adds_the_feature_maps_before_the_decoders_convolution():
    add, plain = (segnet.SegNetSmall(5, (4,), (3,), (1,), decoder=decoder) for decoder in ("indices_add", "indices"))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.float32)
    variables = add.init(jax.random.key(0), x)
    kept = [
        net.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]
        for net in (add, plain)
    ]
    maps = jax.nn.relu(kept[0]["encoder1_1_bn"]["__call__"][0])
    kernel = variables["params"]["decoder1_conv"]["kernel"]
    more = jax.lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    one, other = (each["decoder1_conv"]["__call__"][0] for each in kept)
    np.testing.assert_allclose(one, other + more, rtol=1e-5, atol=1e-5)


def test_an_unknown_decoder_is_refused():
    with pytest.raises(ValueError, match="unknown decoder 'deconv'; known: indices, bilinear"):
        segnet.SegNetBasic(3, decoder="deconv").init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("name", ["segnet_basic", pytest.param("segnet", marks=pytest.mark.slow)])
def test_the_authors_learning_rates_apply_to_each_parameter(name):
    variables = jax.eval_shape(models.create(name, 11).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["params"])
    optimizer = optimizers.create(
        "sgd",
        lambda step: 0.1,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.5,
        groups=models.spec(name).author_groups,
    )
    updates, _ = optimizer.update(params, optimizer.init(params), params)  # All gradients and weights are one.
    for layer, leaves in updates.items():
        for leaf, value in leaves.items():
            expected = -0.1 * 2 if leaf == "bias" and "bn" not in layer else -0.1 * 1.5
            np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=f"{layer}/{leaf}")
