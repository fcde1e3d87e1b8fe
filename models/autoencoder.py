"""Networks of dense layers that reconstruct their input from a code: an autoencoder, a sparse and a variational one.

Images are [B, *shape] with pixels in 0 .. 1; `encode` and `decode` are methods for `apply`.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.initializers import kaiming_normal, normal
from models.layers import Dense, relu
from models.model_spec import ModelSpec


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    return [Dense(size, kernel_init=kaiming_normal) for size in sizes]


def _through(layers, x):
    """x [B, M] through the layers, with a ReLU after each but the last."""
    for layer in layers[:-1]:
        x = relu(layer(x))
    return layers[-1](x)


class Autoencoder(nn.Module):
    """Images -> images in 0 .. 1, through a code of few units (Hinton & Salakhutdinov 2006, "Reducing the
    dimensionality of data with neural networks"). The output layer has sigmoids.

    Attributes:
      shape: (H, W, C) of the images.
      code: Units of the code. They are linear, or rectified if there are no hidden layers.
      hidden: Units of the encoder's hidden layers; the decoder has them in reverse.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    code: int = 32
    hidden: Sequence[int] = (256,)

    def setup(self):
        self.encoder = _layers((*self.hidden, self.code))
        self.decoder = _layers((*reversed(self.hidden), math.prod(self.shape)))

    def encode(self, x):
        """[B, H, W, C] -> [B, code]."""
        code = _through(self.encoder, x.reshape(x.shape[0], -1))
        return code if self.hidden else relu(code)

    def decode(self, code):
        """[B, code] -> [B, H, W, C]."""
        return jax.nn.sigmoid(_through(self.decoder, code)).reshape(-1, *self.shape)

    def __call__(self, x, train: bool = False):
        return self.decode(self.encode(x))


class DenoisingAutoencoder(Autoencoder):
    """An autoencoder for images with noise (Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and composing
    robust features with denoising autoencoders"): without hidden layers its filters can be looked at, and the noise
    keeps a large code from being a copy of the image."""

    code: int = 256
    hidden: Sequence[int] = ()


class SparseAutoencoder(nn.Module):
    """Images -> images as a sum of few out of many learned parts, one a unit of the code (Ranzato, Poultney, Chopra &
    LeCun 2007, "Efficient learning of sparse representations with an energy-based model").

    The code is rectified, so that most units can be exactly zero. Each part has norm 1: a penalty on the code could
    otherwise be evaded by a small code with large parts. A unit's weights in the encoder are its part: with weights of
    their own most units would soon be zero for all images, and stay so.

    Attributes:
      shape: (H, W, C) of the images.
      code: Units of the code.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    code: int = 256

    def setup(self):
        pixels = math.prod(self.shape)
        self.directions = self.param("directions", normal(1.0), (self.code, pixels))
        self.offset = self.param("offset", nn.initializers.zeros, (pixels,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.code,))

    def parts(self):
        """The parts [code, H * W * C], of norm 1 each."""
        return self.directions / jnp.linalg.norm(self.directions, axis=1, keepdims=True)

    def encode(self, x):
        """[B, H, W, C] -> [B, code], not negative."""
        return relu((x.reshape(x.shape[0], -1) - self.offset[None]) @ self.parts().T + self.bias[None])

    def decode(self, code):
        """[B, code] -> [B, H, W, C], not bounded."""
        return (code @ self.parts() + self.offset[None]).reshape(-1, *self.shape)

    def __call__(self, x, train: bool = False):
        return self.decode(self.encode(x))

    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Multiply-adds for one image of that shape."""
        return 2 * self.code * math.prod(shape)


class VariationalAutoencoder(nn.Module):
    """A distribution of binary images with latent variables z from N(0, 1) (Kingma & Welling 2013, "Auto-encoding
    variational Bayes"): a decoder gives the logits of p(x | z), an encoder the mean and the logarithm of the variance
    of a normal distribution q(z | x) with independent components.

    Attributes:
      shape: (H, W, C) of the images.
      code: Number of latent variables.
      hidden: Units of the encoder's hidden layers; the decoder has them in reverse.
    """

    shape: tuple[int, int, int] = (28, 28, 1)
    code: int = 20
    hidden: Sequence[int] = (256,)

    def setup(self):
        self.encoder = _layers((*self.hidden, 2 * self.code))
        self.decoder = _layers((*reversed(self.hidden), math.prod(self.shape)))

    def encode(self, x):
        """[B, H, W, C] -> (mean, log variance), [B, code] each."""
        return jnp.split(_through(self.encoder, x.reshape(x.shape[0], -1)), 2, axis=-1)

    def decode(self, z):
        """[B, code] -> logits [B, H, W, C]."""
        return _through(self.decoder, z).reshape(-1, *self.shape)

    def __call__(self, x, train: bool = False):
        """The pixels' probabilities at the mean of q(z | x)."""
        return jax.nn.sigmoid(self.decode(self.encode(x)[0]))


SPECS = {
    "autoencoder": ModelSpec(module=Autoencoder, task="reconstruction"),
    "denoising": ModelSpec(module=DenoisingAutoencoder, task="reconstruction"),
    "sparse": ModelSpec(module=SparseAutoencoder, task="reconstruction"),
    "variational": ModelSpec(module=VariationalAutoencoder, task="reconstruction"),
}
