"""Converts a JAX function to ONNX: traces it and translates each primitive of its jaxpr to ONNX operators.

It covers the primitives of this project's networks in evaluation mode. Constants are computed at conversion, loops
(lax.scan) are unrolled, and a broadcast is left to the operators that read its result, which broadcast as NumPy does.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 9  # ONNX 1.14 of 2023; read by ONNX Runtime 1.15 and later.
UNARY = {
    **{"neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "erf": "Erf"},
    **{"abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "not": "Not"},
}
BINARY = {
    **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"},
    **{"max": "Max", "min": "Min", "and": "And", "or": "Or"},
}
COMPARISONS = {"eq": "Equal", "lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual"}
REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}
UNCHANGED = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


class UnsupportedError(ValueError):
    """The function uses a primitive, or a form of it, that has no translation."""


class Tensor(NamedTuple):
    """A tensor of the graph (`name`) or a constant (`array`). An axis of `shape` may be 1 where the traced value's is
    longer: the value is broadcast along it."""

    shape: tuple
    dtype: np.dtype
    name: str = ""
    array: np.ndarray | None = None


class Views(NamedTuple):
    """A maximum over strided slices of images `source` [B, H, W, C], one for each offset (row, column)."""

    source: Tensor
    stride: int
    offsets: frozenset


def constant(array) -> Tensor:
    array = np.asarray(array)
    return Tensor(array.shape, array.dtype, array=array)


class Graph:
    """The ONNX graph under construction. `batch` is the symbolic batch size, the first axis of the inputs."""

    def __init__(self, batch):
        self.batch, self.nodes, self.initializers = batch, list[Any](), dict[str, Any]()
        self.made: dict[str, Any] = {}  # Tensor name -> the node that computes it.
        self.views: dict[str, Views] = {}
        self.numbers = itertools.count()
        self.first = ""  # The name of an input.

    def name(self, tensor: Tensor) -> str:
        """The name of a tensor; a constant becomes an initializer."""
        if tensor.array is None:
            return tensor.name
        array = np.ascontiguousarray(tensor.array).reshape(tensor.shape)
        key = f"c{next(self.numbers)}"
        self.initializers[key] = numpy_helper.from_array(array, key)
        return key

    def add(self, op: str, inputs, shape, dtype, **attributes) -> Tensor:
        output = f"t{next(self.numbers)}"
        names = [self.name(i) for i in inputs]
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        self.made[output] = self.nodes[-1]
        return Tensor(tuple(shape), np.dtype(dtype), output)

    def multiple(self, size) -> int:
        """k for a symbolic size of k times the batch size."""
        k, rest = divmod(size, self.batch)
        if rest != 0 or not isinstance(k, int):
            raise UnsupportedError(f"an axis of size {size}")
        return k

    def sizes(self, shape) -> Tensor:
        """A shape as a tensor of the graph."""
        if all(isinstance(size, int) for size in shape):
            return constant(np.array(shape, np.int64))
        first = Tensor((), np.dtype(np.int64), self.first)
        batch = self.add("Shape", [first], (1,), np.int64, start=0, end=1)
        parts = []
        for size in shape:
            if isinstance(size, int):
                parts.append(constant(np.array([size], np.int64)))
            else:
                factor = constant(np.array([self.multiple(size)], np.int64))
                parts.append(self.add("Mul", [batch, factor], (1,), np.int64))
        return self.add("Concat", parts, (len(parts),), np.int64, axis=0)

    def whole(self, tensor: Tensor, shape) -> Tensor:
        """The tensor broadcast to `shape`."""
        shape = tuple(shape)
        if tensor.shape == shape:
            return tensor
        if tensor.array is not None and all(isinstance(size, int) for size in shape):
            return constant(np.broadcast_to(tensor.array, shape))
        return self.add("Expand", [tensor, self.sizes(shape)], shape, tensor.dtype)

    def reshape(self, tensor: Tensor, shape) -> Tensor:
        if tensor.array is not None and all(isinstance(size, int) for size in shape):
            return constant(tensor.array.reshape(shape))
        if sum(not isinstance(size, int) for size in shape) > 1:
            raise UnsupportedError(f"a reshape to {shape}")
        target = constant(np.array([size if isinstance(size, int) else -1 for size in shape], np.int64))
        return self.add("Reshape", [tensor, target], shape, tensor.dtype)

    def transpose(self, tensor: Tensor, axes) -> Tensor:
        if tuple(axes) == tuple(range(len(axes))):
            return tensor
        if tensor.array is not None:
            return constant(tensor.array.transpose(axes))
        return self.add(
            "Transpose", [tensor], [tensor.shape[a] for a in axes], tensor.dtype, perm=[int(a) for a in axes]
        )

    def slice(self, tensor: Tensor, axes, starts, ends, steps, shape) -> Tensor:
        numbers = [constant(np.array(values, np.int64)) for values in (starts, ends, axes, steps)]
        return self.add("Slice", [tensor, *numbers], shape, tensor.dtype)

    # --- Evaluation of a jaxpr ---

    def evaluate(self, jaxpr, consts, arguments) -> list[Tensor]:
        known: dict[Any, Tensor] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
        known |= zip(jaxpr.invars, arguments, strict=True)

        def read(atom):
            if isinstance(atom, core.Literal):
                return constant(np.asarray(atom.val, cast(Any, atom.aval).dtype))
            return known[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            known |= zip(equation.outvars, self.apply(equation, inputs), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, equation, inputs: list[Tensor]) -> list[Tensor]:
        """The results of one equation."""
        name, out = equation.primitive.name, equation.outvars[0].aval
        if name == "scan":
            return self.scan(equation, inputs)
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):  # jit, custom_jvp_call, custom_vjp_call, checkpoint.
            inner = equation.params.get(key)
            if inner is not None and name not in ("while", "cond", "pallas_call"):
                closed = hasattr(inner, "consts")
                return self.evaluate(inner.jaxpr if closed else inner, inner.consts if closed else (), inputs)
        if name in UNCHANGED:
            return inputs
        symbolic = not all(isinstance(n, int) for var in equation.outvars for n in var.aval.shape)
        if all(tensor.array is not None for tensor in inputs) and not symbolic:
            full = [
                np.broadcast_to(np.asarray(t.array), v.aval.shape) for t, v in zip(inputs, equation.invars, strict=True)
            ]
            found = equation.primitive.bind(*full, **equation.params)
            return [constant(x) for x in (found if equation.primitive.multiple_results else [found])]
        if name in UNARY:
            return [self.add(UNARY[name], inputs, inputs[0].shape, out.dtype)]
        if name in BINARY:
            return [self.elementwise(BINARY[name], inputs, out.dtype)]
        if name in COMPARISONS:
            return [self.elementwise(COMPARISONS[name], [self.comparable(t) for t in inputs], out.dtype)]
        translate = TRANSLATIONS.get(name)
        if translate is None:
            raise UnsupportedError(f"the operation {name}")
        if name not in BROADCASTING:
            inputs = [self.whole(t, v.aval.shape) for t, v in zip(inputs, equation.invars, strict=True)]
        found = translate(self, inputs, out, **equation.params)
        return found if isinstance(found, list) else [found]

    def elementwise(self, op: str, inputs, dtype) -> Tensor:
        ranks = {len(tensor.shape) for tensor in inputs}
        assert len(ranks) <= 2, inputs  # A scalar may stand beside tensors of another rank.
        shapes = [tensor.shape for tensor in inputs if len(tensor.shape) == max(ranks)]
        shape = [next((n for n in sizes if n != 1), 1) for sizes in zip(*shapes, strict=True)]
        return self.add(op, inputs, shape, dtype)

    def comparable(self, tensor: Tensor) -> Tensor:
        """Small integers as int32, since ONNX Runtime does not compare all types."""
        if tensor.dtype.kind not in "iu" or tensor.dtype.itemsize > 2:
            return tensor
        if tensor.array is not None:
            return constant(tensor.array.astype(np.int32))
        return self.add("Cast", [tensor], tensor.shape, np.int32, to=onnx.TensorProto.INT32)

    def scan(self, equation, inputs) -> list[Tensor]:
        params = equation.params
        consts, carries, closed = params["num_consts"], params["num_carry"], params["jaxpr"]
        fixed, state, sequences = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]
        avals = [var.aval for var in equation.invars[consts + carries :]]
        sequences = [self.whole(t, aval.shape) for t, aval in zip(sequences, avals, strict=True)]
        order = range(params["length"])
        rows: dict[int, list[Tensor]] = {}
        for i in reversed(order) if params["reverse"] else order:
            index = constant(np.array(i, np.int64))
            items = [self.add("Gather", [s, index], s.shape[1:], s.dtype, axis=0) for s in sequences]
            found = self.evaluate(closed.jaxpr, closed.consts, [*fixed, *state, *items])
            state, rows[i] = found[:carries], found[carries:]
        results = list(state)
        for position, var in enumerate(equation.outvars[carries:]):
            each = var.aval.shape[1:]
            parts = [self.reshape(self.whole(rows[i][position], each), (1, *each)) for i in order]
            results.append(self.add("Concat", parts, var.aval.shape, var.aval.dtype, axis=0))
        return results

    def used(self, outputs) -> list[Any]:
        """The nodes that the outputs depend on."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        self.initializers = {name: array for name, array in self.initializers.items() if name in needed}
        return kept[::-1]


# --- Translations of primitives: (graph, inputs, result's aval, **parameters) -> Tensor ---


def _select(graph: Graph, inputs, out, **_):
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


def _not_equal(graph: Graph, inputs, out, **_):
    a, b = inputs
    if a.name and a.name == b.name and a.dtype.kind == "f":
        return graph.add("IsNaN", [a], a.shape, bool)
    same = graph.elementwise("Equal", [graph.comparable(t) for t in inputs], bool)
    return graph.add("Not", [same], same.shape, bool)


def _is_finite(graph: Graph, inputs, out, **_):
    (x,) = inputs
    either = [graph.add(op, [x], x.shape, bool) for op in ("IsNaN", "IsInf")]
    return graph.add("Not", [graph.add("Or", either, x.shape, bool)], x.shape, bool)


def _cast(graph: Graph, inputs, out, *, new_dtype, **_):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype))
    return graph.add("Cast", inputs, inputs[0].shape, new_dtype, to=kind)


def _power(graph: Graph, inputs, out, *, y: int, **_):
    if y in (2, 3):
        return functools.reduce(lambda a, b: graph.elementwise("Mul", [a, b], out.dtype), inputs * y)
    return graph.elementwise("Pow", [*inputs, constant(np.array(y, out.dtype))], out.dtype)


def _rsqrt(graph: Graph, inputs, out, **_):
    root = graph.add("Sqrt", inputs, inputs[0].shape, out.dtype)
    return graph.add("Reciprocal", [root], root.shape, out.dtype)


def _clamp(graph: Graph, inputs, out, **_):
    low, x, high = inputs
    return graph.elementwise("Min", [graph.elementwise("Max", [x, low], out.dtype), high], out.dtype)


def _broadcast(graph: Graph, inputs, out, *, broadcast_dimensions, **_):
    (tensor,) = inputs
    shape: list[Any] = [1] * len(out.shape)
    for axis, size in zip(broadcast_dimensions, tensor.shape, strict=True):
        shape[axis] = size
    return graph.reshape(tensor, tuple(shape))


def _reshape(graph: Graph, inputs, out, **_):
    return graph.reshape(inputs[0], out.shape)


def _transpose(graph: Graph, inputs, out, *, permutation, **_):
    return graph.transpose(inputs[0], permutation)


def _concatenate(graph: Graph, inputs, out, *, dimension, **_):
    return graph.add("Concat", inputs, out.shape, out.dtype, axis=dimension)


def _stack(graph: Graph, inputs, out, *, axis, **_):
    shape = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    parts = [graph.reshape(tensor, shape) for tensor in inputs]
    return graph.add("Concat", parts, out.shape, out.dtype, axis=axis)


def _slice(graph: Graph, inputs, out, *, start_indices, limit_indices, strides, **_):
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


def _split(graph: Graph, inputs, out, *, sizes, axis, **_):
    (tensor,) = inputs
    parts, start = [], 0
    for size in sizes:
        shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
        parts.append(graph.slice(tensor, [axis], [start], [start + size], [1], shape))
        start += size
    return parts


def _reverse(graph: Graph, inputs, out, *, dimensions, **_):
    count = len(dimensions)
    return graph.slice(inputs[0], dimensions, [-1] * count, [-(2**62)] * count, [-1] * count, out.shape)


def _pad(graph: Graph, inputs, out, *, padding_config, **_):
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


def _reduction(op: str):
    def translate(graph: Graph, inputs, out, *, axes, **_):
        return graph.add(op, [*inputs, constant(np.array(axes, np.int64))], out.shape, out.dtype, keepdims=0)

    return translate


def _window_sum(
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


def _convolution(
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


def _product(graph: Graph, inputs, out, *, dimension_numbers, **_):
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


def _argmax(graph: Graph, inputs, out, *, axes, **_):
    made = graph.add("ArgMax", inputs, out.shape, np.int64, axis=axes[0], keepdims=0)
    return graph.add("Cast", [made], out.shape, out.dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype)))


def _square(graph: Graph, inputs, out, **_):
    return graph.add("Mul", inputs * 2, inputs[0].shape, out.dtype)


BROADCASTING = (
    "is_finite",
    "select_n",
    "ne",
    "convert_element_type",
    "integer_pow",
    "rsqrt",
    "clamp",
    "broadcast_in_dim",
    "square",
)
TRANSLATIONS: dict[str, Callable[..., Any]] = {
    **{"select_n": _select, "ne": _not_equal, "convert_element_type": _cast, "integer_pow": _power, "rsqrt": _rsqrt},
    **{"clamp": _clamp, "broadcast_in_dim": _broadcast, "square": _square, "reshape": _reshape, "squeeze": _reshape},
    **{"expand_dims": _reshape, "transpose": _transpose, "concatenate": _concatenate, "stack": _stack, "slice": _slice},
    **{
        "split": _split,
        "rev": _reverse,
        "is_finite": _is_finite,
        "pad": _pad,
        "reduce_window_sum": _window_sum,
        "argmax": _argmax,
    },
    **{"conv_general_dilated": _convolution, "dot_general": _product},
    **{name: _reduction(op) for name, op in REDUCTIONS.items()},
}


def convert(function, inputs: dict[str, jax.ShapeDtypeStruct], *, output: str, batch, metadata: dict[str, str]):
    """Returns `function` as an ONNX model.

    Args:
        function: Arrays [B, ...] -> one array.
        inputs: Name -> shape, with the symbolic batch size first, and type of each argument.
        output: Name of the result.
        batch: The symbolic batch size B.
        metadata: Entries of the model's metadata.

    Raises:
        UnsupportedError: The function can't be translated.
    """
    traced = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph(batch)
    graph.first = next(iter(inputs))
    arguments = [Tensor(tuple(x.shape), np.dtype(x.dtype), name) for name, x in inputs.items()]
    (result,) = graph.evaluate(traced.jaxpr, traced.consts, arguments)
    (aval,) = traced.out_avals
    result = graph.whole(result, aval.shape)
    graph.nodes.append(helper.make_node("Identity", [graph.name(result)], [output]))

    def described(name, x):
        dims = [n if isinstance(n, int) else "batch" for n in x.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype)), dims)

    nodes = graph.used([output])
    sources = [described(name, x) for name, x in inputs.items()]
    made = helper.make_graph(nodes, "network", sources, [described(output, aval)], [*graph.initializers.values()])
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="nutshell"
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model
