"""Weights of the peers' networks (torchvision's and timm's names, torch's layouts) as variables of ours."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# The leaf of a torch layer for each leaf of ours.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
SHOWN = 20  # Entries of each kind that an error names.


class Peer(NamedTuple):
    """`names`: our layer's path -> the peer's; `flattened`: dense layer -> channels of the flattened image that it
    reads; `aliases`: another peer's name of a layer -> the one in `names`."""

    names: Mapping[str, str]
    flattened: Mapping[str, int] = {}
    aliases: Mapping[str, str] = {}


def canonical(key: str, aliases: Mapping[str, str]) -> str:
    """The name in `Peer.names` of an entry: without DataParallel's prefix, timm's names and DenseNet's older ones
    (norm.1 for norm1) replaced."""
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key.removeprefix("module."))
    layer, _, leaf = key.rpartition(".")
    return f"{aliases.get(layer, layer)}.{leaf}"


def _ours(weight: np.ndarray, shape: tuple[int, ...], channels: int | None) -> np.ndarray:
    """A torch weight [O, I, h, w] or [O, I] as the kernel [h, w, I, O] or [I, O]; with `channels`, I is [C, h, w] there
    and [h, w, C] here. Dense weights may come as those of a convolution."""
    if len(shape) == 4:
        return weight.transpose(2, 3, 1, 0)
    weight_OI = weight.reshape(len(weight), -1)
    if channels:
        side = math.isqrt(shape[0] // channels)
        weight_OI = weight_OI.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return weight_OI.T


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of torch's array for a leaf of ours."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]


def variables(entries: Mapping[str, np.ndarray], shapes, *, peer: Peer) -> dict[str, Any]:
    """`entries` (name -> array, as torch saves a network) as a tree of float32 like `shapes`, our network's variables.

    Raises ValueError that lists what is missing, surplus or of another shape.
    """
    given: dict[str, str] = {}
    for key in entries:
        other = given.setdefault(canonical(key, peer.aliases), key)
        if other != key:
            raise ValueError(f"{other} and {key} are names of the same entry")
    unused = {name for name in given if not name.endswith(".num_batches_tracked")}
    missing, misshapen, wrong_values = [], [], []

    def convert(tree, path):
        if isinstance(tree, Mapping):
            return {name: convert(branch, (*path, name)) for name, branch in tree.items()}
        layer, leaf = "/".join(path[1:-1]), path[-1]
        name = f"{peer.names[layer]}.{LEAVES[leaf]}"
        if name not in given:
            missing.append(name)
            return None
        unused.discard(name)
        array, wanted = np.asarray(entries[given[name]]), torch_shape(tree.shape)
        dense = leaf == "kernel" and len(tree.shape) == 2 and array.ndim == 4
        if (array.shape[0], math.prod(array.shape[1:])) != wanted if dense else array.shape != wanted:
            misshapen.append(f"{given[name]} is {list(array.shape)}, needed is {list(wanted)}")
            return None
        if np.iscomplexobj(array):
            wrong_values.append(f"{given[name]} is complex")
            return None
        array = _ours(array, tree.shape, peer.flattened.get(layer)) if leaf == "kernel" else array
        with np.errstate(over="ignore"):
            ours = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(ours).all():
            wrong_values.append(f"{given[name]} is not finite")
        elif leaf == "var" and ours.min() < 0:
            wrong_values.append(f"{given[name]}, a variance, is negative")
        return ours

    found = {part: convert(tree, (part,)) for part, tree in shapes.items()}
    wrong = {"missing": missing, "surplus": sorted(given[name] for name in unused), "of another shape": misshapen}
    wrong["with wrong values"] = wrong_values
    if any(wrong.values()):
        raise ValueError(
            "; ".join(
                f"{kind}: {', '.join(names[:SHOWN])}"
                + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
                for kind, names in wrong.items()
                if names
            )
        )
    return found


def classes(entries: Mapping[str, np.ndarray], peer: Peer) -> int:
    """The number of classes that the entries were trained for. Raises ValueError where the last layer is missing."""
    wanted = f"{peer.names['logits']}.bias"
    for key, array in entries.items():
        if canonical(key, peer.aliases) == wanted and np.ndim(array) == 1 and len(array):
            return len(array)
    raise ValueError(f"missing: {wanted}, one number for each class")
