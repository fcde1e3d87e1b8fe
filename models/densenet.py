"""DenseNet (Huang, Liu, van der Maaten & Weinberger 2016, "Densely connected convolutional networks"), for CIFAR.

Three blocks of N layers. A layer is BN - ReLU - 3x3 convolution of k maps, in the bottleneck form BN - ReLU - 1x1
convolution of 4k maps before it; its output is concatenated to its input. Between blocks BN - ReLU - 1x1 convolution to
compression x maps - average pooling. The first convolution has 16 maps, or 2k in the bottleneck form (section 4.2).
"""

import flax.linen as nn
import jax.numpy as jnp

from models.initializers import kaiming_normal
from models.layers import BatchNorm, Conv, Dense, Dropout, avg_pool, relu


class DenseNet(nn.Module):
    """[B, H, W, C] -> logits [B, num_classes]. `depth` = 3N + 4, or 6N + 4 with `bottleneck`; ValueError otherwise.

    `dropout` follows each convolution but the first; the paper uses 0.2 on data that is not augmented.
    """

    num_classes: int
    depth: int = 40
    growth_rate: int = 12
    bottleneck: bool = False
    compression: float = 1.0
    dropout: float = 0.0
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        layers, remainder = divmod(self.depth - 4, 6 if self.bottleneck else 3)
        if remainder or layers < 1:
            form = "6N + 4 layers with a bottleneck" if self.bottleneck else "3N + 4 layers"
            raise ValueError(f"a CIFAR DenseNet has {form}, not {self.depth}")
        bn_axis = self.axis_name if self.sync_bn else None

        def bn_relu(x, name):
            return relu(BatchNorm(use_running_average=not train, axis_name=bn_axis, name=name)(x))

        def conv(x, width, size, name):
            pad = size // 2
            x = Conv(width, (size, size), padding=((pad, pad), (pad, pad)), use_bias=False, name=name)(x)
            return Dropout(self.dropout, self.axis_name)(x, train)

        width = 2 * self.growth_rate if self.bottleneck else 16
        x = Conv(width, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name="conv1")(x)
        for block in (1, 2, 3):
            for layer in range(1, layers + 1):
                name = f"block{block}_layer{layer}"
                y = bn_relu(x, f"{name}_bn1")
                if self.bottleneck:
                    y = bn_relu(conv(y, 4 * self.growth_rate, 1, f"{name}_conv1"), f"{name}_bn2")
                y = conv(y, self.growth_rate, 3, f"{name}_conv{2 if self.bottleneck else 1}")
                x = jnp.concatenate([x, y], axis=-1)
            if block < 3:
                width = int(x.shape[-1] * self.compression)
                x = avg_pool(conv(bn_relu(x, f"transition{block}_bn"), width, 1, f"transition{block}_conv"), 2)
        x = bn_relu(x, "bn").mean((1, 2))
        return Dense(self.num_classes, kernel_init=kaiming_normal, name="logits")(x)
