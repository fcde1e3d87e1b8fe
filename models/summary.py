"""The layers of a network with shapes, parameters and multiply-adds, from shapes alone: nothing is allocated."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import ConvTranspose


class Layer(NamedTuple):
    """`shape` is the output's without the batch; multiply-adds count convolutions and dense layers, as papers do, and
    so do units, the numbers in their outputs ("neurons")."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    units: int


def variables(model: nn.Module, image_shape):
    """The shapes of the network's variables for images [H, W, C]. To trace it starts jax's devices."""

    def init(images):
        return model.init(jax.random.key(0), images, train=False)

    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def layers(model: nn.Module, image_shape) -> list[Layer]:
    """The layers that own parameters, in the order of the forward pass, for one image [H, W, C]."""
    found: list[Layer] = []

    def record(call, arguments, keywords, context):
        output = call(*arguments, **keywords)
        module = context.module
        params = module.variables.get("params", {})
        own = {name: leaf for name, leaf in params.items() if hasattr(leaf, "shape")}
        if context.method_name == "__call__" and own:
            macs = 0
            if isinstance(module, nn.Conv | nn.Dense):
                positions = math.prod(output.shape[1:-1])
                macs = positions * math.prod(own["kernel"].shape)
            elif isinstance(
                module, nn.ConvTranspose | ConvTranspose
            ):  # Each pixel of the input meets the whole kernel.
                macs = math.prod(arguments[0].shape[1:-1]) * math.prod(own["kernel"].shape)
            elif isinstance(module, nn.ConvLocal):  # A kernel for each position: nothing is shared.
                macs = math.prod(own["kernel"].shape)
            size = sum(math.prod(leaf.shape) for leaf in own.values())
            shape = tuple(output.shape[1:])
            found.append(Layer("/".join(module.path), shape, size, macs, math.prod(shape) if macs else 0))
        return output

    def forward(images):
        with nn.intercept_methods(record):
            return model.init_with_output(jax.random.key(0), images, train=False)

    jax.eval_shape(forward, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return found
