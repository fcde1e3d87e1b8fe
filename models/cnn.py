"""A small convolutional network: three times convolution - batch norm - ReLU - max pooling, then two dense layers."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, Dropout, max_pool, relu
from models.model_spec import ModelSpec


class CNN(nn.Module):
    """Images [B, H, W, C] of at least 8x8 pixels -> logits [B, num_classes]. Raises ModelError for smaller images.

    Attributes:
      num_classes: Number of classes.
      widths: Output channels of the convolutions.
      features: Units of the first dense layer.
      dropout: Dropout rate of its outputs.
      axis_name: Mesh axis for batch statistics and dropout's keys.
      sync_bn: Average batch statistics over `axis_name`.
      guided: As in layers.relu.
    """

    num_classes: int
    widths: Sequence[int] = (32, 64, 64)
    features: int = 64
    dropout: float = 0.0
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if min(x.shape[1:3]) < 2 ** len(self.widths):
            raise ModelError(f"cnn needs images of at least 8x8 pixels, not {x.shape[1]}x{x.shape[2]}")
        act = functools.partial(relu, guided=self.guided)
        bn_axis = self.axis_name if self.sync_bn else None
        for i, width in enumerate(self.widths):
            x = Conv(width, (5, 5) if i == 0 else (3, 3), padding="SAME", use_bias=False, name=f"conv{i + 1}")(x)
            x = act(BatchNorm(use_running_average=not train, axis_name=bn_axis, name=f"bn{i + 1}")(x))
            x = max_pool(x, 2)
        x = Dense(self.features, use_bias=False, kernel_init=kaiming_normal, name="dense")(x.reshape(x.shape[0], -1))
        x = act(BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn_dense")(x))
        x = Dropout(self.dropout, self.axis_name)(x, train)
        return Dense(self.num_classes, name="logits")(x)


SPECS = {"cnn": ModelSpec(module=CNN)}
