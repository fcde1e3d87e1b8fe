"""Dense autoencoders: plain, sparse and variational.

Images are [B, *shape] with pixels in [0, 1]. Call `encode` and `decode` with `apply(..., method=...)`.
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
    """Applies the layers to x [B, M], with ReLU after each layer except the last."""
    for layer in layers[:-1]:
        x = relu(layer(x))
    return layers[-1](x)


class Autoencoder(nn.Module):
    """Images -> reconstructed images in [0, 1], through a code of few units (Hinton & Salakhutdinov 2006, "Reducing the
    dimensionality of data with neural networks"). The output activation is the sigmoid. Differences from the paper:
    hidden units have ReLU instead of the sigmoid, and the layers are not pretrained as restricted Boltzmann machines.

    Attributes:
      shape: (H, W, C) of the images.
      code: Units of the code; linear, or with ReLU if there are no hidden layers.
      hidden: Units of the encoder's hidden layers; the decoder has the same sizes in reverse order.
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
    """An autoencoder that is trained on noisy images (Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and
    composing robust features with denoising autoencoders"). It has no hidden layers, so its filters can be displayed;
    the noise prevents a large code from copying the image. Differences from the paper: the code has ReLU instead of the
    sigmoid, encoder and decoder do not share weights, and training minimizes the squared error."""

    code: int = 256
    hidden: Sequence[int] = ()


class SparseAutoencoder(nn.Module):
    """Reconstructs images as sparse weighted sums of learned parts, one part per unit of the code (Ranzato, Poultney,
    Chopra & LeCun 2007, "Efficient learning of sparse representations with an energy-based model").

    The code is rectified, so that most units can be exactly zero. Each part has norm 1; otherwise a small code with
    large parts could evade a penalty on the code. Encoder and decoder share their weights; with separate weights, most
    units would soon be zero for all images and stay zero.

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
        """The parts [code, H * W * C], each with norm 1."""
        return self.directions / jnp.linalg.norm(self.directions, axis=1, keepdims=True)

    def encode(self, x):
        """[B, H, W, C] -> [B, code], non-negative."""
        return relu((x.reshape(x.shape[0], -1) - self.offset[None]) @ self.parts().T + self.bias[None])

    def decode(self, code):
        """[B, code] -> [B, H, W, C], unbounded."""
        return (code @ self.parts() + self.offset[None]).reshape(-1, *self.shape)

    def __call__(self, x, train: bool = False):
        return self.decode(self.encode(x))

    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Multiply-adds for one image of that shape."""
        return 2 * self.code * math.prod(shape)


class VariationalAutoencoder(nn.Module):
    """A generative model of binary images with latent variables z from N(0, 1) (Kingma & Welling 2013, "Auto-encoding
    variational Bayes"): a decoder returns the logits of p(x | z), an encoder the mean and the log variance of a normal
    distribution q(z | x) with independent components. Difference from the paper: hidden units have ReLU instead of
    tanh.

    Attributes:
      shape: (H, W, C) of the images.
      code: Number of latent variables.
      hidden: Units of the encoder's hidden layers; the decoder has the same sizes in reverse order.
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
