"""Shapes, parameter counts and multiply-adds of a model's layers, by abstract evaluation: no arrays are allocated."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.layers import ConvTranspose


class Layer(NamedTuple):
    """One layer that has parameters.

    Attributes:
      name: Path of the module, with slashes.
      shape: Shape of the output without the batch dimension.
      parameters: Number of parameters.
      multiply_adds: Multiply-adds for one image. Only products with the parameters of convolutions, dense layers and
        recurrent layers are counted.
      units: Number of output units ("neurons") of a convolution or dense layer; 0 for other layers.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    units: int


def variables(model: nn.Module, image_shape):
    """Returns the shapes of the model's variables for images of `image_shape` (height, width, channels). Tracing
    the model initializes JAX's backends."""

    def init(images):
        return model.init(jax.random.key(0), images, train=False)

    return jax.eval_shape(init, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def normalised_values(model: nn.Module, image_shape, rows: int) -> dict[str, int]:
    """Returns the number of values per channel that each batch-norm layer normalizes over, by layer name, for a batch
    of `rows` images."""
    found: dict[str, int] = {}

    def record(call, arguments, keywords, context):
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            found["/".join(context.module.path)] = math.prod(arguments[0].shape[:-1])
        return call(*arguments, **keywords)

    def forward(images):
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), images, train=False)

    jax.eval_shape(forward, jax.ShapeDtypeStruct((rows, *image_shape), jnp.float32))
    return found


def multiply_adds(model: nn.Module, image_shape) -> int:
    """Returns the multiply-adds of all layers for one image of `image_shape` (height, width, channels)."""
    return sum(layer.multiply_adds for layer in layers(model, image_shape))


def layers(model: nn.Module, image_shape) -> list[Layer]:
    """Returns the layers that have parameters, in the order of the forward pass.

    Args:
      model: The module.
      image_shape: (height, width, channels).
    """
    records: list[Layer] = []

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
            elif isinstance(module, nn.ConvTranspose | ConvTranspose):  # The whole kernel for each input pixel.
                macs = math.prod(arguments[0].shape[1:-1]) * math.prod(own["kernel"].shape)
            elif isinstance(module, nn.ConvLocal):  # Weights are not shared between positions.
                macs = math.prod(own["kernel"].shape)
            elif hasattr(module, "multiply_adds"):  # Without its submodules, which are listed separately.
                macs = module.multiply_adds(output.shape[1:])
            size = sum(math.prod(leaf.shape) for leaf in own.values())
            shape = tuple(output.shape[1:])
            name = "/".join(module.path) or type(module).__name__  # A network may have parameters of its own.
            records.append(Layer(name, shape, size, macs, math.prod(shape) if macs else 0))
        return output

    def forward(images):
        with nn.intercept_methods(record):
            return model.init_with_output(jax.random.key(0), images, train=False)

    jax.eval_shape(forward, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return records
