"""A deep CNN for CIFAR-10, designed for the best accuracy in half an hour (dcnn) or 75 minutes (dcnn_wide) of training
on two CPU cores.

The first layer is a fixed 2x2 convolution that whitens the image's patches; GELU is applied to its outputs and to their
negatives. Three blocks follow, each a 3x3 convolution, max pooling and another 3x3 convolution, with batch norm and
GELU after each convolution, and then global max pooling. Convolutions are initialized to the identity. The architecture
is that of the speed records on CIFAR-10 (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3).
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from models.errors import ModelError
from models.initializers import dirac
from models.layers import BatchNorm, Conv, Dense, conv_general_dilated, gelu, max_pool
from models.model_spec import ModelSpec

WINDOW = 2


class DCNN(nn.Module):
    """Images [B, H, W, C] of at least 9x9 pixels -> logits [B, num_classes]. Raises ModelError for smaller images.

    The whitening filters [2, 2, C, 4C] are stored in the collection batch_stats because they are not trained. They are
    initialized to the identity; `whitening_from_images` computes them.
    """

    num_classes: int
    widths: Sequence[int] = (48, 96, 192)
    axis_name: str | None = None
    sync_bn: bool = True
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        if min(x.shape[1:3]) < 9:
            raise ModelError(f"dcnn needs images of at least 9x9 pixels, not {x.shape[1]}x{x.shape[2]}")
        bn_axis, values = self.axis_name if self.sync_bn else None, WINDOW**2 * x.shape[-1]
        act = functools.partial(gelu, guided=self.guided)

        def bn_gelu(x, name):
            # Training is short, so the running statistics have to follow the weights faster than by default.
            return act(BatchNorm(use_running_average=not train, momentum=0.8, axis_name=bn_axis, name=name)(x))

        def identity():
            return jnp.eye(values, dtype=jnp.float32).reshape(WINDOW, WINDOW, -1, values)

        whitening = self.variable("batch_stats", "whitening", identity).value.astype(x.dtype)
        x = conv_general_dilated(x, whitening, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x, pad = act(jnp.concatenate([x, -x], -1)), ((1, 1), (1, 1))
        for block, width in enumerate(self.widths, 1):
            for i in (1, 2):
                name = f"block{block}_conv{i}"
                x = Conv(width, (3, 3), padding=pad, use_bias=False, kernel_init=dirac, name=name)(x)
                x = max_pool(x, 2) if i == 1 else x
                x = bn_gelu(x, f"block{block}_bn{i}")
        return Dense(self.num_classes, name="logits")(x.max((1, 2)))


def whitening_from_images(batch_stats, images_BHWC):
    """Computes the whitening filters: the principal components of 2x2 patches, by decreasing variance, each scaled to
    unit variance.

    0.1 is added to the variances, in units of the pixels' variance. Without it the components of smallest variance,
    which are mostly JPEG compression noise, would be amplified and dominate the filters of the first layer.

    Args:
      batch_stats: The model's batch statistics.
      images_BHWC: Normalized images.

    Returns:
      `batch_stats` with the new filters.
    """
    shape = batch_stats["whitening"].shape
    patches = np.lib.stride_tricks.sliding_window_view(np.asarray(images_BHWC, np.float64), shape[:2], (1, 2))
    patches_PK = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, shape[-1])
    variances, components_KK = np.linalg.eigh(patches_PK.T @ patches_PK / len(patches_PK))
    filters_KK = components_KK[:, ::-1] / np.sqrt(np.maximum(variances[::-1], 0) + 1e-1)
    return {**batch_stats, "whitening": jnp.asarray(filters_KK.reshape(shape), jnp.float32)}


def first_filters(params, batch_stats):
    """Returns the filters [4, 4, C, F] that are equivalent to whitening and the first convolution together.

    Since gelu(x) - gelu(-x) = x, the odd part of a gelu(x) + b gelu(-x) is (a - b) / 2 x. The even part, which does not
    distinguish bright from dark, is left out.
    """
    whitening, kernel = np.asarray(batch_stats["whitening"]), np.asarray(params["block1_conv1"]["kernel"])
    bright, dark = np.split(kernel, 2, axis=2)
    height, width = (a + b - 1 for a, b in zip(whitening.shape[:2], kernel.shape[:2], strict=True))
    total = np.zeros((height, width, whitening.shape[2], kernel.shape[3]), np.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            total[i : i + WINDOW, j : j + WINDOW] += whitening @ (bright - dark)[i, j] / 2
    return total


SPECS = {
    name: ModelSpec(
        module=DCNN,
        options=options,
        image_shape=(32, 32, 3),
        data_dependent_init=whitening_from_images,
        first_filters=first_filters,
    )
    for name, options in (("dcnn", {}), ("dcnn_wide", {"widths": (64, 128, 256)}))
}
