"""Networks of transposed convolutions that reconstruct images from the features of another network."""

from collections.abc import Callable

import flax.linen as nn
import jax

from models.initializers import kaiming_normal
from models.layers import Conv, ConvTranspose, Dense

SLOPE = 0.2  # Negative slope of the leaky ReLU, as in the paper.


class UpConvolution(nn.Module):
    """Features [B, h, w, C] or [B, M] -> images [B, 4 side, 4 side, 1] in [0, 1] (Dosovitskiy & Brox 2015, "Inverting
    visual representations with convolutional networks").

    A dense layer first maps vectors, and feature maps smaller than `side`, to side x side x width. Feature maps of
    `side` or 2 `side` pixels pass through a 3x3 convolution instead. Transposed convolutions, each preceded by a leaky
    ReLU, then double the size.

    Attributes:
      side: Side in pixels of the feature maps before the last two doublings.
      width: Channels of these feature maps; the first doubling of the size halves them.
    """

    side: int = 7
    width: int = 32

    @nn.compact
    def __call__(self, x):
        if x.ndim == 2 or x.shape[1] < self.side:
            x = x.reshape(x.shape[0], -1)
            x = Dense(self.side**2 * self.width, kernel_init=kaiming_normal, name="project")(x)
            x = x.reshape(-1, self.side, self.side, self.width)
        else:
            x = Conv(self.width, (3, 3), name="conv")(x)
        if x.shape[1] == self.side:
            x = ConvTranspose(self.width // 2, name="deconv")(jax.nn.leaky_relu(x, SLOPE))
        return jax.nn.sigmoid(ConvTranspose(1, name="pixels")(jax.nn.leaky_relu(x, SLOPE)))


class UpConvolutions(nn.Module):
    """Images -> reconstructed images by layer name, from one `UpConvolution` for each layer of a network.

    Attributes:
      features: Function from images [B, H, W, C] to the network's features by layer name. The network is not trained.
      side: As in UpConvolution.
      width: As in UpConvolution.
    """

    features: Callable
    side: int = 7
    width: int = 32

    @nn.compact
    def __call__(self, x, train: bool = False):
        features = self.features(x).items()
        return {layer: UpConvolution(self.side, self.width, name=layer)(values) for layer, values in features}
