"""ResNet and plain networks for CIFAR (He, Zhang, Ren & Sun 2015, "Deep residual learning", section 4.2).

6n + 2 layers: a 3x3 convolution with 16 output channels, three stages of n blocks of two 3x3 convolutions, global
average pooling and a dense layer. The stages have 16, 32 and 64 channels on 32x32, 16x16 and 8x8 pixels; the first
convolution of the second and third has stride 2. Shortcuts are of type A: every second pixel, with half of the
additional zero channels before and half after the existing ones.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, relu, repeated
from models.model_spec import ModelSpec


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, [B, H, W, C] -> [B, H / stride, W / stride, width]."""

    width: int
    stride: int
    residual: bool
    bn_axis: str | None
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        shortcut, act = x, functools.partial(relu, guided=self.guided)
        for i, stride in ((1, self.stride), (2, 1)):
            x = Conv(
                self.width, (3, 3), strides=stride, padding=((1, 1), (1, 1)), use_bias=False, name=f"conv{i}"
            )(x)  # fmt: skip
            x = BatchNorm(use_running_average=not train, axis_name=self.bn_axis, name=f"bn{i}")(x)
            if i == 1:
                x = act(x)
        if self.residual:
            extra = self.width - shortcut.shape[-1]
            shortcut = shortcut[:, :: self.stride, :: self.stride]
            x = x + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return act(x)


class CifarResNet(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes]. `depth` is 6n + 2; ValueError otherwise."""

    num_classes: int
    depth: int = 20
    residual: bool = True
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        blocks, remainder = divmod(self.depth - 2, 6)
        if remainder or blocks < 1:
            raise ModelError(f"a CIFAR residual network has 6n + 2 layers (8, 14, 20, ...), not {self.depth}")
        bn_axis = self.axis_name if self.sync_bn else None
        x = Conv(16, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name="conv1")(x)
        x = relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn1")(x), guided=self.guided)
        for stage, width in enumerate((16, 32, 64), 1):
            names = [f"stage{stage}_block{block}" for block in range(1, blocks + 1)]
            x = Block(width, 2 if stage > 1 else 1, self.residual, bn_axis, self.guided, name=names[0])(x, train)
            x = repeated(
                [Block(width, 1, self.residual, bn_axis, self.guided, name=name) for name in names[1:]], x, train
            )
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))


SPECS = {
    f"cifar_{kind}{depth}": ModelSpec(module=CifarResNet, options={"depth": depth} | options, image_shape=(32, 32, 3))
    for kind, depths, options in (
        ("resnet", (20, 32, 44, 56, 110, 1202), {}),
        ("plain", (20, 32, 44, 56), {"residual": False}),
    )
    for depth in depths
}
