"""The multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn

from models import layer_specs
from models.initializers import glorot_uniform, kaiming_normal
from models.layers import Dense, Dropout, activation
from models.model_spec import ModelSpec


class MLP(nn.Module):
    """Dense layers of the sizes `hidden` with an elementwise activation, [B, H, W, C] -> logits [B, num_classes].

    Initialised after Glorot (saturating activations) or Kaiming (rectifiers).
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

    def layer_specs(self, image_shape) -> list[layer_specs.Layer]:
        """The network for images [H, W, C] as a list. Raises ValueError where it has dropout."""
        del image_shape
        if self.dropout:
            raise ValueError(f"an mlp with dropout {self.dropout} is no plain list of layers")
        hidden: list[layer_specs.Layer] = []
        for i in range(len(self.hidden)):
            hidden += [layer_specs.Dense(f"dense{i + 1}"), layer_specs.Activation(self.activation, self.slope)]
        return [*hidden, layer_specs.Dense("logits")]


SPECS = {"mlp": ModelSpec(module=MLP)}
