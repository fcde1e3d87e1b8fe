"""Deep CNNs for CIFAR-10, designed for the best accuracy in a quarter of an hour of training on two CPU cores, after
Jordan 2024, "94% on CIFAR-10 in 3.29 seconds"."""

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
    """Images [B, H, W, C] of at least 9x9 pixels -> logits [B, num_classes] (Jordan 2024, section 3).

    | layer        | output for 32x32 pixels | window                                             |
    |--------------|-------------------------|----------------------------------------------------|
    | whitening    | 31x31x24                | 2x2, fixed; GELU of the outputs and their negatives |
    | block 1      | 15x15x48                | 3x3, max pooling 2x2, 3x3                          |
    | block 2      | 7x7x96                  | 3x3, max pooling 2x2, 3x3                          |
    | block 3      | 3x3x192                 | 3x3, max pooling 2x2, 3x3                          |
    | logits       | num_classes             | global max pooling, dense                          |

    Batch norm and GELU follow each convolution; in a block's first convolution they come after pooling. Convolutions
    are initialized to the identity. For 32x32x3 pixels and ten classes there are 656,458 parameters and 39,141,120
    multiply-adds (without the whitening); dcnn_wide has 1,160,970 and 65,155,072. Differences from the source: its
    widths are 64, 256 and 256; its whitening has a bias, which is trained for three epochs, and its last layer has
    none; its outputs are scaled; its batch norm has fixed scales, epsilon 1e-12 and running statistics in which a new
    batch has weight 0.4 (here 1e-5 and 0.2); its GELU is exact, not the approximation with tanh.

    The whitening filters [2, 2, C, 4C] are stored in the collection batch_stats because they are not trained. They are
    initialized to the identity; `whitening_from_images` computes them. Raises ModelError for smaller images.

    Attributes:
      num_classes: Number of classes.
      widths: Output channels of each block's convolutions.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
      guided: As in layers.relu.
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
        conv = functools.partial(Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=dirac)
        # Training is short, so the running statistics have to follow the weights faster than by default.
        norm = functools.partial(BatchNorm, use_running_average=not train, momentum=0.8, axis_name=bn_axis)
        act = functools.partial(gelu, guided=self.guided)

        def identity():
            return jnp.eye(values, dtype=jnp.float32).reshape(WINDOW, WINDOW, -1, values)

        whitening = self.variable("batch_stats", "whitening", identity).value.astype(x.dtype)
        x = conv_general_dilated(x, whitening, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = act(jnp.concatenate([x, -x], -1))
        for block, width in enumerate(self.widths, 1):
            x = max_pool(conv(width, name=f"block{block}_conv1")(x), 2)
            x = act(norm(name=f"block{block}_bn1")(x))
            x = act(norm(name=f"block{block}_bn2")(conv(width, name=f"block{block}_conv2")(x)))
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
    """Returns the filters [4, 4, C, F] that are equivalent to whitening followed by the first convolution.

    Since gelu(x) - gelu(-x) = x, the odd part of a gelu(x) + b gelu(-x) is (a - b) / 2 x. The even part, which does not
    distinguish bright from dark, is omitted.
    """
    whitening, kernel = np.asarray(batch_stats["whitening"]), np.asarray(params["block1_conv1"]["kernel"])
    bright, dark = np.split(kernel, 2, axis=2)
    height, width = (a + b - 1 for a, b in zip(whitening.shape[:2], kernel.shape[:2], strict=True))
    total = np.zeros((height, width, whitening.shape[2], kernel.shape[3]), np.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            total[i : i + WINDOW, j : j + WINDOW] += whitening @ (bright - dark)[i, j] / 2
    return total


DCNNWide = functools.partial(DCNN, widths=(64, 128, 256))
TinyDCNN = functools.partial(DCNN, widths=(4, 8, 8))  # For tests.

SPECS = {
    name: ModelSpec(
        module=module,
        image_shape=(32, 32, 3),
        data_dependent_init=whitening_from_images,
        first_filters=first_filters,
    )
    for name, module in (("dcnn", DCNN), ("dcnn_wide", DCNNWide))
}
