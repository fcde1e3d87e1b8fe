"""The lecture's deep CNN for CIFAR-10, made for the most accuracy in half an hour on two CPU cores.

A 5x5 convolution whose filters can be looked at, then three blocks, each a 3x3 convolution, max pooling and another 3x3
convolution, and global max pooling; GELU after each, batch norm after each but the first. Pooling right after a block's
first convolution and first filters that begin by whitening the training images' patches are those of the speed records
on CIFAR-10 (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3); here these filters learn on.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from models.layers import BatchNorm, Conv, Dense, gelu, max_pool


class DCNN(nn.Module):
    """[B, H, W, C] of 16 pixels or more a side -> logits [B, num_classes]."""

    num_classes: int
    filters: int = 32
    widths: Sequence[int] = (64, 128, 256)
    axis_name: str | None = None
    sync_bn: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"dcnn needs images of at least 16x16 pixels, not {x.shape[1]}x{x.shape[2]}")
        bn_axis = self.axis_name if self.sync_bn else None

        def bn_gelu(x, name):
            # Running averages of a short run must follow the weights: they forget faster than the default.
            return gelu(BatchNorm(use_running_average=not train, momentum=0.8, axis_name=bn_axis, name=name)(x))

        x = gelu(Conv(self.filters, (5, 5), padding=((2, 2), (2, 2)), name="conv1")(x))
        for block, width in enumerate(self.widths, 1):
            for i in (1, 2):
                name = f"block{block}_conv{i}"
                x = Conv(width, (3, 3), padding=((1, 1), (1, 1)), use_bias=False, name=name)(x)
                x = max_pool(x, 2) if i == 1 else x
                x = bn_gelu(x, f"block{block}_bn{i}")
        return Dense(self.num_classes, name="logits")(x.max((1, 2)))


def fit(params, images_BHWC):
    """`params` whose first filters whiten the patches of normalised `images`: the patches' leading principal
    components, each scaled to variance one on these images, and the same with the opposite sign.

    Components that hardly vary are not blown up: 0.01, a hundredth of a pixel's variance, is added to their variance.
    """
    kernel = params["conv1"]["kernel"]
    window, channels, count = kernel.shape[:2], kernel.shape[2], kernel.shape[3] // 2
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images_BHWC, np.float64), window, (1, 2))
    patches_PK = patches[:, ::3, ::3].transpose(0, 1, 2, 4, 5, 3).reshape(-1, window[0] * window[1] * channels)
    variances, components = np.linalg.eigh(patches_PK.T @ patches_PK / len(patches_PK))
    filters = components[:, ::-1][:, :count] / np.sqrt(np.maximum(variances[::-1][:count], 0) + 0.01)
    filters = np.concatenate([filters, -filters], axis=1).reshape(*window, channels, -1)
    new = kernel.at[..., : filters.shape[-1]].set(jnp.asarray(filters, kernel.dtype))
    return {**params, "conv1": {**params["conv1"], "kernel": new}}
