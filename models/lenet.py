"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, figure 2) in shape.

6 maps of 5x5 - pool 2 - 16 maps of 5x5 - pool 2 - 120 maps of 5x5 - dense 84 - classes. Deviations from the paper: C3
sees all six maps of S2 instead of its table I, the pools average without a trainable gain, tanh is unscaled, and the
output layer is linear with softmax cross-entropy, not radial basis functions. 28x28 is padded to the paper's 32x32.
"""

import flax.linen as nn
import jax.numpy as jnp

from models import layer_specs
from models.initializers import glorot_uniform, kaiming_normal
from models.layers import Conv, Dense, activation, avg_pool
from models.model_spec import ModelSpec


def _edges(size):
    """The padding of a picture of `size` to 32 pixels a side at least."""
    return tuple(((max(0, 32 - n) + 1) // 2, max(0, 32 - n) // 2) for n in size)


class LeNet(nn.Module):
    """[B, H, W, C] (28 pixels or more) -> logits [B, num_classes]; 61,706 parameters for 28x28x1, ten classes."""

    num_classes: int
    activation: str = "tanh"
    slope: float = 0.01

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if min(x.shape[1:3]) < 28:
            raise ValueError(f"lenet needs images of at least 28x28 pixels, not {x.shape[1]}x{x.shape[2]}")
        function = activation(self.activation, slope=self.slope)
        init = glorot_uniform if self.activation in ("tanh", "sigmoid") else kaiming_normal
        x = jnp.pad(x, ((0, 0), *_edges(x.shape[1:3]), (0, 0)))
        x = avg_pool(function(Conv(6, (5, 5), padding="VALID", kernel_init=init, name="c1")(x)), 2)
        x = avg_pool(function(Conv(16, (5, 5), padding="VALID", kernel_init=init, name="c3")(x)), 2)
        x = function(Conv(120, (5, 5), padding="VALID", kernel_init=init, name="c5")(x))
        x = x.reshape(x.shape[0], -1)
        x = function(Dense(84, kernel_init=init, name="f6")(x))
        return Dense(self.num_classes, name="logits")(x)

    def layer_specs(self, image_shape) -> list[layer_specs.Layer]:
        """The network for images [H, W, C] as a list."""
        function = layer_specs.Activation(self.activation, self.slope)
        first: list[layer_specs.Layer] = [
            layer_specs.Padding(_edges(image_shape[:2])),
            layer_specs.Convolution("c1"),
            function,
            layer_specs.AveragePooling(2),
        ]
        second: list[layer_specs.Layer] = [
            layer_specs.Convolution("c3"),
            function,
            layer_specs.AveragePooling(2),
            layer_specs.Convolution("c5"),
            function,
        ]
        return [*first, *second, layer_specs.Dense("f6"), function, layer_specs.Dense("logits")]


SPECS = {"lenet": ModelSpec(module=LeNet)}
