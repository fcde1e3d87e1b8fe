"""Translations of JAX's primitives to ONNX operators. The table TRANSLATIONS of onnx_converter.py assigns them to the
primitives.

A translation is a function of (graph, inputs, aval of the first result, **parameters of the primitive). It adds
operators to the graph and returns the result, or a list of results. It raises UnsupportedError for a form of the
primitive that it does not cover; it ignores parameters that it does not name.
"""

import functools
import itertools
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from experiments.setup.onnx_graph import Graph, Tensor, UnsupportedError, Views, constant

# --- Elementwise ---


def unary(op: str):
    def translate(graph: Graph, inputs, out, **_):
        return graph.add(op, inputs, inputs[0].shape, out.dtype)

    return translate


def binary(op: str):
    def translate(graph: Graph, inputs, out, **_):
        return graph.elementwise(op, inputs, out.dtype)

    return translate


def comparison(op: str):
    def translate(graph: Graph, inputs, out, **_):
        return graph.elementwise(op, [graph.comparable(t) for t in inputs], out.dtype)

    return translate


def ne(graph: Graph, inputs, out, **_):
    a, b = inputs
    if a.name and a.name == b.name and a.dtype.kind == "f":
        return graph.add("IsNaN", [a], a.shape, bool)
    same = graph.elementwise("Equal", [graph.comparable(t) for t in inputs], bool)
    return graph.add("Not", [same], same.shape, bool)


def is_finite(graph: Graph, inputs, out, **_):
    (x,) = inputs
    either = [graph.add(op, [x], x.shape, bool) for op in ("IsNaN", "IsInf")]
    return graph.add("Not", [graph.add("Or", either, x.shape, bool)], x.shape, bool)


def convert_element_type(graph: Graph, inputs, out, *, new_dtype, **_):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
    return graph.add("Cast", inputs, inputs[0].shape, new_dtype, to=kind)


def integer_pow(graph: Graph, inputs, out, *, y: int, **_):
    if y in (2, 3):
        return functools.reduce(lambda a, b: graph.elementwise("Mul", [a, b], out.dtype), inputs * y)
    return graph.elementwise("Pow", [*inputs, constant(np.array(y, out.dtype))], out.dtype)


def rsqrt(graph: Graph, inputs, out, **_):
    root = graph.add("Sqrt", inputs, inputs[0].shape, out.dtype)
    return graph.add("Reciprocal", [root], root.shape, out.dtype)


def square(graph: Graph, inputs, out, **_):
    return graph.add("Mul", inputs * 2, inputs[0].shape, out.dtype)


def clamp(graph: Graph, inputs, out, **_):
    low, x, high = inputs
    return graph.elementwise("Min", [graph.elementwise("Max", [x, low], out.dtype), high], out.dtype)


def select_n(graph: Graph, inputs, out, **_):
    """Where. `v <= 0 ? 0 : v` becomes Relu; `v > best or isnan(v) ? v : best` becomes Max, and the maximum over all
    views of a window MaxPool."""
    which, off, on = inputs
    if which.dtype != bool:
        raise UnsupportedError("select_n with an integer")
    either = graph.made.get(which.name)
    if either is not None and either.op_type == "LessOrEqual" and either.input[0] == off.name and _is_zero(on):
        limit = graph.initializers.get(either.input[1])
        if limit is not None and not np.any(numpy_helper.to_array(limit)):
            return graph.add("Relu", [off], off.shape, out.dtype)
    if either is not None and either.op_type == "Or" and off.array is None and on.array is None:
        larger, invalid = (graph.made.get(name) for name in either.input)
        if larger is not None and invalid is not None and larger.op_type == "Greater" and invalid.op_type == "IsNaN":
            if list(larger.input) == [on.name, off.name] and list(invalid.input) == [on.name]:
                return _maximum(graph, on, off, out)
    return graph.elementwise("Where", [which, on, off], out.dtype)


def _is_zero(tensor: Tensor) -> bool:
    return tensor.array is not None and not np.any(tensor.array)


def _maximum(graph: Graph, view: Tensor, best: Tensor, out) -> Tensor:
    """The elementwise maximum of a view and the maximum of others; MaxPool if these are all views of a window."""
    made = graph.elementwise("Max", [view, best], out.dtype)
    a, b = graph.views.get(view.name), graph.views.get(best.name)
    if a is None or b is None or a.source != b.source or a.stride != b.stride:
        return made
    offsets = a.offsets | b.offsets
    graph.views[made.name] = a._replace(offsets=offsets)
    window, stride = 1 + max(max(offset) for offset in offsets), a.stride
    _, height, width, _ = a.source.shape
    size = [(side - window) // stride + 1 for side in (height, width)]
    if offsets != set(itertools.product(range(window), repeat=2)) or size != list(made.shape[1:3]):
        return made
    images = graph.transpose(a.source, (0, 3, 1, 2))
    shape = (made.shape[0], made.shape[3], *size)
    options = {"kernel_shape": [window] * 2, "strides": [stride] * 2}
    return graph.transpose(graph.add("MaxPool", [images], shape, out.dtype, **options), (0, 2, 3, 1))


# --- Shapes and parts of arrays ---


def broadcast_in_dim(graph: Graph, inputs, out, *, broadcast_dimensions, **_):
    (tensor,) = inputs
    shape: list[Any] = [1] * len(out.shape)
    for axis, size in zip(broadcast_dimensions, tensor.shape, strict=True):
        shape[axis] = size
    return graph.reshape(tensor, tuple(shape))


def reshape(graph: Graph, inputs, out, **_):
    return graph.reshape(inputs[0], out.shape)


def transpose(graph: Graph, inputs, out, *, permutation, **_):
    return graph.transpose(inputs[0], permutation)


def concatenate(graph: Graph, inputs, out, *, dimension, **_):
    return graph.add("Concat", inputs, out.shape, out.dtype, axis=dimension)


def stack(graph: Graph, inputs, out, *, axis, **_):
    shape = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    parts = [graph.reshape(tensor, shape) for tensor in inputs]
    return graph.add("Concat", parts, out.shape, out.dtype, axis=axis)


def slice_(graph: Graph, inputs, out, *, start_indices, limit_indices, strides, **_):
    """Also records a slice of rows and columns as a view, from which `select_n` recognizes max pooling."""
    (tensor,) = inputs
    steps = strides or (1,) * len(out.shape)
    ends = zip(start_indices, limit_indices, tensor.shape, steps, strict=True)
    axes = [axis for axis, (low, high, size, step) in enumerate(ends) if (low, step) != (0, 1) or high != size]
    starts, limits, steps = ([part[a] for a in axes] for part in (start_indices, limit_indices, steps))
    if not all(isinstance(limit, int) for limit in limits):
        raise UnsupportedError("a slice of the batch")
    made = graph.slice(tensor, axes, starts, limits, steps, out.shape) if axes else tensor
    stride = strides[1] if strides else 1
    if len(out.shape) == 4 and set(axes) <= {1, 2} and (strides or (1,) * 4)[2] == stride:
        graph.views[made.name] = Views(tensor, stride, frozenset([(start_indices[1], start_indices[2])]))
    return made


def split(graph: Graph, inputs, out, *, sizes, axis, **_):
    (tensor,) = inputs
    parts, start = [], 0
    for size in sizes:
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        parts.append(graph.slice(tensor, [axis], [start], [start + size], [1], shape))
        start += size
    return parts


def rev(graph: Graph, inputs, out, *, dimensions, **_):
    count = len(dimensions)
    return graph.slice(inputs[0], dimensions, [-1] * count, [-(2**62)] * count, [-1] * count, out.shape)


def pad(graph: Graph, inputs, out, *, padding_config, **_):
    tensor, value = inputs
    if any(inner for _, _, inner in padding_config):
        raise UnsupportedError("padding between elements")
    cut = [axis for axis, (low, high, _) in enumerate(padding_config) if min(low, high) < 0]
    if cut:
        shape, starts, ends = list(tensor.shape), [], []
        for axis in cut:
            low, high, _ = padding_config[axis]
            starts.append(max(0, -low))
            ends.append(tensor.shape[axis] + min(0, high))
            shape[axis] = ends[-1] - starts[-1]
        tensor = graph.slice(tensor, cut, starts, ends, [1] * len(cut), shape)
    edges = [[max(0, config[side]) for config in padding_config] for side in (0, 1)]
    if not any(map(any, edges)):
        return tensor
    return graph.add("Pad", [tensor, constant(np.array(sum(edges, []), np.int64)), value], out.shape, out.dtype)


# --- Reductions, products and convolutions ---


def argmax(graph: Graph, inputs, out, *, axes, **_):
    made = graph.add("ArgMax", inputs, out.shape, np.int64, axis=axes[0], keepdims=0)
    return graph.add("Cast", [made], out.shape, out.dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype)))


def reduction(op: str):
    def translate(graph: Graph, inputs, out, *, axes, **_):
        return graph.add(op, [*inputs, constant(np.array(axes, np.int64))], out.shape, out.dtype, keepdims=0)

    return translate


def reduce_window_sum(
    graph: Graph, inputs, out, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    """A sum over windows of rows and columns as an average pooling, over another axis as a sum of slices."""
    (tensor,) = inputs
    plain = {*base_dilation, *window_dilation} == {1} and not any(map(any, padding))
    large = [axis for axis, size in enumerate(window_dimensions) if size > 1]
    if plain and len(out.shape) == 4 and set(large) <= {1, 2}:
        images, shape = graph.transpose(tensor, (0, 3, 1, 2)), [out.shape[axis] for axis in (0, 3, 1, 2)]
        options = {"kernel_shape": list(window_dimensions[1:3]), "strides": list(window_strides[1:3])}
        mean = graph.transpose(graph.add("AveragePool", [images], shape, out.dtype, **options), (0, 2, 3, 1))
        count = np.array(np.prod(window_dimensions), out.dtype)
        return graph.elementwise("Mul", [mean, constant(count)], out.dtype)
    if not plain or len(large) != 1 or set(window_strides) != {1}:
        raise UnsupportedError("this form of the operation reduce_window_sum")
    (axis,) = large
    size = out.shape[axis]
    parts = [graph.slice(tensor, [axis], [i], [i + size], [1], out.shape) for i in range(window_dimensions[axis])]
    return functools.reduce(lambda a, b: graph.elementwise("Add", [a, b], out.dtype), parts)


def dot_general(graph: Graph, inputs, out, *, dimension_numbers, **_):
    a, b = inputs
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    if not batch_a and tuple(sum_a) == (len(a.shape) - 1,) and tuple(sum_b) == (0,) and len(b.shape) == 2:
        return graph.add("MatMul", [a, b], out.shape, out.dtype)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names_a = [next(letters) for _ in a.shape]
    names_b = [""] * len(b.shape)
    for i, j in [*zip(sum_a, sum_b, strict=True), *zip(batch_a, batch_b, strict=True)]:
        names_b[j] = names_a[i]
    names_b = [name or next(letters) for name in names_b]
    rest = [n for i, n in enumerate(names_a) if i not in (*sum_a, *batch_a)]
    rest += [n for i, n in enumerate(names_b) if i not in (*sum_b, *batch_b)]
    result = "".join([*(names_a[i] for i in batch_a), *rest])
    return graph.add(
        "Einsum", inputs, out.shape, out.dtype, equation=f"{''.join(names_a)},{''.join(names_b)}->{result}"
    )


def conv_general_dilated(
    graph: Graph,
    inputs,
    out,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    **_,
):
    x, kernel = inputs
    lhs, rhs, result = dimension_numbers
    if batch_group_count != 1 or len(lhs) != 4:
        raise UnsupportedError("this form of the operation conv_general_dilated")
    x, kernel = graph.transpose(x, lhs), graph.transpose(kernel, rhs)  # [B, C, H, W], [O, C / groups, h, w]
    (tops, bottoms), groups = zip(*padding, strict=True), feature_group_count
    options: dict[str, Any] = {"dilations": list(rhs_dilation), "group": groups}
    shape = [out.shape[axis] for axis in result]
    if set(lhs_dilation) == {1}:
        options |= {"strides": list(window_strides), "pads": [*tops, *bottoms]}
        if min(options["pads"]) < 0:
            raise UnsupportedError("a convolution that crops its input")
        made = graph.add("Conv", [x, kernel], shape, out.dtype, **options)
    else:  # A transposed convolution: the kernel is rotated, and its padding is complementary.
        if kernel.array is None or groups != 1 or {*window_strides, *rhs_dilation} != {1}:
            raise UnsupportedError("this form of a transposed convolution")
        weights = constant(np.ascontiguousarray(kernel.array[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)))
        sides = weights.shape[2:]
        before = [side - 1 - pad for side, pad in zip(sides, tops, strict=True)]
        after = [side - 1 - pad for side, pad in zip(sides, bottoms, strict=True)]
        extra = [max(0, -pad) for pad in after]  # Further rows and columns at the end.
        pads = [*before, *(max(0, pad) for pad in after)]
        if min(before) < 0 or any(e >= s for e, s in zip(extra, lhs_dilation, strict=True)):
            raise UnsupportedError("this padding of a transposed convolution")
        options |= {"strides": list(lhs_dilation), "pads": pads, "output_padding": extra}
        made = graph.add("ConvTranspose", [x, weights], shape, out.dtype, **options)
    return graph.transpose(made, np.argsort(result))
