"""DenseNet (Huang, Liu, van der Maaten & Weinberger 2016, "Densely connected convolutional networks")."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Composite, Conv, Dense, Dropout, avg_pool, dense_block, max_pool, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# The networks for ImageNet (table 1 of the conference paper, 2017): depth -> (layers of each block, growth rate). Depth
# 13 is not in the paper; it is for tests.
DEPTHS = {
    13: ((1, 1, 1, 1), 4),
    121: ((6, 12, 24, 16), 32),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
    161: ((6, 12, 36, 24), 48),
}


def torchvision_names(*, depth: int) -> dict[str, str]:
    """Returns the mapping from layer names to torchvision's layer names, for a network for ImageNet."""
    blocks, _ = DEPTHS[depth]
    names = {"conv1": "features.conv0", "bn1": "features.norm0", "bn": "features.norm5", "logits": "classifier"}
    for block, layers in enumerate(blocks, 1):
        for layer in range(1, layers + 1):
            prefix = f"features.denseblock{block}.denselayer{layer}"
            for i in (1, 2):
                names[f"block{block}_layer{layer}_bn{i}"] = f"{prefix}.norm{i}"
                names[f"block{block}_layer{layer}_conv{i}"] = f"{prefix}.conv{i}"
        if block < len(blocks):
            names[f"transition{block}_bn"] = f"features.transition{block}.norm"
            names[f"transition{block}_conv"] = f"features.transition{block}.conv"
    return names


@dataclasses.dataclass(frozen=True)
class DenseBlocks:
    """The part that both networks share: dense blocks with transitions between them, and global average pooling.

    A layer is the composite function BN - ReLU - 3x3 convolution with k output channels, in the bottleneck form
    preceded by BN - ReLU - 1x1 convolution with 4k channels. Its output is concatenated to its input. A transition is
    BN - ReLU - 1x1 convolution - average pooling.

    Attributes:
      layers: Number of layers of each block.
      growth_rate: k, output channels of a layer.
      bottleneck: Use the bottleneck form.
      compression: Factor by which transitions multiply the number of channels.
      norm: Batch norm, a module class with all arguments except the name bound.
      drop: Function that applies dropout after each convolution; None without dropout.
      guided: As in layers.relu.
    """

    layers: Sequence[int]
    growth_rate: int
    bottleneck: bool
    compression: float
    norm: Callable
    drop: Callable | None = None
    guided: bool = False

    def composite(self, name: str, features: int, window: int, suffix: str = "") -> Composite:
        conv = Conv(features, (window, window), padding=window // 2, use_bias=False, name=f"{name}_conv{suffix}")
        return Composite(self.norm(name=f"{name}_bn{suffix}"), conv, self.drop)

    def layer(self, name: str) -> list[Composite]:
        k = self.growth_rate
        if self.bottleneck:
            return [self.composite(name, 4 * k, 1, "1"), self.composite(name, k, 3, "2")]
        return [self.composite(name, k, 3, "1")]

    def transition(self, name: str, channels: int) -> Composite:
        width = int(channels * self.compression)
        if not width:
            raise ModelError(
                f"a compression of {self.compression} leaves no channels of the {channels} before a transition"
            )
        return self.composite(name, width, 1)

    def __call__(self, x):
        """[B, H, W, C] -> [B, channels]. Must be called in a compact method, which owns the layers' parameters."""
        act = functools.partial(relu, guided=self.guided)
        dense = functools.partial(dense_block, relu=act, fuse=not self.guided)
        for block, count in enumerate(self.layers, 1):
            layers = [self.layer(f"block{block}_layer{i}") for i in range(1, count + 1)]
            if block < len(self.layers):
                after = self.transition(f"transition{block}", x.shape[-1] + count * self.growth_rate)
                x = avg_pool(dense(x, layers, after), 2)
            else:
                x = dense(x, layers, Composite(self.norm(name="bn"), None))
        return x.mean((1, 2))


class DenseNet(nn.Module):
    """The network for CIFAR, images [B, H, W, C] -> logits [B, num_classes] (Huang et al. 2016, section 4.2).

    | layer                | output for 32x32 pixels, depth 40, k = 12      |
    |----------------------|------------------------------------------------|
    | conv1                | 32x32x16 (2k channels in the bottleneck form)  |
    | block 1, transition  | 32x32x160, 16x16x160                           |
    | block 2, transition  | 16x16x304, 8x8x304                             |
    | block 3              | 8x8x448                                        |
    | logits               | num_classes, after global average pooling      |

    Depth 40 has 1,019,722 parameters and 264,812,928 multiply-adds. Figure 1 of the paper is one block of five layers
    with k = 4, depth 7. Difference from the paper: the dense layer is also initialized by Kaiming's rule. Raises
    ModelError unless the depth has the form given below, and for images so small that the transitions leave no pixels.

    Attributes:
      num_classes: Number of classes.
      depth: bN + b + 1 for b blocks, or 2bN + b + 1 with `bottleneck`; 3N + 4 or 6N + 4 for the paper's three blocks.
      growth_rate: k, output channels of a layer.
      bottleneck: Use the bottleneck form.
      compression: Factor by which transitions multiply the number of channels.
      blocks: Number of dense blocks.
      dropout: Dropout rate after each convolution except the first; the paper uses 0.2 without data augmentation.
      axis_name: Mesh axis for batch statistics and dropout's keys.
      sync_bn: Average batch statistics over `axis_name`.
      guided: As in layers.relu.
    """

    num_classes: int
    depth: int = 40
    growth_rate: int = 12
    bottleneck: bool = False
    compression: float = 1.0
    blocks: int = 3
    dropout: float = 0.0
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        # The layers outside the blocks are conv1, the transitions and the dense layer.
        per_layer, outside = self.blocks * (2 if self.bottleneck else 1), self.blocks + 1
        layers, remainder = divmod(self.depth - outside, per_layer)
        if remainder or layers < 1:
            form = f"{per_layer}N + {outside} layers" + (" with a bottleneck" if self.bottleneck else "")
            raise ModelError(f"a CIFAR DenseNet of {self.blocks} blocks has {form}, not {self.depth}")
        least = 2 ** (self.blocks - 1)  # Each transition halves the size.
        if min(x.shape[1:3]) < least:
            which = f"a CIFAR DenseNet of {self.blocks} blocks needs images of at least {least}x{least} pixels"
            raise ModelError(f"{which}, not {x.shape[1]}x{x.shape[2]}")

        bn_axis = self.axis_name if self.sync_bn else None
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=bn_axis)
        drop = (lambda x: Dropout(self.dropout, self.axis_name)(x, train)) if self.dropout else None
        width = 2 * self.growth_rate if self.bottleneck else 16
        x = Conv(width, (3, 3), padding=1, use_bias=False, name="conv1")(x)
        dense_blocks = DenseBlocks(
            (layers,) * self.blocks,
            growth_rate=self.growth_rate,
            bottleneck=self.bottleneck,
            compression=self.compression,
            norm=norm,
            drop=drop,
            guided=self.guided,
        )
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(dense_blocks(x))


class ImageNetDenseNet(nn.Module):
    """The network for ImageNet, images [B, H, W, C] of at least 29x29 pixels -> logits [B, num_classes] (Huang et al.
    2016, table 1).

    | layer               | output for 224x224 pixels, 121 layers       |
    |---------------------|---------------------------------------------|
    | conv1, pool         | 112x112x64 (7x7, stride 2), 56x56 (max 3x3, stride 2) |
    | block 1, transition | 56x56x256, 28x28x128                        |
    | block 2, transition | 28x28x512, 14x14x256                        |
    | block 3, transition | 14x14x1024, 7x7x512                         |
    | block 4             | 7x7x1024                                    |
    | logits              | num_classes, after global average pooling   |

    conv1 has 2k channels; blocks use the bottleneck form, with compression 0.5; `DEPTHS` lists their layers and k.
    models/README.md lists parameters and multiply-adds. Differences from the paper: as in DenseNet. Raises ModelError
    for an unknown depth or smaller images.

    Attributes:
      num_classes: Number of classes.
      depth: One of `DEPTHS`.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
      guided: As in layers.relu.
    """

    num_classes: int
    depth: int = 121
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.depth not in DEPTHS:
            raise ModelError(f"an ImageNet DenseNet has {', '.join(map(str, DEPTHS))} layers, not {self.depth}")
        if min(x.shape[1:3]) < 29:
            raise ModelError(
                f"densenet{self.depth} needs images of at least 29x29 pixels, not {x.shape[1]}x{x.shape[2]}"
            )
        layers, growth_rate = DEPTHS[self.depth]
        bn_axis = self.axis_name if self.sync_bn else None
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=bn_axis)
        x = Conv(2 * growth_rate, (7, 7), strides=2, padding=3, use_bias=False, name="conv1")(x)
        x = max_pool(relu(norm(name="bn1")(x), guided=self.guided), 3, stride=2, padding=1)
        dense_blocks = DenseBlocks(
            layers, growth_rate=growth_rate, bottleneck=True, compression=0.5, norm=norm, guided=self.guided
        )
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(dense_blocks(x))


DenseNet121 = functools.partial(ImageNetDenseNet, depth=121)
DenseNet161 = functools.partial(ImageNetDenseNet, depth=161)
DenseNet169 = functools.partial(ImageNetDenseNet, depth=169)
DenseNet201 = functools.partial(ImageNetDenseNet, depth=201)
TinyDenseNet = functools.partial(DenseNet, depth=7, growth_rate=4)  # For tests.
TinyImageNetDenseNet = functools.partial(ImageNetDenseNet, depth=13)

SPECS = {"densenet": ModelSpec(module=DenseNet, image_shape=(32, 32, 3))} | {
    f"densenet{module.keywords['depth']}": ModelSpec(
        module=module,
        image_shape=(224, 224, 3),
        num_classes=1000,
        torchvision=TorchvisionLayout(torchvision_names(**module.keywords)),
    )
    for module in (DenseNet121, DenseNet161, DenseNet169, DenseNet201)
}
