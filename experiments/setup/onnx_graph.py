"""An ONNX graph under construction: tensors, constants, nodes, and the operators that several translations use."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper


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
    """The ONNX graph under construction. `batch` is the symbolic batch size, the first axis of the inputs; `first` is
    the name of the first input, whose shape contains it at run time."""

    def __init__(self, batch, *, first: str):
        self.batch, self.first = batch, first
        self.nodes, self.initializers = list[Any](), dict[str, Any]()
        self.made: dict[str, Any] = {}  # Tensor name -> the node that computes it.
        self.views: dict[str, Views] = {}
        self.numbers = itertools.count()

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

    def elementwise(self, op: str, inputs, dtype) -> Tensor:
        """The result of an operator that broadcasts its inputs."""
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

    def used(self, outputs) -> list[Any]:
        """The nodes that the outputs depend on."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                needed |= set(node.input)
                kept.append(node)
        self.initializers = {name: array for name, array in self.initializers.items() if name in needed}
        return kept[::-1]
