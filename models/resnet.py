"""ResNet and plain networks for ImageNet (He, Zhang, Ren & Sun 2015, "Deep residual learning", table 1).

A 7x7 convolution with 64 output channels and stride 2, 3x3 max pooling with stride 2, four stages of blocks, global
average pooling and a dense layer. A block is two 3x3 convolutions or, for 50 layers and more, a bottleneck 1x1 - 3x3 -
1x1. Shortcuts are of type B: a 1x1 convolution where the shape changes, otherwise the identity.
"""

import functools

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, max_pool, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# Depth -> (number of blocks in each stage, whether they are bottlenecks).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def torchvision_names(*, depth: int) -> dict[str, str]:
    """Returns the mapping from layer paths to torchvision's names."""
    stages, bottleneck = DEPTHS[depth]
    names = {"conv1": "conv1", "bn1": "bn1", "logits": "fc"}
    for stage, blocks in enumerate(stages, 1):
        for block in range(blocks):
            path, name = f"stage{stage}_block{block + 1}", f"layer{stage}.{block}"
            for i in range(1, 4 if bottleneck else 3):
                names |= {f"{path}/conv{i}": f"{name}.conv{i}", f"{path}/bn{i}": f"{name}.bn{i}"}
            if block == 0 and (stage > 1 or bottleneck):
                names |= {f"{path}/shortcut": f"{name}.downsample.0", f"{path}/shortcut_bn": f"{name}.downsample.1"}
    return names


class Block(nn.Module):
    """A block, [B, H, W, C] -> [B, H / stride, W / stride, width], or 4 * width channels for a bottleneck."""

    width: int
    stride: int
    bottleneck: bool
    v1_5: bool
    residual: bool
    bn_axis: str | None
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        def conv_bn(x, width, size, stride, name):
            pad, (conv, bn) = size // 2, name
            x = Conv(width, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), use_bias=False, name=conv)(
                x
            )
            return BatchNorm(use_running_average=not train, axis_name=self.bn_axis, name=bn)(x)

        # (width, window, stride) of each convolution. v1 has the stride in the first 1x1, v1.5 in the 3x3 convolution.
        layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
        if self.bottleneck:
            first, second = (1, self.stride) if self.v1_5 else (self.stride, 1)
            layers = [(self.width, 1, first), (self.width, 3, second), (4 * self.width, 1, 1)]
        shortcut, act = x, functools.partial(relu, guided=self.guided)
        for i, layer in enumerate(layers, 1):
            x = conv_bn(x, *layer, (f"conv{i}", f"bn{i}"))
            x = act(x) if i < len(layers) else x
        if self.residual:
            if shortcut.shape != x.shape:
                shortcut = conv_bn(shortcut, x.shape[-1], 1, self.stride, ("shortcut", "shortcut_bn"))
            x = x + shortcut
        return act(x)


class ResNet(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes]. Raises ModelError for an unknown depth.

    Attributes:
      num_classes: Number of classes.
      depth: 18, 34, 50, 101 or 152.
      residual: Add the shortcuts; False is the paper's plain network.
      v1_5: Put the stride of a bottleneck into its 3x3 convolution instead of the first 1x1 convolution.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
    """

    num_classes: int
    depth: int = 34
    residual: bool = True
    v1_5: bool = False
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.depth not in DEPTHS:
            raise ModelError(f"a residual network has {', '.join(map(str, DEPTHS))} layers, not {self.depth}")
        stages, bottleneck = DEPTHS[self.depth]
        bn_axis = self.axis_name if self.sync_bn else None
        x = Conv(64, (7, 7), strides=2, padding=((3, 3), (3, 3)), use_bias=False, name="conv1")(x)
        x = relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn1")(x), guided=self.guided)
        x = max_pool(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(stages, 1):
            for block in range(1, blocks + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                options = (64 * 2 ** (stage - 1), stride, bottleneck, self.v1_5, self.residual, bn_axis, self.guided)
                x = Block(*options, name=f"stage{stage}_block{block}")(x, train)
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))


# v1 and v1.5 differ only in bottlenecks, so only these models have the option v1_5.
SPECS = {
    f"resnet{depth}": ModelSpec(
        module=ResNet,
        options={"depth": depth, "residual": True} | ({} if bottleneck else {"v1_5": False}),
        image_shape=(224, 224, 3),
        num_classes=1000,
        torchvision=TorchvisionLayout(torchvision_names(depth=depth)),
    )
    for depth, (_, bottleneck) in DEPTHS.items()
} | {
    f"plain{depth}": ModelSpec(
        module=ResNet,
        options={"depth": depth, "residual": False, "v1_5": False},
        image_shape=(224, 224, 3),
        num_classes=1000,
    )
    for depth in (18, 34)
}
