"""DenseNet (Huang, Liu, van der Maaten & Weinberger 2016, "Densely connected convolutional networks").

A layer is BN - ReLU - 3x3 convolution with k output channels (the growth rate), in the bottleneck form preceded by BN -
ReLU - 1x1 convolution with 4k channels. Its output is concatenated to its input. Between dense blocks there are
transitions: BN - ReLU - 1x1 convolution that multiplies the number of channels by `compression` - average pooling.
"""

import functools

import flax.linen as nn

from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Composite, Conv, Dense, Dropout, avg_pool, dense_block, max_pool, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# The networks for ImageNet (table 1): depth -> (layers of each block, growth rate).
DEPTHS = {
    121: ((6, 12, 24, 16), 32),
    169: ((6, 12, 32, 32), 32),
    201: ((6, 12, 48, 32), 32),
    161: ((6, 12, 36, 24), 48),
}


def torchvision_names(*, depth: int) -> dict[str, str]:
    """Returns the mapping from layer names to torchvision's, for a network for ImageNet."""
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


def _conv(features: int, window: int, **options) -> nn.Conv:
    pad = window // 2
    return Conv(features, (window, window), padding=((pad, pad), (pad, pad)), use_bias=False, **options)


def _dense_blocks(x, blocks, *, growth_rate: int, bottleneck: bool, compression: float, norm, guided: bool, drop=None):
    """Applies dense blocks with `blocks` layers each, the transitions between them, and global average pooling. Must be
    called in a compact method."""

    act = functools.partial(relu, guided=guided)

    def layer(name: str) -> list[Composite]:
        if not bottleneck:
            return [Composite(norm(name=f"{name}_bn1"), _conv(growth_rate, 3, name=f"{name}_conv1"), drop)]
        return [
            Composite(norm(name=f"{name}_bn1"), _conv(4 * growth_rate, 1, name=f"{name}_conv1"), drop),
            Composite(norm(name=f"{name}_bn2"), _conv(growth_rate, 3, name=f"{name}_conv2"), drop),
        ]

    def transition(name: str, channels: int) -> Composite:
        width = int(channels * compression)
        if not width:
            raise ModelError(f"a compression of {compression} leaves no channels of the {channels} before a transition")
        return Composite(norm(name=f"{name}_bn"), _conv(width, 1, name=f"{name}_conv"), drop)

    for block, count in enumerate(blocks, 1):
        layers = [layer(f"block{block}_layer{i}") for i in range(1, count + 1)]
        if block == len(blocks):
            return dense_block(x, layers, Composite(norm(name="bn"), None), relu=act, fuse=not guided).mean((1, 2))
        after = transition(f"transition{block}", x.shape[-1] + count * growth_rate)
        x = avg_pool(dense_block(x, layers, after, relu=act, fuse=not guided), 2)


class DenseNet(nn.Module):
    """The network for CIFAR, images [B, H, W, C] -> logits [B, num_classes] (section 4.2).

    A convolution with 16 output channels, or 2k in the bottleneck form, is followed by `blocks` dense blocks of N
    layers each. Figure 1 of the paper is one block of five layers with k = 4, depth 7. Raises ModelError for a depth
    that does not fit.

    Attributes:
      num_classes: Number of classes.
      depth: For b blocks bN + b + 1, or 2bN + b + 1 with `bottleneck`; 3N + 4 or 6N + 4 for the paper's three.
      growth_rate: k, output channels of a layer.
      bottleneck: Use the bottleneck form.
      compression: Factor by which transitions multiply the number of channels.
      blocks: Number of dense blocks.
      dropout: Dropout rate after each convolution but the first; the paper uses 0.2 without data augmentation.
      axis_name: Mesh axis for batch statistics and dropout's keys.
      sync_bn: Average batch statistics over `axis_name`.
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
        step, rest = self.blocks * (2 if self.bottleneck else 1), self.blocks + 1
        layers, remainder = divmod(self.depth - rest, step)
        if remainder or layers < 1:
            form = f"{step}N + {rest} layers" + (" with a bottleneck" if self.bottleneck else "")
            raise ModelError(f"a CIFAR DenseNet of {self.blocks} blocks has {form}, not {self.depth}")

        norm = functools.partial(
            BatchNorm, use_running_average=not train, axis_name=self.axis_name if self.sync_bn else None
        )
        drop = (lambda x: Dropout(self.dropout, self.axis_name)(x, train)) if self.dropout else None
        x = _conv(2 * self.growth_rate if self.bottleneck else 16, 3, name="conv1")(x)
        x = _dense_blocks(
            x,
            (layers,) * self.blocks,
            growth_rate=self.growth_rate,
            bottleneck=self.bottleneck,
            compression=self.compression,
            norm=norm,
            guided=self.guided,
            drop=drop,
        )
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x)


class ImageNetDenseNet(nn.Module):
    """The network for ImageNet, images [B, H, W, C] of at least 29x29 pixels -> logits [B, num_classes].

    A 7x7 convolution with 2k output channels and stride 2 and 3x3 max pooling are followed by four dense blocks in the
    bottleneck form, with compression 0.5. `depth` is 121, 161, 169 or 201. Raises ModelError for another depth or
    smaller images.
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
        blocks, growth_rate = DEPTHS[self.depth]
        bn_axis = self.axis_name if self.sync_bn else None
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=bn_axis)
        pad = ((3, 3), (3, 3))
        x = Conv(2 * growth_rate, (7, 7), strides=2, padding=pad, use_bias=False, name="conv1")(x)
        x = max_pool(relu(norm(name="bn1")(x), guided=self.guided), 3, stride=2, padding=1)
        x = _dense_blocks(
            x, blocks, growth_rate=growth_rate, bottleneck=True, compression=0.5, norm=norm, guided=self.guided
        )
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x)


SPECS = {"densenet": ModelSpec(module=DenseNet, image_shape=(32, 32, 3))} | {
    f"densenet{depth}": ModelSpec(
        module=ImageNetDenseNet,
        options={"depth": depth},
        image_shape=(224, 224, 3),
        num_classes=1000,
        torchvision=TorchvisionLayout(torchvision_names(depth=depth)),
    )
    for depth in DEPTHS
}
