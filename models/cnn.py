"""A small convolutional network for digits."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, Dropout, max_pool, norm_relu
from models.model_spec import ModelSpec


class CNN(nn.Module):
    """Images [B, H, W, C] of at least 8x8 pixels -> logits [B, num_classes]. Not a published network.

    | layer  | output for 28x28 pixels | window                |
    |--------|-------------------------|-----------------------|
    | conv1  | 14x14x32                | 5x5, max pooling 2x2  |
    | conv2  | 7x7x64                  | 3x3, max pooling 2x2  |
    | conv3  | 3x3x64                  | 3x3, max pooling 2x2  |
    | dense  | 64                      |                       |
    | logits | num_classes             |                       |

    Batch norm and ReLU follow each layer except the last. For 28x28x1 pixels and ten classes there are 94,058
    parameters and 6,083,712 multiply-adds. Raises ModelError for smaller images.

    Attributes:
      num_classes: Number of classes.
      widths: Output channels of the convolutions.
      features: Units of the first dense layer.
      dropout: Dropout rate of the first dense layer's outputs.
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
        bn_axis = self.axis_name if self.sync_bn else None
        conv = functools.partial(Conv, padding="SAME", use_bias=False)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=bn_axis)
        act = functools.partial(norm_relu, guided=self.guided)

        for i, width in enumerate(self.widths, 1):
            x = conv(width, (5, 5) if i == 1 else (3, 3), name=f"conv{i}")(x)
            x = max_pool(act(norm(name=f"bn{i}"), x), 2)
        x = Dense(self.features, use_bias=False, kernel_init=kaiming_normal, name="dense")(x.reshape(x.shape[0], -1))
        x = Dropout(self.dropout, self.axis_name)(act(norm(name="bn_dense"), x), train)
        return Dense(self.num_classes, name="logits")(x)


TinyCNN = functools.partial(CNN, widths=(4, 8, 8), features=8)  # For tests.

SPECS = {"cnn": ModelSpec(module=CNN)}
