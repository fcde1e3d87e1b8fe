"""SegNet and SegNet-Basic (Badrinarayanan, Kendall & Cipolla 2015, "SegNet: a deep convolutional encoder-decoder
architecture for image segmentation"), as in the authors' network files.

Encoders apply max pooling and store the positions of the maxima. Decoders put their input at these positions (max
unpooling) and apply convolutions. Pooling rounds odd sizes up, and unpooling restores them.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.errors import ModelError
from models.layers import (
    BatchNorm,
    Conv,
    batch_norm,
    crop,
    local_response_norm,
    max_pool_with_indices,
    norm_relu,
    unpool,
)
from models.model_spec import ModelSpec
from models.vgg import DEPTHS, WIDTHS

# The decoder variants of the paper (section 3.1). "indices" is SegNet. "indices_add" adds the encoder's feature maps to
# the output of a decoder's convolution (SegNetSmall: to its input). "bilinear" and "transposed" use fixed or learned
# interpolation instead of the indices.
DECODERS = ("indices", "bilinear", "transposed", "indices_add")

# The authors' (parameter path, learning-rate multiplier, weight-decay multiplier).
AUTHOR_GROUPS = ((r"bn\d?(_\d)?/", 1.0, 1.0), (r"bias$", 2.0, 0.0))

# Batch norm with the authors' initial bias.
ShiftedBatchNorm = functools.partial(BatchNorm, bias_init=nn.initializers.constant(0.001))


def bilinear(key, shape, dtype=jnp.float32):
    """Initializes a kernel [4, 4, C, C] to bilinear interpolation of each channel, for a transposed convolution with
    stride 2 (Long, Shelhamer & Darrell 2015, "Fully convolutional networks", section 3.3)."""
    del key
    line = jnp.array([0.25, 0.75, 0.75, 0.25], dtype)
    return jnp.einsum("h,w,io->hwio", line, line, jnp.eye(shape[2], dtype=dtype))


def _upsampled(x, maps, indices, *, decoder: str, name: str):
    """Upsamples x by 2 to the size of the encoder's feature maps before pooling. Must be called in a compact method."""
    size = maps.shape[1:3]
    if decoder == "transposed":
        features = x.shape[-1]
        up = nn.ConvTranspose(features, (4, 4), (2, 2), padding="SAME", kernel_init=bilinear, use_bias=False, name=name)
        return crop(up(x), size)
    if decoder == "bilinear":
        return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "linear")
    return unpool(x, indices, size)


def _check(decoder: str) -> None:
    if decoder not in DECODERS:
        raise ModelError(f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")


def _joined(x, maps, *, decoder: str):
    """Adds the encoder's feature maps to the decoder's for the variant indices_add; otherwise returns x."""
    return x + maps if decoder == "indices_add" else x


class SegNetBasic(nn.Module):
    """Images [B, H, W, C] with pixels 0 to 255 -> logits [B, H, W, num_classes].

    | encoder for 360x480 pixels | decoder  |
    |----------------------------|----------|
    | 7x7x64, 180x240            | 7x7x64, then the logits 1x1 |
    | 7x7x64, 90x120             | 7x7x64   |
    | 7x7x64, 45x60              | 7x7x64   |
    | 7x7x64, 23x30              | 7x7x64   |

    An encoder is a convolution, batch norm, ReLU and pooling; decoders have no ReLU (Badrinarayanan et al. 2015,
    section 3.1). For 360x480 pixels and 11 classes there are 1,416,587 parameters and 59,188,838,400 multiply-adds.
    Difference from the authors' network: batch norm's epsilon is 1e-5, not 1e-9. Raises ModelError for an unknown
    decoder, or widths that the decoder does not support.

    Attributes:
      num_classes: Number of classes.
      widths: Output channels of the encoders.
      window: Window of the convolutions in pixels.
      normalise_channels: Apply local response normalization to the input, as the authors do. Without it, images must be
        normalized.
      decoder: One of `DECODERS`.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
    """

    num_classes: int
    widths: Sequence[int] = (64, 64, 64, 64)
    window: int = 7
    normalise_channels: bool = True
    decoder: str = "indices"
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        _check(self.decoder)
        bn_axis = self.axis_name if self.sync_bn else None
        if self.decoder == "indices_add" and len(set(self.widths)) > 1:
            raise ModelError(f"decoder indices_add needs encoders of one width, not {list(self.widths)}")

        conv = functools.partial(Conv, kernel_size=(self.window, self.window), padding=self.window // 2)
        norm = functools.partial(ShiftedBatchNorm, use_running_average=not train, axis_name=bn_axis)

        kept = []
        if self.normalise_channels:
            x = local_response_norm(x, size=5, alpha=1e-4, beta=0.75)
        for i, width in enumerate(self.widths, 1):
            x = conv(width, name=f"encoder{i}_conv")(x)
            maps = norm_relu(norm(name=f"encoder{i}_bn"), x)
            x, indices = max_pool_with_indices(maps)
            kept.append((maps, indices))
        for i, (maps, indices) in reversed(list(enumerate(kept, 1))):
            x = _upsampled(x, maps, indices, decoder=self.decoder, name=f"decoder{i}_up")
            x = conv(self.widths[max(0, i - 2)], name=f"decoder{i}_conv")(x)
            x = _joined(batch_norm(norm(name=f"decoder{i}_bn"), x), maps, decoder=self.decoder)
        return Conv(self.num_classes, (1, 1), name="logits")(x)


class SegNetSmall(nn.Module):
    """A small SegNet, normalized images [B, H, W, C] -> logits [B, H, W, num_classes]; for digit_scenes on two CPU
    cores.

    It is narrow at high resolution, and wide and deep at low resolution. A decoder adds the encoder's feature maps to
    the unpooled ones before its 3x3 convolution, so that widths may differ, and has no ReLU, like SegNet-Basic's. With
    ReLU, or without the encoder's feature maps, digits were learned more slowly. Raises ModelError for an unknown
    decoder.

    | stage | encoder for 64x64 pixels | decoder |
    |-------|--------------------------|---------|
    | 1     | 5x5x16, 32x32            | 3x3x16, then the logits 1x1 |
    | 2     | 5x5x32, 16x16            | 3x3x16  |
    | 3     | 3x3x96 four times, 8x8   | 3x3x32  |

    For 64x64 pixels of one channel and 11 classes there are 325,419 parameters and 107,479,040 multiply-adds.

    Attributes:
      num_classes: Number of classes.
      widths: Output channels of each stage's convolutions.
      windows: Window of each stage's convolutions in pixels.
      depths: Number of each stage's convolutions.
      decoder: One of `DECODERS`.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 96)
    windows: Sequence[int] = (5, 5, 3)
    depths: Sequence[int] = (1, 1, 4)
    decoder: str = "indices_add"
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        _check(self.decoder)
        bn_axis, kept = self.axis_name if self.sync_bn else None, []

        conv = functools.partial(Conv, use_bias=False)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=bn_axis)

        stages = list(zip(self.widths, self.windows, self.depths, strict=True))
        for stage, (width, window, depth) in enumerate(stages, 1):
            for i in range(1, depth + 1):
                x = conv(width, (window, window), padding=window // 2, name=f"encoder{stage}_{i}_conv")(x)
                x = norm_relu(norm(name=f"encoder{stage}_{i}_bn"), x)
            maps = x
            x, indices = max_pool_with_indices(maps)
            kept.append((maps, indices))
        for stage, (maps, indices) in reversed(list(enumerate(kept, 1))):
            x = _upsampled(x, maps, indices, decoder=self.decoder, name=f"decoder{stage}_up")
            x = _joined(x, maps, decoder=self.decoder)
            x = conv(self.widths[max(0, stage - 2)], (3, 3), padding=1, name=f"decoder{stage}_conv")(x)
            x = batch_norm(norm(name=f"decoder{stage}_bn"), x)
        return Conv(self.num_classes, (1, 1), name="logits")(x)


class SegNet(nn.Module):
    """Normalized images [B, H, W, 3] -> logits [B, H, W, num_classes]; 29,449,355 parameters and
    106,712,432,640 multiply-adds for 360x480 pixels and 11 classes (Badrinarayanan et al. 2015, figure 2).

    The encoder is the 13 convolutions of VGG-16 with batch norm. Its layers have the same names as in `models.vgg`, so
    it can be initialized from VGG's weights. The decoder mirrors it. The authors' images are raw pixels, which batch
    norm scales after the first convolution. Raises ModelError for an unknown decoder.

    | stage | encoder for 360x480 pixels | decoder |
    |-------|----------------------------|---------|
    | 1     | 3x3x64 twice, 180x240      | 3x3x64, then the logits 3x3 |
    | 2     | 3x3x128 twice, 90x120      | 3x3x128, 3x3x64 |
    | 3     | 3x3x256 three times, 45x60 | 3x3x256 twice, 3x3x128 |
    | 4     | 3x3x512 three times, 23x30 | 3x3x512 twice, 3x3x256 |
    | 5     | 3x3x512 three times, 12x15 | 3x3x512 three times |

    Attributes:
      num_classes: Number of classes.
      decoder: One of `DECODERS`.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
    """

    num_classes: int
    decoder: str = "indices"
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        _check(self.decoder)
        bn_axis, kept = self.axis_name if self.sync_bn else None, []

        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1)
        norm = functools.partial(ShiftedBatchNorm, use_running_average=not train, axis_name=bn_axis)

        for stage, (width, convolutions) in enumerate(zip(WIDTHS, DEPTHS[16], strict=True), 1):
            for i in range(1, convolutions + 1):
                x = norm_relu(norm(name=f"bn{stage}_{i}"), conv(width, name=f"conv{stage}_{i}")(x))
            maps = x
            x, indices = max_pool_with_indices(maps)
            kept.append((maps, indices))
        for stage, (maps, indices) in reversed(list(enumerate(kept, 1))):
            x = _upsampled(x, maps, indices, decoder=self.decoder, name=f"decoder{stage}_up")
            last = WIDTHS[max(0, stage - 2)]  # The width of the previous stage.
            widths = [*[WIDTHS[stage - 1]] * (DEPTHS[16][stage - 1] - 1), last]
            for i, width in enumerate(widths[: 1 if stage == 1 else None], 1):
                x = norm_relu(norm(name=f"decoder{stage}_bn{i}"), conv(width, name=f"decoder{stage}_{i}")(x))
                x = _joined(x, maps, decoder=self.decoder) if i == 1 else x  # The first has the encoder's width.
        return conv(self.num_classes, name="logits")(x)


SPECS = {
    "segnet_small": ModelSpec(module=SegNetSmall, task="segmentation", image_shape=(64, 64, 1), num_classes=11),
    "segnet_basic": ModelSpec(
        module=SegNetBasic,
        task="segmentation",
        image_shape=(360, 480, 3),
        num_classes=11,
        author_groups=AUTHOR_GROUPS,
        raw_pixels=True,
    ),
    "segnet": ModelSpec(
        module=SegNet,
        task="segmentation",
        image_shape=(360, 480, 3),
        num_classes=11,
        author_groups=AUTHOR_GROUPS,
        encoders={"vgg16": ("conv",), "vgg16_bn": ("conv", "bn")},
    ),
}
