"""The bytes that a device sends in a training step, counted in a compiled program or computed by formula.

In a ring of K devices, each device sends (K - 1) / K n bytes for an all-gather or a reduce-scatter of an array of n
bytes in total, and twice that for an all-reduce.
"""

import math
import re

# XLA's name of a type -> bytes per element.
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def ring_bytes(kind: str, output_bytes: float, devices: int) -> float:
    """Bytes that a device sends for one collective operation whose result on a device has `output_bytes`."""
    share = (devices - 1) / devices
    # The result of a reduce-scatter has 1/K of the bytes of its operand.
    return {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": share * devices}[kind] * output_bytes


def _type_bytes(text: str) -> int:
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text):
        total += BYTES[kind] * math.prod(map(int, filter(None, sizes.split(","))))
    return total


def compiled_bytes(hlo: str, devices: int) -> float:
    """Bytes that a device sends in one run of the compiled program `hlo`, counting all iterations of its loops.

    Raises ValueError for a collective without a ring formula, or for a loop with collectives whose trip count the
    compiler does not report.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if opened and not line.startswith(" "):
            name = opened[2]
            computations[name] = []
            entry = name if opened[1] else entry
        elif name:
            computations[name].append(line)

    def count(name: str) -> float:
        total = 0.0
        for line in computations.get(name, ()):
            found = re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z\-]+)\(", line)
            if not found:
                continue
            kind = found[2].removesuffix("-start")
            if kind in COLLECTIVES:
                if kind not in ("all-reduce", "all-gather", "reduce-scatter"):
                    raise ValueError(f"no formula for {kind}: {line.strip()[:120]}")
                output: float = _type_bytes(found[1])
                if found[2] == "all-gather-start":  # Its result also contains the operand, 1 / K of the output.
                    output *= devices / (devices + 1)
                total += ring_bytes(kind, output, devices)
            elif kind == "while":
                inside = sum(count(body) for body in re.findall(r"body=%?([\w.\-]+)", line))
                trips = re.findall(r'known_trip_count\D*"(\d+)"', line)
                if inside and not trips:
                    raise ValueError(f"a loop with collectives has an unknown trip count: {line.strip()[:120]}")
                total += inside * int(trips[0]) if inside else 0.0
            else:
                for called in re.findall(r"(?:calls|to_apply|branch_computations)=\{?%?([\w.\-]+)", line):
                    total += count(called) if kind not in ("reduce", "fusion") else 0.0
        return total

    return count(entry)


def data_parallel_bytes(parameters: int, batch_stats: int, devices: int) -> float:
    """Bytes that a device sends in one step in float32: gradients, batch statistics and three sums are all-reduced."""
    return ring_bytes("all-reduce", 4 * (parameters + batch_stats + 3), devices)


def dense_bytes(*, batch_size: int, features: int, units, devices: int) -> float:
    """Bytes that a device sends for sharded dense layers in one step in float32. Features and the activations of hidden
    layers (`units` wide) are all-gathered and their gradients reduce-scattered; labels are all-gathered; four numbers
    per row for the loss, one per row for its gradient and one for the norm of all gradients are all-reduced."""
    filled = sum(-(-columns // devices) * devices for columns in units)
    exchanged = ring_bytes("all-gather", 4 * batch_size * (2 * features + 2 * filled + 1), devices)
    return exchanged + ring_bytes("all-reduce", 4 * (5 * batch_size + 1), devices)
