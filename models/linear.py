"""Linear classifiers of pixels: multinomial (perceptron) and binary logistic regression."""

import flax.linen as nn

from models import layer_specs
from models.errors import ModelError
from models.layers import Dense
from models.model_spec import ModelSpec


class Perceptron(nn.Module):
    """Multinomial logistic regression, images [B, H, W, C] -> logits [B, num_classes].

    For 28x28x1 pixels and ten classes there are 7,850 parameters and 7,840 multiply-adds. It is trained with the
    cross-entropy loss, not with Rosenblatt's rule (1958, "The perceptron"). Weights are initialized to zero. The loss
    is convex, so no symmetry has to be broken.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        x = x.reshape(x.shape[0], -1)
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="dense")(x)

    def layer_specs(self, input_shape) -> list[layer_specs.Layer]:
        """Returns the layers for images of `input_shape` (height, width, channels)."""
        del input_shape
        return [layer_specs.Dense("dense")]


class Logistic(nn.Module):
    """Binary logistic regression, images [B, H, W, C] -> the logit [B, 1] of the second of two classes.

    For 28x28x1 pixels there are 785 parameters and 784 multiply-adds. Raises ModelError unless `num_classes` is 2.
    """

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if self.num_classes != 2:
            raise ModelError(f"logistic separates 2 classes, not {self.num_classes}; select them with --positive=DIGIT")
        return Dense(1, kernel_init=nn.initializers.zeros, name="dense")(x.reshape(x.shape[0], -1))


SPECS = {
    "perceptron": ModelSpec(module=Perceptron),
    "logistic": ModelSpec(module=Logistic, num_classes=2),
}
