"""Converts state dicts of torchvision and timm (their entry names, torch's layouts) to variables of Linen modules, and
variables to state dicts of torchvision."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from models.errors import StateDictError

# Flax's name of a variable -> torch's name of the parameter or buffer.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
SHOWN = 20  # An error message lists at most this many entries of each kind.


class TorchvisionLayout(NamedTuple):
    """The layer names of a torchvision model.

    Attributes:
      names: Path of a Linen layer -> torchvision's name of the layer.
      flattened: Dense layer that reads a flattened feature map -> number of channels of the feature map.
      aliases: Another library's name of a layer -> the torchvision name.
    """

    names: Mapping[str, str]
    flattened: Mapping[str, int] = {}
    aliases: Mapping[str, str] = {}


def canonical_name(key: str, aliases: Mapping[str, str]) -> str:
    """Returns torchvision's current name of a state dict entry: without the prefixes of torch.compile, DataParallel and
    Lightning, and with the names in `aliases` and DenseNet's old ones (norm.1 for norm1) replaced."""
    key = re.sub(r"^(?:(?:_orig_mod|module|model)\.)+", "", key)
    key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key)
    layer, _, leaf = key.rpartition(".")
    return f"{aliases.get(layer, layer)}.{leaf}"


def _flax_kernel(weight: np.ndarray, shape: tuple[int, ...], channels: int | None) -> np.ndarray:
    """Transposes a torch weight [O, I, h, w] or [O, I] to a kernel [h, w, I, O] or [I, O].

    With `channels` C, the inputs I are a flattened feature map, which is [C, h, w] in torch and [h, w, C] in Flax. A
    dense layer's weight may be stored as a convolution's.
    """
    if len(shape) == 4:
        return weight.transpose(2, 3, 1, 0)
    weight_OI = weight.reshape(len(weight), -1)
    if channels:
        side = math.isqrt(shape[0] // channels)
        weight_OI = weight_OI.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return weight_OI.T


def _torch_weight(kernel: np.ndarray, channels: int | None) -> np.ndarray:
    """The inverse of `_flax_kernel`: a kernel [h, w, I, O] or [I, O] as torch's weight [O, I, h, w] or [O, I]."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    weight_OI = kernel.T
    if channels:
        side = math.isqrt(len(kernel) // channels)
        weight_OI = weight_OI.reshape(-1, side, side, channels).transpose(0, 3, 1, 2).reshape(len(weight_OI), -1)
    return weight_OI


def entries(variables, *, layout: TorchvisionLayout, batches: int = 0) -> dict[str, np.ndarray]:
    """Converts variables to a state dict with torchvision's entry names: the inverse of `variables`. Its entries
    num_batches_tracked are `batches`."""
    found: dict[str, np.ndarray] = {}

    def convert(tree, path):
        if isinstance(tree, Mapping):
            for name, branch in tree.items():
                convert(branch, (*path, name))
            return
        layer, leaf, array = "/".join(path[1:-1]), path[-1], np.asarray(tree)
        array = _torch_weight(array, layout.flattened.get(layer)) if leaf == "kernel" else array
        found[f"{layout.names[layer]}.{LEAVES[leaf]}"] = np.ascontiguousarray(array)
        if leaf == "var":
            found[f"{layout.names[layer]}.num_batches_tracked"] = np.asarray(batches, np.int64)

    for collection, tree in variables.items():
        convert(tree, (collection,))
    return found


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of torch's array for a Flax variable of `shape`."""
    return (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]


def entry_shapes(shapes, layout: TorchvisionLayout) -> dict[str, tuple[int, ...]]:
    """The entry names of a state dict, without num_batches_tracked, and their shapes in torch's layout, for the
    variables' `shapes`."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        keys = [entry.key for entry in path]
        found[f"{layout.names['/'.join(keys[1:-1])]}.{LEAVES[keys[-1]]}"] = torch_shape(leaf.shape)
    return found


def variables(entries: Mapping[str, np.ndarray], shapes, *, layout: TorchvisionLayout) -> dict[str, Any]:
    """Converts a state dict to variables.

    Args:
      entries: State dict, entry name -> array in torch's layout.
      shapes: The module's variables, arrays or shapes.
      layout: The model's layer names.

    Returns:
      A tree like `shapes` of float32 arrays.

    Raises:
      StateDictError: Entries are missing, unexpected, of the wrong shape or have invalid values; the message lists
        them.
    """
    given: dict[str, str] = {}
    for key in entries:
        other = given.setdefault(canonical_name(key, layout.aliases), key)
        if other != key:
            raise StateDictError(f"{other} and {key} name the same entry")
    unused = {name for name in given if not name.endswith(".num_batches_tracked")}
    missing, misshapen, invalid = [], [], []

    def convert(tree, path):
        if isinstance(tree, Mapping):
            return {name: convert(branch, (*path, name)) for name, branch in tree.items()}
        layer, leaf = "/".join(path[1:-1]), path[-1]
        name = f"{layout.names[layer]}.{LEAVES[leaf]}"
        if name not in given:
            missing.append(name)
            return None
        unused.discard(name)
        array, expected = np.asarray(entries[given[name]]), torch_shape(tree.shape)
        as_convolution = leaf == "kernel" and len(tree.shape) == 2 and array.ndim == 4
        shape = (array.shape[0], math.prod(array.shape[1:])) if as_convolution else array.shape
        if shape != expected:
            misshapen.append(f"{given[name]} is {list(array.shape)}, expected {list(expected)}")
            return None
        if array.dtype.kind in "cbiu":  # Quantized weights, unusable without their scales.
            invalid.append(f"{given[name]} is {array.dtype}, expected floating-point")
            return None
        array = _flax_kernel(array, tree.shape, layout.flattened.get(layer)) if leaf == "kernel" else array
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            invalid.append(f"{given[name]} is not finite")
        elif leaf == "var" and array.min() < 0:
            invalid.append(f"{given[name]}, a variance, is negative")
        return array

    converted = {collection: convert(tree, (collection,)) for collection, tree in shapes.items()}
    problems = {
        "missing": missing,
        "unexpected": sorted(given[name] for name in unused),
        "with the wrong shape": misshapen,
        "with invalid values": invalid,
    }
    if any(problems.values()):
        raise StateDictError(
            "; ".join(
                f"{kind}: {', '.join(names[:SHOWN])}"
                + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
                for kind, names in problems.items()
                if names
            )
        )
    return converted


def num_classes(entries: Mapping[str, np.ndarray], layout: TorchvisionLayout) -> int:
    """Returns the number of classes that the weights were trained for, from the last layer's bias.

    Raises StateDictError if the bias is missing."""
    bias = f"{layout.names['logits']}.bias"
    for key, array in entries.items():
        if canonical_name(key, layout.aliases) == bias and np.ndim(array) == 1 and len(array):
            return len(array)
    held = ", ".join(sorted(entries)[:SHOWN]) + (f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else "")
    raise StateDictError(f"missing: {bias}, with one value per class; entries: {held or 'none'}")
