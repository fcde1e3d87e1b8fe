"""Tests of the arguments and the higher-order derivatives of the operations of models/cpu_kernels."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from results import result

from models import layers
from models.cpu_kernels import ops
from models.cpu_kernels.convolution import conv_transpose_dilated

LAYOUT = ("NHWC", "HWIO", "NHWC")
MATRICES = (((1,), (0,)), ((), ()))  # dimension_numbers of a matrix product.


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def convolution(asked, function=ops.conv_general_dilated, *, strides=(1, 1)):
    return lambda x, kernel: function(x, kernel, strides, ((1, 0), (2, 1)), **asked)


ARGUMENTS = [
    {"precision": "highest"},
    {"preferred_element_type": jnp.float32},  # With bfloat16 operands.
    {"batch_group_count": 2},
    {"feature_group_count": 2},
    {"lhs_dilation": (1, 2)},
    {"rhs_dilation": (2, 1)},
    {"dimension_numbers": ("NWHC", "HWIO", "NHWC")},
]


@pytest.mark.parametrize("asked", ARGUMENTS, ids=[next(iter(asked)) for asked in ARGUMENTS])
def test_a_convolution_drops_no_argument(asked):
    operands = drawn((4, 5, 7, 4), (3, 3, 4 // asked.get("feature_group_count", 1), 6))
    x, kernel = (x.astype(jnp.bfloat16) if "preferred_element_type" in asked else x for x in operands)
    ours, theirs = convolution(asked), convolution({"dimension_numbers": LAYOUT} | asked, jax.lax.conv_general_dilated)
    assert str(jax.make_jaxpr(ours)(x, kernel)) == str(jax.make_jaxpr(theirs)(x, kernel))
    assert ours(x, kernel).dtype == jnp.float32
    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))


def test_an_unknown_argument_of_a_convolution_is_refused():
    with pytest.raises(TypeError, match="accumulate"):
        convolution({"accumulate": "float64"})(*drawn((2, 5, 5, 4), (3, 3, 4, 6)))


OPTIONS = [
    {"precision": "highest"},
    {"feature_group_count": 2},
    {"kernel_dilation": 2},
    {"input_dilation": 2, "padding": 1},
    {"padding": "CIRCULAR"},
    {"padding": "REFLECT", "strides": 2},
    {"padding": "SAME_LOWER", "strides": 2},
    {"mask": np.arange(3 * 3 * 4 * 6).reshape(3, 3, 4, 6) % 2},
    {"dtype": jnp.bfloat16},
    {"use_bias": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(options) for options in OPTIONS])
def test_convolutional_layers_equal_flax(options):
    """Values and gradients, for each option of flax.linen.Conv."""
    (x,) = drawn((2, 7, 8, 4))
    ours, theirs = layers.Conv(6, (3, 3), **options), nn.Conv(6, (3, 3), **options)
    variables = theirs.init(jax.random.key(0), x)

    def step(layer, variables, x):
        y, back = jax.vjp(layer.apply, variables, x)
        return y, back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    found, expected = (jax.jit(functools.partial(step, layer))(variables, x) for layer in (ours, theirs))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=4e-6 * float(jnp.abs(b).max()))
    assert ("HIGHEST" in str(jax.make_jaxpr(ours.apply)(variables, x))) == ("precision" in options)


TRANSPOSED = ((2, 2), ((1, 1), (1, 1)), (10, 12))  # Strides, padding, size.
HIGHER = {
    "convolution": (
        convolution({}, strides=(2, 1)),
        convolution({"dimension_numbers": LAYOUT}, jax.lax.conv_general_dilated, strides=(2, 1)),
        ((2, 7, 8, 4), (3, 3, 4, 6)),
    ),
    "transposed": (
        lambda x, kernel: ops.conv_transpose(x, kernel, *TRANSPOSED),
        lambda x, kernel: conv_transpose_dilated(x, kernel, *TRANSPOSED),
        ((2, 5, 6, 4), (4, 4, 4, 6)),
    ),
    "product": (lambda x, w: ops.dot_general(x, w, MATRICES), jnp.matmul, ((33, 70), (70, 66))),
}


@pytest.mark.parametrize("name", HIGHER)
def test_higher_order_gradients_equal_xla(name):
    """Up to third order, in reverse mode."""
    ours, theirs, shapes = HIGHER[name]
    operands = tuple(x / 10 for x in drawn(*shapes))

    def gradients(function):
        first = jax.grad(lambda a: jnp.sin(function(*a)).sum())
        second = jax.grad(lambda a: sum(jnp.cos(leaf).sum() for leaf in first(a)))
        third = jax.grad(lambda a: sum(jnp.sin(leaf).sum() for leaf in second(a)))
        return jax.jit(lambda a: (first(a), second(a), third(a)))(operands)

    for found, expected in zip(*map(jax.tree.leaves, map(gradients, (ours, theirs))), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", HIGHER)
def test_forward_mode_is_refused(name):
    ours, _, shapes = HIGHER[name]
    operands = tuple(jnp.ones(shape) for shape in shapes)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(ours, operands, operands)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.linearize(ours, *operands)[1](*operands)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(jax.grad(lambda *a: (ours(*a) ** 2).sum()), operands, operands)


def test_a_second_gradient_of_the_fused_convolution_is_refused():
    x, ab, kernel = drawn((2, 5, 5, 4), (2, 4), (3, 3, 4, 6))
    if not ops.use_cpu_kernels(x):
        pytest.skip("no CPU kernels")
    gradient = jax.grad(lambda kernel: jnp.sin(ops.affine_relu_convolution(x, ab, kernel)).sum())
    assert gradient(kernel).any()
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.grad(lambda kernel: gradient(kernel).sum())(kernel)


@pytest.mark.slow
def test_a_run_records_whether_it_used_the_kernels(start, tmp_path):
    options = ["--model=cnn", "--batch_size=8", "--log_every=1", f"--workdir={tmp_path}"]
    outcomes = []
    for steps, flags in ((2, ["--nocpu_kernels"]), (2, [])):
        summary = result(start("classify", *options, f"--steps={steps}", *flags))
        run = json.loads((tmp_path / "run.json").read_text())
        outcomes.append((run["cpu_kernels"], run["flags"]["cpu_kernels"], summary["fingerprint"]))
    # The second start finds the run complete.
    assert outcomes[0][:2] == (False, False) and outcomes[1] == outcomes[0]
    assert result(start("evaluate", f"--workdir={tmp_path}"))["accuracy"] == summary["accuracy"]
    place = tmp_path / "again"
    kernels = result(start("classify", *options[:-1], f"--workdir={place}", "--steps=2"))
    assert kernels["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    assert json.loads((place / "run.json").read_text())["cpu_kernels"]
