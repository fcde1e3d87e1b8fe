"""Networks of transposed convolutions that make images from the features of another network."""

from collections.abc import Callable

import flax.linen as nn
import jax

from models.initializers import kaiming_normal
from models.layers import Conv, ConvTranspose, Dense

SLOPE = 0.2  # Of the leaky ReLU, as in the paper.


class UpConvolution(nn.Module):
    """Features [B, h, w, C] or [B, M] -> images [B, 4 side, 4 side, 1] in 0 .. 1 (Dosovitskiy & Brox 2015, "Inverting
    visual representations with convolutional networks").

    Vectors and maps smaller than `side` go through a dense layer to side x side x width first; maps of `side` or twice
    as many pixels through a 3x3 convolution. Then transposed convolutions double the size, with leaky ReLU before each.

    Attributes:
      side: Side of the maps in pixels before the last two doublings.
      width: Their channels, half as many after a doubling.
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
    """Images -> images by layer, reconstructed by one `UpConvolution` for each layer of a network.

    Attributes:
      features: Images [B, H, W, C] -> features by layer, of the network, which is not trained.
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
