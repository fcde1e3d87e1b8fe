"""The multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn

from models import layer_specs
from models.errors import ModelError
from models.initializers import glorot_uniform, kaiming_normal
from models.layers import Dense, Dropout, activation
from models.model_spec import ModelSpec


class MLP(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes].

    | layer        | output for 28x28x1 pixels |
    |--------------|---------------------------|
    | dense1       | 256                       |
    | dense2       | 128                       |
    | logits       | num_classes               |

    Each hidden layer is followed by the activation function and by dropout (Srivastava et al. 2014, "Dropout").
    For 28x28x1 pixels and ten classes there are 235,146 parameters and 234,752 multiply-adds. Hidden layers are
    initialized by Glorot's rule for tanh and sigmoid, otherwise by Kaiming's. Raises ModelError for an unknown
    activation.

    Attributes:
      num_classes: Number of classes.
      hidden: Units of the hidden layers.
      activation: Name of the activation function, as in layers.ACTIVATIONS.
      slope: Negative slope of leaky_relu.
      dropout: Dropout rate of the hidden layers' outputs.
      axis_name: Mesh axis for dropout's keys.
    """

    num_classes: int
    hidden: Sequence[int] = (256, 128)
    activation: str = "relu"
    slope: float = 0.01
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        function = activation(self.activation, slope=self.slope)
        kernel_init = glorot_uniform if self.activation in ("tanh", "sigmoid") else kaiming_normal
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.hidden):
            x = function(Dense(size, kernel_init=kernel_init, name=f"dense{i + 1}")(x))
            x = Dropout(self.dropout, self.axis_name)(x, train)
        return Dense(self.num_classes, name="logits")(x)

    def layer_specs(self, input_shape) -> list[layer_specs.Layer]:
        """Returns the layers. Raises ModelError if the model has dropout, which layer_specs cannot describe."""
        del input_shape
        if self.dropout:
            raise ModelError(f"dropout={self.dropout} is not supported")
        hidden: list[layer_specs.Layer] = []
        for i in range(len(self.hidden)):
            hidden += [layer_specs.Dense(f"dense{i + 1}"), layer_specs.Activation(self.activation, self.slope)]
        return [*hidden, layer_specs.Dense("logits")]


SPECS = {"mlp": ModelSpec(module=MLP)}
