"""Converts a JAX function to ONNX: traces it and translates each primitive of its jaxpr to ONNX operators.

It covers the primitives of this project's networks in evaluation mode: TRANSLATIONS lists them. Constants are computed
at conversion, loops (lax.scan) are unrolled, and a broadcast is left to the operators that read its result, which
broadcast as NumPy does.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper

from experiments.setup import onnx_primitives as primitives
from experiments.setup.onnx_graph import Graph, Tensor, UnsupportedError, constant

OPSET, IR_VERSION = 18, 9  # ONNX 1.14 of 2023; read by ONNX Runtime 1.15 and later.
UNCHANGED = ("stop_gradient", "copy", "copy_p", "optimization_barrier")

# Primitive -> its translation: (graph, inputs, aval of the first result, **parameters) -> Tensor, or a list of them.
# The inputs of these translations may be broadcast later: an axis may be 1 where the traced value's is longer.
BROADCASTING: dict[str, Callable[..., Any]] = {
    "abs": primitives.unary("Abs"),
    "ceil": primitives.unary("Ceil"),
    "erf": primitives.unary("Erf"),
    "exp": primitives.unary("Exp"),
    "floor": primitives.unary("Floor"),
    "log": primitives.unary("Log"),
    "logistic": primitives.unary("Sigmoid"),
    "neg": primitives.unary("Neg"),
    "not": primitives.unary("Not"),
    "sign": primitives.unary("Sign"),
    "sqrt": primitives.unary("Sqrt"),
    "tanh": primitives.unary("Tanh"),
    "rsqrt": primitives.rsqrt,
    "square": primitives.square,
    "integer_pow": primitives.integer_pow,
    "is_finite": primitives.is_finite,
    "convert_element_type": primitives.convert_element_type,
    "add": primitives.binary("Add"),
    "add_any": primitives.binary("Add"),
    "and": primitives.binary("And"),
    "div": primitives.binary("Div"),
    "max": primitives.binary("Max"),
    "min": primitives.binary("Min"),
    "mul": primitives.binary("Mul"),
    "or": primitives.binary("Or"),
    "pow": primitives.binary("Pow"),
    "sub": primitives.binary("Sub"),
    "eq": primitives.comparison("Equal"),
    "ge": primitives.comparison("GreaterOrEqual"),
    "gt": primitives.comparison("Greater"),
    "le": primitives.comparison("LessOrEqual"),
    "lt": primitives.comparison("Less"),
    "ne": primitives.ne,
    "clamp": primitives.clamp,
    "select_n": primitives.select_n,
    "broadcast_in_dim": primitives.broadcast_in_dim,
}
# The inputs of the others have the shapes of the traced values.
TRANSLATIONS = BROADCASTING | {
    "expand_dims": primitives.reshape,
    "reshape": primitives.reshape,
    "squeeze": primitives.reshape,
    "transpose": primitives.transpose,
    "concatenate": primitives.concatenate,
    "stack": primitives.stack,
    "slice": primitives.slice_,
    "split": primitives.split,
    "rev": primitives.rev,
    "pad": primitives.pad,
    "argmax": primitives.argmax,
    "reduce_max": primitives.reduction("ReduceMax"),
    "reduce_min": primitives.reduction("ReduceMin"),
    "reduce_sum": primitives.reduction("ReduceSum"),
    "reduce_window_sum": primitives.reduce_window_sum,
    "dot_general": primitives.dot_general,
    "conv_general_dilated": primitives.conv_general_dilated,
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
    graph = Graph(batch, first=next(iter(inputs)))
    arguments = [Tensor(tuple(x.shape), np.dtype(x.dtype), name) for name, x in inputs.items()]
    (result,) = evaluate(graph, traced.jaxpr, traced.consts, arguments)
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


def evaluate(graph: Graph, jaxpr, consts, arguments) -> list[Tensor]:
    """Adds a jaxpr to the graph; returns its results."""
    known: dict[Any, Tensor] = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    known |= zip(jaxpr.invars, arguments, strict=True)

    def read(atom):
        if isinstance(atom, core.Literal):
            return constant(np.asarray(atom.val, cast(Any, atom.aval).dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        known |= zip(equation.outvars, apply(graph, equation, inputs), strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def apply(graph: Graph, equation, inputs: list[Tensor]) -> list[Tensor]:
    """The results of one equation."""
    name, out = equation.primitive.name, equation.outvars[0].aval
    if name == "scan":
        return scan(graph, equation, inputs)
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):  # jit, custom_jvp_call, custom_vjp_call, checkpoint.
        inner = equation.params.get(key)
        if inner is not None and name not in ("while", "cond", "pallas_call"):
            closed = hasattr(inner, "consts")
            return evaluate(graph, inner.jaxpr if closed else inner, inner.consts if closed else (), inputs)
    if name in UNCHANGED:
        return inputs
    symbolic = not all(isinstance(n, int) for var in equation.outvars for n in var.aval.shape)
    if all(tensor.array is not None for tensor in inputs) and not symbolic:
        full = [
            np.broadcast_to(np.asarray(t.array), v.aval.shape) for t, v in zip(inputs, equation.invars, strict=True)
        ]
        found = equation.primitive.bind(*full, **equation.params)
        return [constant(x) for x in (found if equation.primitive.multiple_results else [found])]
    translate = TRANSLATIONS.get(name)
    if translate is None:
        raise UnsupportedError(f"the operation {name}")
    if name not in BROADCASTING:
        inputs = [graph.whole(t, v.aval.shape) for t, v in zip(inputs, equation.invars, strict=True)]
    found = translate(graph, inputs, out, **equation.params)
    return found if isinstance(found, list) else [found]


def scan(graph: Graph, equation, inputs) -> list[Tensor]:
    """The results of lax.scan, unrolled."""
    params = equation.params
    body = params["jaxpr"].jaxpr
    # Counted by rank, because the parameters that count them depend on the version of JAX: a sequence has one dimension
    # more than its element in the body.
    carries = sum(o.aval.ndim == i.aval.ndim for o, i in zip(equation.outvars, body.outvars, strict=True))
    first = sum(o.aval.ndim == i.aval.ndim for o, i in zip(equation.invars, body.invars, strict=True))
    fixed, state, sequences = inputs[: first - carries], inputs[first - carries : first], inputs[first:]
    avals = [var.aval for var in equation.invars[first:]]
    sequences = [graph.whole(t, aval.shape) for t, aval in zip(sequences, avals, strict=True)]
    order = range(params["length"])
    rows: dict[int, list[Tensor]] = {}
    for i in reversed(order) if params["reverse"] else order:
        index = constant(np.array(i, np.int64))
        items = [graph.add("Gather", [s, index], s.shape[1:], s.dtype, axis=0) for s in sequences]
        found = evaluate(graph, body, params["jaxpr"].consts, [*fixed, *state, *items])
        state, rows[i] = found[:carries], found[carries:]
    results = list(state)
    for position, var in enumerate(equation.outvars[carries:]):
        each = var.aval.shape[1:]
        parts = [graph.reshape(graph.whole(rows[i][position], each), (1, *each)) for i in order]
        results.append(graph.add("Concat", parts, var.aval.shape, var.aval.dtype, axis=0))
    return results
