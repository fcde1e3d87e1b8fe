"""The deep convolutional inverse graphics network."""

import flax.linen as nn
import jax.numpy as jnp

from models.initializers import kaiming_normal
from models.layers import Conv, ConvTranspose, Dense, relu


class InverseGraphics(nn.Module):
    """A convolutional variational autoencoder (Kulkarni, Whitney, Kohli & Tenenbaum 2015, "Deep convolutional inverse
    graphics network"), whose first latent variables are trained to represent one known factor each.

    | encoder       | output for 28x28 pixels | decoder       | output    |
    |---------------|-------------------------|---------------|-----------|
    | conv1, 5x5    | 14x14x8                 | project       | 7x7x16    |
    | conv2, 5x5    | 7x7x16                  | deconv1, 4x4  | 14x14x8   |
    | dense         | 64                      | deconv2, 4x4  | 28x28x1   |
    | code          | 2 x latent              |               |           |

    Convolutions have stride 2, in place of the paper's pooling and upsampling; ReLU follows all layers except the last
    of each half. Images are [B, H, W, 1] with pixels in [0, 1] and sides that are multiples of 4.

    Attributes:
      side: Side of the images in pixels.
      latent: Number of latent variables.
      width: Channels of the smallest feature maps.
      hidden: Units of the encoder's dense layer.
    """

    side: int = 28
    latent: int = 10
    width: int = 16
    hidden: int = 64

    def setup(self):
        self.conv1 = Conv(self.width // 2, (5, 5), strides=2)
        self.conv2 = Conv(self.width, (5, 5), strides=2)
        self.dense = Dense(self.hidden, kernel_init=kaiming_normal)
        self.code = Dense(2 * self.latent, kernel_init=kaiming_normal)
        self.project = Dense((self.side // 4) ** 2 * self.width, kernel_init=kaiming_normal)
        self.deconv1, self.deconv2 = ConvTranspose(self.width // 2), ConvTranspose(1)

    def encode(self, x):
        """[B, H, W, 1] -> (mean, log variance), [B, latent] each."""
        x = relu(self.conv2(relu(self.conv1(x))))
        return jnp.split(self.code(relu(self.dense(x.reshape(x.shape[0], -1)))), 2, axis=-1)

    def decode(self, z):
        """[B, latent] -> logits [B, H, W, 1]."""
        x = relu(self.project(z)).reshape(-1, self.side // 4, self.side // 4, self.width)
        return self.deconv2(relu(self.deconv1(x)))

    def __call__(self, x, train: bool = False):
        return self.decode(self.encode(x)[0])
