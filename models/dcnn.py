"""The lecture's deep CNN for CIFAR-10, made for the most accuracy in half an hour (dcnn) and in 75 minutes (dcnn_wide)
on two CPU cores.

Fixed 2x2 filters whiten the image's patches; on them a 3x3 convolution learns, so that both together are filters of 4x4
pixels that can be looked at. Then three blocks, each a 3x3 convolution, max pooling and another 3x3 convolution, and
global max pooling; batch norm and GELU after each. Whitening, and pooling right after a block's first convolution, are
those of the speed records on CIFAR-10 (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3), which apply GELU
between the whitening and the first convolution that learns.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from models.initializers import normal
from models.kernels import conv_general_dilated
from models.layers import BatchNorm, Conv, Dense, gelu, max_pool

WINDOW = 2


class DCNN(nn.Module):
    """[B, H, W, C] of 17 pixels or more a side -> logits [B, num_classes].

    The whitening filters [2, 2, C, 4C] are kept with the batch statistics, since no gradient changes them. They begin
    as the identity; `fit` computes them.
    """

    num_classes: int
    filters: int = 32
    widths: Sequence[int] = (64, 128, 256)
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        if min(x.shape[1:3]) < 17:
            raise ValueError(f"dcnn needs images of at least 17x17 pixels, not {x.shape[1]}x{x.shape[2]}")
        bn_axis, values = self.axis_name if self.sync_bn else None, WINDOW**2 * x.shape[-1]

        def bn_gelu(x, name):
            # Running averages of a short run must follow the weights: they forget faster than the default.
            return gelu(BatchNorm(use_running_average=not train, momentum=0.8, axis_name=bn_axis, name=name)(x))

        def identity():
            return jnp.eye(values).reshape(WINDOW, WINDOW, -1, values)

        whitening = self.variable("batch_stats", "whitening", identity).value
        x = conv_general_dilated(x, whitening, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        # Batch norm undoes the scale of these weights. Begun this small, they are what was learned; a start of
        # Kaiming's size would still show as noise in the filters after a short run.
        small, pad = normal(0.01), ((1, 1), (1, 1))
        x = bn_gelu(Conv(self.filters, (3, 3), padding=pad, use_bias=False, kernel_init=small, name="conv1")(x), "bn1")
        for block, width in enumerate(self.widths, 1):
            for i in (1, 2):
                name = f"block{block}_conv{i}"
                x = Conv(width, (3, 3), padding=pad, use_bias=False, name=name)(x)
                x = max_pool(x, 2) if i == 1 else x
                x = bn_gelu(x, f"block{block}_bn{i}")
        return Dense(self.num_classes, name="logits")(x.max((1, 2)))


def fit(batch_stats, images_BHWC):
    """`batch_stats` with the filters that whiten the 2x2 patches of normalised images: the patches' principal
    components, largest variance first, each scaled to variance one on these images.

    Components that hardly vary are not blown up: 5e-4 is added to their variance (Jordan 2024, section 3.1).
    """
    shape = batch_stats["whitening"].shape
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images_BHWC, np.float64), shape[:2], (1, 2))
    patches_PK = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, shape[-1])
    variances, components_KK = np.linalg.eigh(patches_PK.T @ patches_PK / len(patches_PK))
    filters_KK = components_KK[:, ::-1] / np.sqrt(np.maximum(variances[::-1], 0) + 5e-4)
    return {**batch_stats, "whitening": jnp.asarray(filters_KK.reshape(shape), jnp.float32)}


def first_filters(params, batch_stats):
    """The filters [4, 4, C, F] that whitening and the first convolution are together."""
    whitening, kernel = np.asarray(batch_stats["whitening"]), np.asarray(params["conv1"]["kernel"])
    height, width = (a + b - 1 for a, b in zip(whitening.shape[:2], kernel.shape[:2], strict=True))
    total = np.zeros((height, width, whitening.shape[2], kernel.shape[3]), np.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            total[i : i + WINDOW, j : j + WINDOW] += whitening @ kernel[i, j]
    return total
