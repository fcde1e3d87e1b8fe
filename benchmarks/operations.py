"""The operations of a compiled program: their kinds, parsed from the program's text, and their times in a trace."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from models.cpu_kernels.ops import PREFIX

KERNELS = {  # FFI names of the C kernels, without the prefix; all others belong to batch norm.
    "convolution": "convolution",
    "kernel_gradient": "kernel gradient",
    "max_pool": "pooling",
    "max_pool_gradient": "pooling",
    "product": "products",
    "product_gradient": "products",
    "product_kernel_gradient": "products",
}
KINDS = (
    "convolution",
    "kernel gradient",
    "products",
    "batch norm",
    "reductions",
    "elementwise",
    "pooling",
    "copies",
    "other",
    "no operation",
)
MOVES = frozenset(
    ("bitcast", "broadcast", "concatenate", "constant", "copy", "dynamic-slice", "dynamic-update-slice", "pad")
    + ("parameter", "reshape", "reverse", "slice", "transpose")
)
UNUSUAL = frozenset("custom-call infeed rng rng-bit-generator scatter sort".split())
CONTAINERS = frozenset("call conditional while".split())  # The operations in them have their own events.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")


class Operation(NamedTuple):
    """One instruction of the program.

    Attributes:
      kind: One of `KINDS`.
      kernel: A C kernel's FFI name without its prefix, or "".
      shapes: The shapes of a C kernel's operands and results.
    """

    kind: str
    kernel: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()


def parse(text: str) -> dict[str, Operation]:
    """The operations of a compiled program by their unique names. Operations inside a fusion and operations that
    contain others are omitted."""
    functions, found = _functions(text), {}
    computations: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    current = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            current = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif match := INSTRUCTION.match(line):
            computations[current].append(match.groups())  # type: ignore[arg-type]
    everything = [instruction for body in computations.values() for instruction in body]
    called = {name: re.search(r"calls=%?([\w.\-]+)", rest) for name, _, code, rest in everything if code == "fusion"}
    fused = {match[1] for match in called.values() if match}
    for computation, body in computations.items():
        for name, result, code, rest in body if computation not in fused else ():
            if code in CONTAINERS:
                continue
            inside = called.get(name)
            codes = {other for _, _, other, _ in computations[inside[1]]} if inside else {code}
            frame = re.search(r"stack_frame_id=(\d+)", rest)
            found[name] = _operation(codes, result, rest, functions.get(frame[1], "") if frame else "")
    return found


def _operation(codes: set[str], result: str, rest: str, function: str) -> Operation:
    target = re.search(r'custom_call_target="([^"]*)"', rest)
    if target and target[1].startswith(PREFIX):
        kernel = target[1].removeprefix(PREFIX)
        operands = re.search(r"operand_layout_constraints=\{(.*?)\}, api_version", rest)
        return Operation(KERNELS.get(kernel, "batch norm"), kernel, _shapes((operands[1] if operands else "") + result))
    # Pooling consists of slices and comparisons; only the name of the function identifies it.
    if "pool" in function or "_is_larger" in function or "select-and-scatter" in codes:
        return Operation("pooling")
    if "convolution" in codes:
        return Operation("convolution")
    if "dot" in codes:
        return Operation("products")
    if codes & {"reduce", "reduce-window"}:
        return Operation("reductions")
    if codes <= MOVES:
        return Operation("copies")
    return Operation("other" if codes & UNUSUAL else "elementwise")


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of types such as f32[8,3]{1,0}."""
    return tuple(tuple(map(int, sizes.split(","))) if sizes else () for sizes in re.findall(r"\w+\[([\d,]*)\]", text))


def _functions(text: str) -> dict[str, str]:
    """Stack frame number -> name of its innermost function; empty if the text has no stack frame tables."""

    def rows(title: str) -> list[list[str]]:
        table = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
        return [line.split(" ", 1) for line in table[1].splitlines()] if table else []

    names = {number: name.strip('"') for number, name in rows("FunctionNames")}
    locations = {
        number: names.get(match[1], "")
        for number, row in rows("FileLocations")
        if (match := re.search(r"function_name_id=(\d+)", row))
    }
    return {
        number: locations.get(match[1], "")
        for number, row in rows("StackFrames")
        if (match := re.search(r"file_location_id=(\d+)", row))
    }


def shares(found: Iterable[tuple[float, float, str]]) -> dict[str, float]:
    """The time of each operation by name. Time in which several operations run is divided equally among them."""
    marks = sorted((at, change, name) for begin, end, name in found for at, change in ((begin, 1), (end, -1)))
    time_of, active = defaultdict[str, float](float), Counter[str]()
    for (at, change, name), (after, _, _) in itertools.pairwise(marks):
        active[name] += change
        running = [name for name, count in active.items() if count > 0]
        for name in running:
            time_of[name] += (after - at) / len(running)
    return dict(time_of)
