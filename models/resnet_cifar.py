"""ResNet and plain networks for CIFAR (He, Zhang, Ren & Sun 2015, "Deep residual learning", section 4.2)."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, norm_relu, repeated, strided_slice
from models.model_spec import ModelSpec


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, [B, H, W, C] -> [B, H / stride, W / stride, width].

    The shortcut is the paper's option A: every second pixel where the stride is 2, with half of the additional zero
    channels before and half after the existing ones.

    Attributes:
      width: Output channels.
      stride: Stride of the first convolution in pixels.
      residual: Add the shortcut.
      axis_name: Mesh axis for batch statistics.
      guided: As in layers.relu.
    """

    width: int
    stride: int = 1
    residual: bool = True
    axis_name: str | None = None
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(Conv, self.width, (3, 3), padding=1, use_bias=False)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=self.axis_name)
        y = conv(strides=self.stride, name="conv1")(x)
        y = conv(name="conv2")(norm_relu(norm(name="bn1"), y, guided=self.guided))
        shortcut = None
        if self.residual:
            extra = self.width - x.shape[-1]
            x = strided_slice(x, (0, 0), self.stride)
            shortcut = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))
        return norm_relu(norm(name="bn2"), y, shortcut=shortcut, guided=self.guided)


class CifarResNet(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes] (He et al. 2015, section 4.2).

    | layer   | output for 32x32 pixels | convolutions of 3x3        |
    |---------|-------------------------|----------------------------|
    | conv1   | 32x32x16                | 1                          |
    | stage 1 | 32x32x16                | 2n                         |
    | stage 2 | 16x16x32                | 2n, the first of stride 2  |
    | stage 3 | 8x8x64                  | 2n, the first of stride 2  |
    | logits  | num_classes             | global average pooling, dense |

    20 layers have 269,722 parameters and 40,551,040 multiply-adds. Differences from the paper: the zero channels of a
    shortcut are on both sides, and evaluation uses running averages of the batch statistics. Raises ModelError unless
    the depth is 6n + 2.

    Attributes:
      num_classes: Number of classes.
      depth: 6n + 2.
      residual: Add the shortcuts; False is the paper's plain network.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
      guided: As in layers.relu.
    """

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
        block = functools.partial(Block, residual=self.residual, axis_name=bn_axis, guided=self.guided)

        x = Conv(16, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        norm = BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn1")
        x = norm_relu(norm, x, guided=self.guided)
        for stage, width in enumerate((16, 32, 64), 1):
            first, *rest = (f"stage{stage}_block{i}" for i in range(1, blocks + 1))
            x = block(width=width, stride=2 if stage > 1 else 1, name=first)(x, train)
            x = repeated([block(width=width, stride=1, name=name) for name in rest], x, train)
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))


ResNet20 = functools.partial(CifarResNet, depth=20)
ResNet32 = functools.partial(CifarResNet, depth=32)
ResNet44 = functools.partial(CifarResNet, depth=44)
ResNet56 = functools.partial(CifarResNet, depth=56)
ResNet110 = functools.partial(CifarResNet, depth=110)
ResNet1202 = functools.partial(CifarResNet, depth=1202)
Plain20 = functools.partial(CifarResNet, depth=20, residual=False)
Plain32 = functools.partial(CifarResNet, depth=32, residual=False)
Plain44 = functools.partial(CifarResNet, depth=44, residual=False)
Plain56 = functools.partial(CifarResNet, depth=56, residual=False)
TinyCifarResNet = functools.partial(CifarResNet, depth=8)  # For tests.

SPECS = {
    f"cifar_{kind}{module.keywords['depth']}": ModelSpec(module=module, image_shape=(32, 32, 3))
    for kind, modules in (
        ("resnet", (ResNet20, ResNet32, ResNet44, ResNet56, ResNet110, ResNet1202)),
        ("plain", (Plain20, Plain32, Plain44, Plain56)),
    )
    for module in modules
}
