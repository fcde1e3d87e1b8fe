"""LeNet-5 (LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition")."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from models import layer_specs
from models.errors import ModelError
from models.initializers import glorot_uniform, kaiming_normal
from models.layers import Conv, Dense, activation, avg_pool
from models.model_spec import ModelSpec


def _edges(size):
    """Returns the padding that makes images of `size` at least 32x32 pixels."""
    return tuple(((max(0, 32 - n) + 1) // 2, max(0, 32 - n) // 2) for n in size)


class LeNet(nn.Module):
    """Images [B, H, W, C] of at least 28x28 pixels -> logits [B, num_classes] (LeCun et al. 1998, figure 2).

    | layer  | output      | window                            |
    |--------|-------------|-----------------------------------|
    | c1     | 14x14x6     | 5x5, average pooling 2x2 (S2)     |
    | c3     | 5x5x16      | 5x5, average pooling 2x2 (S4)     |
    | c5     | 1x1x120     | 5x5                               |
    | f6     | 84          | dense                             |
    | logits | num_classes | dense                             |

    Images are zero-padded to the paper's 32x32. For 28x28x1 pixels and ten classes there are 61,706 parameters and
    416,520 multiply-adds. Differences from the paper: C3 is connected to all six channels of S2 instead of the subsets
    in table I, average pooling has no trainable coefficient and bias, tanh is not scaled, and the output layer is
    linear instead of radial basis functions. Weights are initialized by Glorot's rule for tanh and sigmoid, otherwise
    by Kaiming's. Raises ModelError for smaller images or an unknown activation.

    Attributes:
      num_classes: Number of classes.
      activation: Name of the activation function, as in layers.ACTIVATIONS.
      slope: Negative slope of leaky_relu.
      guided: As in layers.relu.
    """

    num_classes: int
    activation: str = "tanh"
    slope: float = 0.01
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if min(x.shape[1:3]) < 28:
            raise ModelError(f"lenet needs images of at least 28x28 pixels, not {x.shape[1]}x{x.shape[2]}")
        act = activation(self.activation, slope=self.slope, guided=self.guided)
        init = glorot_uniform if self.activation in ("tanh", "sigmoid") else kaiming_normal
        conv = functools.partial(Conv, kernel_size=(5, 5), padding="VALID", kernel_init=init)

        x = jnp.pad(x, ((0, 0), *_edges(x.shape[1:3]), (0, 0)))
        x = avg_pool(act(conv(6, name="c1")(x)), 2)
        x = avg_pool(act(conv(16, name="c3")(x)), 2)
        x = act(conv(120, name="c5")(x))
        x = act(Dense(84, kernel_init=init, name="f6")(x.reshape(x.shape[0], -1)))
        return Dense(self.num_classes, name="logits")(x)

    def layer_specs(self, input_shape) -> list[layer_specs.Layer]:
        """Returns the layers for images of `input_shape` (height, width, channels)."""
        function = layer_specs.Activation(self.activation, self.slope)
        first: list[layer_specs.Layer] = [
            layer_specs.Padding(_edges(input_shape[:2])),
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
