"""The residual and plain networks for CIFAR (He, Zhang, Ren & Sun 2015, "Deep residual learning", section 4.2).

6n + 2 layers: a 3x3 convolution of 16 maps, then n blocks of two 3x3 convolutions for each of {16, 32, 64} maps on
{32, 16, 8} pixels, the first convolution of the second and third stage with stride 2, global average pooling and a
dense layer. Shortcuts are option A: every second pixel, the new channels zero, half before and half after the old.
"""

import flax.linen as nn
import jax.numpy as jnp

from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, relu


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, [B, H, W, C] -> [B, H/stride, W/stride, width]."""

    width: int
    stride: int
    residual: bool
    bn_axis: str | None

    @nn.compact
    def __call__(self, x, train: bool):
        shortcut = x
        for i, stride in ((1, self.stride), (2, 1)):
            x = Conv(
                self.width, (3, 3), strides=stride, padding=((1, 1), (1, 1)), use_bias=False, name=f"conv{i}"
            )(x)  # fmt: skip
            x = BatchNorm(use_running_average=not train, axis_name=self.bn_axis, name=f"bn{i}")(x)
            if i == 1:
                x = relu(x)
        if self.residual:
            extra = self.width - shortcut.shape[-1]
            shortcut = shortcut[:, :: self.stride, :: self.stride]
            x = x + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return relu(x)


class CifarResNet(nn.Module):
    """[B, H, W, C] -> logits [B, num_classes]; `depth` = 6n + 2. Raises ValueError for another depth."""

    num_classes: int
    depth: int = 20
    residual: bool = True
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        blocks, remainder = divmod(self.depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(f"a CIFAR residual network has 6n + 2 layers (8, 14, 20, ...), not {self.depth}")
        bn_axis = self.axis_name if self.sync_bn else None
        x = Conv(16, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name="conv1")(x)
        x = relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn1")(x))
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = Block(width, stride, self.residual, bn_axis, name=f"stage{stage}_block{block}")(x, train)
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))
