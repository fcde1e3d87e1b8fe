"""ResNet and plain networks for ImageNet (He, Zhang, Ren & Sun 2015, "Deep residual learning", table 1)."""

import functools

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, batch_norm, max_pool, norm_relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# Depth -> (number of blocks in each stage, whether they are bottlenecks). 10 is not in the paper; it is for tests.
DEPTHS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def torchvision_names(*, depth: int) -> dict[str, str]:
    """Returns the mapping from layer paths to torchvision's layer names."""
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
    """A residual block, [B, H, W, C] -> [B, H / stride, W / stride, width], or 4 * width channels for a bottleneck.

    The shortcut is the paper's option B: a 1x1 convolution where the shape changes, otherwise the identity.

    Attributes:
      width: Output channels of the 3x3 convolutions.
      stride: Stride of the block in pixels.
      bottleneck: 1x1 - 3x3 - 1x1 instead of two 3x3 convolutions.
      v1_5: Put a bottleneck's stride into the 3x3 convolution instead of the first 1x1 convolution.
      residual: Add the shortcut.
      axis_name: Mesh axis for batch statistics.
      guided: As in layers.relu.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    v1_5: bool = False
    residual: bool = True
    axis_name: str | None = None
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        conv = functools.partial(Conv, use_bias=False)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=self.axis_name)
        act = functools.partial(norm_relu, guided=self.guided)

        if self.bottleneck:
            stride1, stride2 = (1, self.stride) if self.v1_5 else (self.stride, 1)
            y = conv(self.width, (1, 1), strides=stride1, name="conv1")(x)
            y = conv(self.width, (3, 3), strides=stride2, padding=1, name="conv2")(act(norm(name="bn1"), y))
            y = conv(4 * self.width, (1, 1), name="conv3")(act(norm(name="bn2"), y))
            last = norm(name="bn3")
        else:
            y = conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
            y = conv(self.width, (3, 3), padding=1, name="conv2")(act(norm(name="bn1"), y))
            last = norm(name="bn2")
        if not self.residual:
            return act(last, y)
        if x.shape != y.shape:
            x = conv(y.shape[-1], (1, 1), strides=self.stride, name="shortcut")(x)
            x = batch_norm(norm(name="shortcut_bn"), x)
        return act(last, y, shortcut=x)


class ResNet(nn.Module):
    """Images [B, H, W, C] -> logits [B, num_classes] (He et al. 2015, table 1).

    | layer   | output for 224x224 pixels | 18, 34 layers   | 50, 101, 152 layers       |
    |---------|---------------------------|-----------------|---------------------------|
    | conv1   | 112x112x64                | 7x7, stride 2   | 7x7, stride 2             |
    | pool    | 56x56                     | max 3x3, stride 2 | max 3x3, stride 2       |
    | stage 1 | 56x56                     | 3x3 64 twice    | 1x1 64, 3x3 64, 1x1 256   |
    | stage 2 | 28x28                     | 3x3 128 twice   | 1x1 128, 3x3 128, 1x1 512 |
    | stage 3 | 14x14                     | 3x3 256 twice   | 1x1 256, 3x3 256, 1x1 1024 |
    | stage 4 | 7x7                       | 3x3 512 twice   | 1x1 512, 3x3 512, 1x1 2048 |
    | logits  | num_classes               | global average pooling, dense | the same    |

    `DEPTHS` lists the number of blocks in each stage. Batch norm follows each convolution; the first block of stages 2
    to 4 has stride 2. models/README.md lists parameters and multiply-adds. Differences from the paper: shortcuts use
    option B at every depth (the paper's table 2 uses option A), and evaluation uses running averages of the batch
    statistics, not precise statistics of the training set. Raises ModelError for an unknown depth.

    Attributes:
      num_classes: Number of classes.
      depth: One of `DEPTHS`.
      residual: Add the shortcuts; False is the paper's plain network.
      v1_5: Put the stride of a bottleneck into its 3x3 convolution instead of the first 1x1 convolution.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
      width: Output channels of the first convolution.
      guided: As in layers.relu.
    """

    num_classes: int
    depth: int = 34
    residual: bool = True
    v1_5: bool = False
    axis_name: str | None = None
    sync_bn: bool = True
    width: int = 64
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.depth not in DEPTHS:
            raise ModelError(f"a residual network has {', '.join(map(str, DEPTHS))} layers, not {self.depth}")
        stages, bottleneck = DEPTHS[self.depth]
        bn_axis = self.axis_name if self.sync_bn else None
        block = functools.partial(
            Block,
            bottleneck=bottleneck,
            v1_5=self.v1_5,
            residual=self.residual,
            axis_name=bn_axis,
            guided=self.guided,
        )

        x = Conv(self.width, (7, 7), strides=2, padding=3, use_bias=False, name="conv1")(x)
        norm = BatchNorm(use_running_average=not train, axis_name=bn_axis, name="bn1")
        x = norm_relu(norm, x, guided=self.guided)
        x = max_pool(x, 3, stride=2, padding=1)
        for stage, blocks in enumerate(stages, 1):
            for i in range(1, blocks + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                width = self.width * 2 ** (stage - 1)
                x = block(width=width, stride=stride, name=f"stage{stage}_block{i}")(x, train)
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x.mean((1, 2)))


# v1 and v1.5 differ only in bottlenecks, so only ResNet50 to 152 have the option v1_5.
ResNet18 = functools.partial(ResNet, depth=18, residual=True, v1_5=False)
ResNet34 = functools.partial(ResNet, depth=34, residual=True, v1_5=False)
ResNet50 = functools.partial(ResNet, depth=50, residual=True)
ResNet101 = functools.partial(ResNet, depth=101, residual=True)
ResNet152 = functools.partial(ResNet, depth=152, residual=True)
Plain18 = functools.partial(ResNet, depth=18, residual=False, v1_5=False)
Plain34 = functools.partial(ResNet, depth=34, residual=False, v1_5=False)
TinyResNet = functools.partial(ResNet, depth=10, width=4)  # For tests.

_imagenet = functools.partial(ModelSpec, image_shape=(224, 224, 3), num_classes=1000)

SPECS = {
    f"resnet{module.keywords['depth']}": _imagenet(
        module=module, torchvision=TorchvisionLayout(torchvision_names(depth=module.keywords["depth"]))
    )
    for module in (ResNet18, ResNet34, ResNet50, ResNet101, ResNet152)
} | {"plain18": _imagenet(module=Plain18), "plain34": _imagenet(module=Plain34)}
