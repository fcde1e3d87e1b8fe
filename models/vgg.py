"""VGG (Simonyan & Zisserman 2014, "Very deep convolutional networks", table 1: configurations A, B, D and E)."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn

from models.errors import ModelError
from models.initializers import normal
from models.layers import BatchNorm, Conv, Dense, Dropout, max_pool, norm_relu, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

WIDTHS = (64, 128, 256, 512, 512)
# Depth -> number of 3x3 convolutions in each of the five stages.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def torchvision_names(*, depth: int, batch_norm: bool) -> dict[str, str]:
    """Returns the mapping from layer names to torchvision's layer names."""
    names, at = {}, 0
    for stage, convolutions in enumerate(DEPTHS[depth], 1):
        for i in range(1, convolutions + 1):
            names[f"conv{stage}_{i}"] = f"features.{at}"
            if batch_norm:
                names[f"bn{stage}_{i}"] = f"features.{at + 1}"
            at += 3 if batch_norm else 2
        at += 1
    return names | {"fc6": "classifier.0", "fc7": "classifier.3", "logits": "classifier.6"}


# timm's names of the dense layers, which it stores as convolutions -> torchvision's.
TIMM_NAMES = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}


class VGG(nn.Module):
    """Images [B, H, W, 3] of at least 32x32 pixels -> logits [B, num_classes] (Simonyan & Zisserman 2014, table 1).

    | stage | output for 224x224 pixels | 11 (A) | 13 (B) | 16 (D) | 19 (E) |
    |-------|---------------------------|--------|--------|--------|--------|
    | 1     | 112x112x64                | 1      | 2      | 2      | 2      |
    | 2     | 56x56x128                 | 1      | 2      | 2      | 2      |
    | 3     | 28x28x256                 | 2      | 2      | 3      | 4      |
    | 4     | 14x14x512                 | 2      | 2      | 3      | 4      |
    | 5     | 7x7x512                   | 2      | 2      | 3      | 4      |

    The table lists the number of 3x3 convolutions with ReLU in each stage; each stage ends with 2x2 max pooling. The
    dense layers fc6 and fc7, with ReLU and dropout, and the logits come last. models/README.md lists parameters and
    multiply-adds. Differences from the paper: as in torchvision, convolutions are initialized by Kaiming's rule and
    dense layers with standard deviation 0.01, whereas the paper draws from a normal distribution of variance 0.01 or
    initializes deep networks from shallow ones; batch norm is torchvision's addition. Raises ModelError for an unknown
    depth or smaller images.

    Attributes:
      num_classes: Number of classes.
      depth: Number of convolutions and dense layers: 11, 13, 16 or 19.
      batch_norm: Add batch norm after each convolution.
      dropout: Dropout rate.
      axis_name: Mesh axis for batch statistics and dropout's keys.
      sync_bn: Average batch statistics over `axis_name`.
      units: Units of fc6 and fc7.
      widths: Output channels of the convolutions of each stage.
      guided: As in layers.relu.
    """

    CLASSIFIER: ClassVar = ("fc6", "fc7", "logits")

    num_classes: int
    depth: int = 19
    batch_norm: bool = False
    dropout: float = 0.5
    axis_name: str | None = None
    sync_bn: bool = True
    units: int = 4096
    widths: Sequence[int] = WIDTHS
    guided: bool = False

    def setup(self):
        if self.depth not in DEPTHS:
            raise ModelError(f"VGG has 11, 13, 16 or 19 layers, not {self.depth}")
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1)
        norm = functools.partial(BatchNorm, axis_name=self.axis_name if self.sync_bn else None)
        dense = functools.partial(Dense, kernel_init=normal(0.01))
        for stage, (width, convolutions) in enumerate(zip(self.widths, DEPTHS[self.depth], strict=True), 1):
            for i in range(1, convolutions + 1):
                setattr(self, f"conv{stage}_{i}", conv(width))
                if self.batch_norm:
                    setattr(self, f"bn{stage}_{i}", norm())
        self.fc6, self.fc7, self.logits = dense(self.units), dense(self.units), dense(self.num_classes)
        self.act = functools.partial(relu, guided=self.guided)
        self.drop = Dropout(self.dropout, self.axis_name)

    def features(self, x, train: bool = False):
        """The convolutional part, [B, H, W, 3] -> [B, F]; F is 25,088 for 224x224 pixels."""
        if min(x.shape[1:3]) < 32:
            raise ModelError(f"VGG needs images of at least 32x32 pixels, not {x.shape[1]}x{x.shape[2]}")
        for stage, convolutions in enumerate(DEPTHS[self.depth], 1):
            for i in range(1, convolutions + 1):
                x = getattr(self, f"conv{stage}_{i}")(x)
                if self.batch_norm:
                    norm = getattr(self, f"bn{stage}_{i}")
                    x = norm_relu(norm, x, use_running_average=not train, guided=self.guided)
                else:
                    x = self.act(x)
            x = max_pool(x, 2)
        return x.reshape(x.shape[0], -1)

    def classifier(self, x, train: bool = False):
        """The dense layers, [B, F] -> logits [B, num_classes]."""
        for layer in (self.fc6, self.fc7):
            x = self.drop(self.act(layer(x)), train)
        return self.logits(x)

    def __call__(self, x, train: bool = False):
        return self.classifier(self.features(x, train), train)


VGG11 = functools.partial(VGG, depth=11, batch_norm=False)
VGG13 = functools.partial(VGG, depth=13, batch_norm=False)
VGG16 = functools.partial(VGG, depth=16, batch_norm=False)
VGG19 = functools.partial(VGG, depth=19, batch_norm=False)
VGG11BN = functools.partial(VGG, depth=11, batch_norm=True)
VGG13BN = functools.partial(VGG, depth=13, batch_norm=True)
VGG16BN = functools.partial(VGG, depth=16, batch_norm=True)
VGG19BN = functools.partial(VGG, depth=19, batch_norm=True)
TinyVGG = functools.partial(VGG, depth=11, widths=(4, 4, 8, 8, 8), units=14)  # For tests.

SPECS = {
    f"vgg{module.keywords['depth']}{'_bn' * module.keywords['batch_norm']}": ModelSpec(
        module=module,
        image_shape=(224, 224, 3),
        num_classes=1000,
        torchvision=TorchvisionLayout(torchvision_names(**module.keywords), flattened={"fc6": 512}, aliases=TIMM_NAMES),
    )
    for module in (VGG11, VGG13, VGG16, VGG19, VGG11BN, VGG13BN, VGG16BN, VGG19BN)
}
