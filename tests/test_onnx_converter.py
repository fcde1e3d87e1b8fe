"""Tests of converting functions to ONNX: ONNX Runtime's results equal JAX's, for several batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from models import layers
from models.cpu_kernels import ffi, ops
from models.cpu_kernels.convolution import LAYOUT

pytest.importorskip("onnxruntime")
import onnxruntime  # noqa: E402

from experiments.setup import onnx_converter, onnx_graph  # noqa: E402

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(3, 3, 2, 4)).astype(np.float32)
MATRIX = RANDOM.normal(size=(2, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch):
    monkeypatch.setattr(ffi, "_disabled", True)


def converted(function, *shapes, dtype="float32"):
    """Returns (the ONNX model, a function that runs it)."""
    (batch,) = export.symbolic_shape("batch")
    inputs = {f"x{i}": jax.ShapeDtypeStruct((batch, *shape), dtype) for i, shape in enumerate(shapes)}
    model = onnx_converter.convert(function, inputs, output="y", batch=batch, metadata={"a": "b"})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return model, lambda *arrays: session.run(None, dict(zip(inputs, arrays, strict=True)))[0]


def operators(model) -> set[str]:
    return {node.op_type for node in model.graph.node}


def conv(x, *, strides=(1, 1), padding="SAME", **how):
    return lax.conv_general_dilated(x, KERNEL, strides, padding, dimension_numbers=LAYOUT, **how)


def grouped(x):
    kernel = KERNEL[:, :, :1]
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT, feature_group_count=2)


def recurrent(x, reverse=False):
    def step(h, row):
        h = jnp.tanh(h + row @ MATRIX[:, :2])
        return h, h * 2

    start = jnp.zeros_like(x, shape=(x.shape[0], 2))
    sequence = lax.index_in_dim(x, 0, 2, keepdims=False).swapaxes(0, 1)
    last, rows = lax.scan(step, start, sequence, reverse=reverse)
    return rows.swapaxes(0, 1) + last[:, None]


def counted(x):
    """A scan with two constants, three carries and two sequences, of different ranks."""

    def step(carry, row):
        (total, count, last), (left, right) = carry, row
        total = total * 0.5 + left @ MATRIX[:, :2] - right * last
        return (total, count + 1, left), (total + count, count * start)

    rows = lax.index_in_dim(x, 0, 2, keepdims=False).swapaxes(0, 1)
    start = x.sum((1, 2))
    (total, count, last), (totals, products) = lax.scan(step, (start, jnp.float32(2), start * 3), (rows, rows + 1))
    return totals.sum(0) * count + total + products.sum(0) - last


def transposed(x, size, padding=1):
    return ops.conv_transpose(x, KERNEL, (2, 2), ((padding,) * 2,) * 2, size)


FUNCTIONS = {
    "strided convolution": lambda x: conv(x, strides=(2, 1), padding=((1, 0), (2, 1))),
    "dilated convolution": lambda x: conv(x, rhs_dilation=(2, 2)),
    "grouped convolution": grouped,
    "transposed convolution": lambda x: transposed(x, (9, 11)),
    "transposed convolution with an extra row": lambda x: transposed(x, (10, 12)),
    "transposed convolution with padding 2": lambda x: transposed(x, (8, 10), 2),
    "max pooling": lambda x: layers.max_pool(x, 2),
    "overlapping max pooling": lambda x: layers.max_pool(x, 3, stride=2, padding=1, ceil=True),
    "average pooling": lambda x: layers.avg_pool(x, 2),
    "unpooling": lambda x: layers.unpool(*layers.max_pool_with_indices(x), x.shape[1:3]),
    "response normalization": lambda x: layers.local_response_norm(x, size=2, alpha=0.5, beta=0.75),
    "activations": lambda x: jnp.stack([layers.relu(x), jax.nn.gelu(x), jax.nn.sigmoid(x), jax.nn.leaky_relu(x)]),
    "relu between": lambda x: jnp.where(x <= 0.5, 0.0, x) + jnp.where(x <= 0, 0.1, x),
    "finite values": lambda x: jnp.isfinite(jnp.log(jnp.abs(x) * (x > 0)) / (x < 1)),
    "average of views": lambda x: jax.nn.logsumexp(jax.nn.log_softmax(jnp.stack([x, jnp.flip(x, 2)])), axis=0),
    "softmax": lambda x: jax.nn.log_softmax(x) + jax.nn.softmax(x, axis=1),
    "statistics": lambda x: (x - x.mean((1, 2), keepdims=True)) * lax.rsqrt(x.var((1, 2), keepdims=True) + 1e-3),
    "matrix product": lambda x: x.reshape(x.shape[0], -1, 2) @ MATRIX,
    "batched product": lambda x: jnp.einsum("bhwc,bvwc->bhv", x, x + 1),
    "scan": recurrent,
    "reversed scan": lambda x: recurrent(x, reverse=True),
    "scan of two sequences": counted,
    "padding and crop": lambda x: lax.pad(x, 2.0, ((0, 0, 0), (1, -1, 0), (-2, 3, 0), (0, 0, 0))),
    "mirror image": lambda x: jnp.concatenate([x, jnp.flip(x, 2), jnp.flip(x, (1, 2))]),
    "constants for each image": lambda x: jnp.concatenate([jnp.ones((x.shape[0], 5, 1, 2)), x], axis=2),
    "only constants for each image": lambda x: jnp.zeros((2 * x.shape[0], 3)) + jnp.arange(3.0)[None],
    "split": lambda x: jnp.split(x, [1, 3], axis=1)[1] ** 4,
    "class": lambda x: x.reshape(x.shape[0], -1).argmax(-1),
    "extremes": lambda x: jnp.clip(x, -0.5, 0.5) + x.max((1, 2), keepdims=True) - x.min(3, keepdims=True),
    "comparisons": lambda x: (x > 0) & ~(x >= 1) | (x < -1) | (x == 0) | (x != x),
    "functions": lambda x: jnp.sqrt(jnp.abs(x)) + jnp.exp(-x) + jnp.square(x) ** 1.5 + jnp.sign(x) * jnp.floor(x) ** 3,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_results_equal_those_of_jax(function):
    model, run = converted(function, (5, 6, 2))
    for size in (1, 3):
        x = RANDOM.normal(size=(size, 5, 6, 2)).astype(np.float32)
        expected = np.asarray(function(jnp.asarray(x)))
        found = run(x)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"a": "b"}


def test_images_of_bytes_and_two_inputs():
    def function(x, y):
        return (x.astype(jnp.float32) - 3) / 2 + (y == 255) * x.max((1, 2, 3), keepdims=True)

    _, run = converted(function, (5, 6, 2), (5, 6, 1), dtype="uint8")
    x, y = (RANDOM.integers(0, 256, (3, 5, 6, channels), dtype=np.uint8) for channels in (2, 1))
    y[0, 0] = 255
    np.testing.assert_array_equal(run(x, y), function(x, y))


def test_pooling_and_activations_are_single_operators():
    model, _ = converted(lambda x: layers.relu(layers.max_pool(x, 3, stride=2)), (7, 7, 2))
    assert operators(model) == {"Transpose", "MaxPool", "Relu", "Identity"}
    model, _ = converted(lambda x: layers.avg_pool(transposed(x, (10, 10)), 2), (5, 5, 2))
    assert operators(model) == {"Transpose", "ConvTranspose", "AveragePool", "Mul", "Div", "Identity"}


def test_constants_are_computed_at_conversion():
    scale = jnp.asarray(MATRIX[0])

    def function(x):
        return x * (scale * lax.rsqrt(jnp.abs(scale) + 1)).reshape(1, -1)

    model, run = converted(function, (3,))
    assert [node.op_type for node in model.graph.node] == ["Mul", "Identity"]
    np.testing.assert_allclose(run(np.ones((2, 3), np.float32)), function(np.ones((2, 3))), rtol=1e-6)


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: jnp.sort(x), "the operation sort"),
        (lambda x: lax.while_loop(lambda x: x.sum() < 0, lambda x: x + 1, x), "the operation while"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), "padding between elements"),
        (lambda x: x[1:], "a slice of the batch|the operation"),
    ],
)
def test_an_operation_without_translation_is_named(function, message):
    with pytest.raises(onnx_graph.UnsupportedError, match=message):
        converted(function, (5, 6, 2))
