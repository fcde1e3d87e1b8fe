"""One linear layer on the pixels: the perceptron with softmax, and binary logistic regression."""

import flax.linen as nn

from models import layer_specs
from models.layers import Dense
from models.model_spec import ModelSpec


class Perceptron(nn.Module):
    """A single linear layer, [B, H, W, C] -> logits [B, num_classes]: multinomial logistic regression.

    The weights start at zero: the loss is convex, so there is no symmetry to break.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = x.reshape(x.shape[0], -1)
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="dense")(x)

    def layer_specs(self, image_shape) -> list[layer_specs.Layer]:
        """The network for images [H, W, C] as a list."""
        del image_shape
        return [layer_specs.Dense("dense")]


class Logistic(nn.Module):
    """Binary logistic regression, [B, H, W, C] -> [B, 1]: the logit of the second class of two.

    Raises ValueError unless `num_classes` is 2.
    """

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if self.num_classes != 2:
            raise ValueError(f"logistic separates 2 classes, not {self.num_classes}; choose them by --positive=DIGIT")
        return Dense(1, kernel_init=nn.initializers.zeros, name="dense")(x.reshape(x.shape[0], -1))


SPECS = {
    "perceptron": ModelSpec(module=Perceptron),
    "logistic": ModelSpec(module=Logistic, num_classes=2),
}
