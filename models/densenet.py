"""DenseNet (Huang, Liu, van der Maaten & Weinberger 2016, "Densely connected convolutional networks").

A layer is BN - ReLU - 3x3 convolution with k output channels (the growth rate), in the bottleneck form preceded by BN -
ReLU - 1x1 convolution with 4k channels. Its output is concatenated to its input. Between dense blocks there are
transitions: BN - ReLU - 1x1 convolution that multiplies the number of channels by `compression` - average pooling.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from models.cpu_kernels import ops
from models.errors import ModelError
from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, Dropout, avg_pool, max_pool, relu
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


def _bn_relu(x, name, *, train: bool, bn_axis: str | None):
    return relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name=name)(x))


def _dense_blocks(x, blocks, *, growth_rate: int, bottleneck: bool, compression: float, bn_relu, conv):
    """Applies dense blocks with `blocks` layers each, the transitions between them, and global average pooling. Must be
    called in a compact method."""
    for block, layers in enumerate(blocks, 1):
        for layer in range(1, layers + 1):
            name = f"block{block}_layer{layer}"
            y = bn_relu(x, f"{name}_bn1")
            if bottleneck:
                y = bn_relu(conv(y, 4 * growth_rate, 1, f"{name}_conv1"), f"{name}_bn2")
            y = conv(y, growth_rate, 3, f"{name}_conv{2 if bottleneck else 1}")
            x = jnp.concatenate([x, y], axis=-1)
        if block < len(blocks):
            width = int(x.shape[-1] * compression)
            if not width:
                raise ModelError(
                    f"a compression of {compression} leaves no channels of the {x.shape[-1]} before a transition"
                )
            x = avg_pool(conv(bn_relu(x, f"transition{block}_bn"), width, 1, f"transition{block}_conv"), 2)
    return bn_relu(x, "bn").mean((1, 2))


def _fused_blocks(module: nn.Module, x, blocks, *, bottleneck: bool, bn_axis: str | None):
    """`_dense_blocks` in training mode by the C kernels, with the variables that `module` already has."""
    momentum, epsilon = BatchNorm.keywords["momentum"], BatchNorm.keywords["epsilon"]

    def weights(name: str) -> Any:
        return module.get_variable("params", name)

    def update_running_stats(name: str, statistics_2C):
        running: Any = module.get_variable("batch_stats", name)
        updated = ops.update_running_stats(running, statistics_2C, momentum=momentum)
        module.put_variable("batch_stats", name, updated)

    def layer(name: str) -> dict[str, Any]:
        parts = (1, 2) if bottleneck else (1,)
        norms = {f"bn{i}": weights(f"{name}_bn{i}") for i in parts}
        return norms | {f"conv{i}": weights(f"{name}_conv{i}")["kernel"] for i in parts}

    for block, layers in enumerate(blocks, 1):
        names = [f"block{block}_layer{i}" for i in range(1, layers + 1)]
        x, statistics, of_bottlenecks = ops.dense_block(x, [layer(name) for name in names], bn_axis, epsilon)
        for i, name in enumerate(names):
            update_running_stats(f"{name}_bn1", statistics)
            if bottleneck:
                update_running_stats(f"{name}_bn2", of_bottlenecks[i])
        last = "bn" if block == len(blocks) else f"transition{block}_bn"
        update_running_stats(last, statistics)
        ab = ops.batch_norm_affine(weights(last), statistics, epsilon=epsilon)
        if block < len(blocks):
            kernel = weights(f"transition{block}_conv")["kernel"]
            x = avg_pool(ops.affine_relu_convolution(x, ab, kernel), 2)
    a, b = ab.reshape(2, 1, 1, 1, -1)
    return relu(a * x + b).mean((1, 2))


def _conv(x, width, size, name):
    pad = size // 2
    return Conv(width, (size, size), padding=((pad, pad), (pad, pad)), use_bias=False, name=name)(x)


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

    @nn.compact
    def __call__(self, x, train: bool = False):
        step, rest = self.blocks * (2 if self.bottleneck else 1), self.blocks + 1
        layers, remainder = divmod(self.depth - rest, step)
        if remainder or layers < 1:
            form = f"{step}N + {rest} layers" + (" with a bottleneck" if self.bottleneck else "")
            raise ModelError(f"a CIFAR DenseNet of {self.blocks} blocks has {form}, not {self.depth}")

        def conv(x, width, size, name):
            return Dropout(self.dropout, self.axis_name)(_conv(x, width, size, name), train)

        x = _conv(x, 2 * self.growth_rate if self.bottleneck else 16, 3, "conv1")
        bn_axis = self.axis_name if self.sync_bn else None
        if train and not self.is_initializing() and not self.dropout and ops.use_cpu_kernels(x):
            x = _fused_blocks(self, x, (layers,) * self.blocks, bottleneck=self.bottleneck, bn_axis=bn_axis)
        else:
            x = _dense_blocks(
                x,
                (layers,) * self.blocks,
                growth_rate=self.growth_rate,
                bottleneck=self.bottleneck,
                compression=self.compression,
                bn_relu=functools.partial(_bn_relu, train=train, bn_axis=bn_axis),
                conv=conv,
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
        bn_relu = functools.partial(_bn_relu, train=train, bn_axis=bn_axis)
        pad = ((3, 3), (3, 3))
        x = Conv(2 * growth_rate, (7, 7), strides=2, padding=pad, use_bias=False, name="conv1")(x)
        x = max_pool(bn_relu(x, "bn1"), 3, stride=2, padding=1)
        if train and not self.is_initializing() and ops.use_cpu_kernels(x):
            x = _fused_blocks(self, x, blocks, bottleneck=True, bn_axis=bn_axis)
        else:
            x = _dense_blocks(
                x, blocks, growth_rate=growth_rate, bottleneck=True, compression=0.5, bn_relu=bn_relu, conv=_conv
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
