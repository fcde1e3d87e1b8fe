"""The small convolutional network of the demo: convolution - batch norm - ReLU, three stages, global average pooling."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from models.layers import BatchNorm, Conv, Dense, Dropout, max_pool


class CNN(nn.Module):
    """[B, H, W, C] -> logits [B, num_classes]; the features before the last layer are widths[-1] (64) wide."""

    num_classes: int
    widths: Sequence[int] = (32, 64, 64)
    dropout: float = 0.0
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        if min(x.shape[1:3]) < 2 ** (len(self.widths) - 1):
            raise ValueError(f"cnn needs images of at least 4x4 pixels, not {x.shape[1]}x{x.shape[2]}")
        bn_axis = self.axis_name if self.sync_bn else None
        for i, width in enumerate(self.widths):
            if i:
                x = max_pool(x, 2)
            x = Conv(width, (5, 5) if i == 0 else (3, 3), padding="SAME", use_bias=False, name=f"conv{i + 1}")(x)
            x = jax.nn.relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name=f"bn{i + 1}")(x))
        x = x.mean((1, 2))
        x = Dropout(self.dropout, self.axis_name)(x, train)
        return Dense(self.num_classes, name="logits")(x)
