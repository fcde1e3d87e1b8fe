"""DCGAN: a generator of transposed convolutions and a discriminator of strided convolutions (Radford, Metz & Chintala
2016, "Unsupervised representation learning with deep convolutional generative adversarial networks").

There is no pooling. Batch norm follows every layer except the generator's output and the discriminator's input. The
generator has ReLU, and tanh at the output; the discriminator has leaky ReLU with slope 0.2. Weights are initialized
from N(0, 0.02^2).

There are two published variants, both for images of 64x64 pixels. The common one, PyTorch's dcgan example, has 4x4
windows, 64 channels in the layers of highest resolution and latent vectors from N(0, 1). The authors' code (`authors`)
has 5x5 windows, 128 channels, latent vectors from U(-1, 1), and batch norm per unit, not per channel, after the
generator's dense layer. For 32x32 pixels, the widest block of each network is omitted.

With `conditional` the one-hot class is concatenated to the latent vector and to the input channels of every layer, as
in the authors' network for MNIST (Mirza & Osindero 2014, "Conditional generative adversarial nets").
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.initializers import normal
from models.layers import BatchNorm, Conv, ConvTranspose, Dense, batch_norm, norm_relu
from models.model_spec import ModelSpec

LATENT = 100  # Dimension of the latent vectors.
SIZES = (32, 64)  # Supported image sizes in pixels.

_weights = normal(0.02)


def _gain(key, shape, dtype=jnp.float32):
    """Draws batch norm's scale from N(1, 0.02^2)."""
    return 1 + _weights(key, shape, dtype)


def latents(keys, *, authors: bool = False):
    """Draws latent vectors [B, LATENT], one from each of the keys [B]."""
    draw = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0) if authors else jax.random.normal
    return jax.vmap(lambda key: draw(key, (LATENT,), jnp.float32))(keys)


def _beside(x, onehot):
    """Concatenates one-hot classes [B, K] to x [B, ..., C] as K channels. Returns x if `onehot` is None."""
    if onehot is None:
        return x
    maps = jnp.broadcast_to(onehot.reshape(x.shape[0], *(1,) * (x.ndim - 2), -1), (*x.shape[:-1], onehot.shape[-1]))
    return jnp.concatenate([x, maps.astype(x.dtype)], -1)


def _blocks(size: int) -> list[int]:
    """Returns the width multipliers of the blocks, from the highest resolution to the lowest, 4x4 pixels."""
    return [2**i for i in range(size.bit_length() - 3)]


class Generator(nn.Module):
    """Latent vectors [B, LATENT] -> images [B, size, size, channels] in [-1, 1]."""

    size: int
    channels: int
    authors: bool
    width: int | None
    axis_name: str | None

    @nn.compact
    def __call__(self, z, onehot, train: bool):
        window, padding, width = (5, 2, self.width or 128) if self.authors else (4, 1, self.width or 64)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=self.axis_name, scale_init=_gain)
        deconv = functools.partial(ConvTranspose, window=window, padding=padding, kernel_init=_weights)
        *widths, widest = (width * multiple for multiple in _blocks(self.size))
        x = Dense(16 * widest, use_bias=False, kernel_init=_weights, name="project")(_beside(z, onehot))
        # In the common variant this layer is a 4x4 transposed convolution of a 1x1 input, with batch norm per channel.
        x = x if self.authors else x.reshape(-1, 4, 4, widest)
        x = norm_relu(norm(name="bn_project"), x).reshape(-1, 4, 4, widest)
        for i, features in enumerate(reversed(widths), 1):
            x = deconv(features, name=f"deconv{i}")(_beside(x, onehot))
            x = norm_relu(norm(name=f"bn{i}"), x)
        return jnp.tanh(deconv(self.channels, name=f"deconv{len(widths) + 1}")(_beside(x, onehot)))


class Discriminator(nn.Module):
    """Images [B, size, size, channels] -> logits [B] of the probability that an image is real."""

    size: int
    authors: bool
    width: int | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x, onehot, train: bool):
        window, padding, width = (5, 2, self.width or 128) if self.authors else (4, 1, self.width or 64)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=self.axis_name, scale_init=_gain)
        conv = functools.partial(
            Conv, kernel_size=(window, window), strides=2, padding=padding, use_bias=False, kernel_init=_weights
        )
        for i, multiple in enumerate(_blocks(self.size), 1):
            x = conv(width * multiple, name=f"conv{i}")(_beside(x, onehot))
            x = batch_norm(norm(name=f"bn{i}"), x, slope=0.2) if i > 1 else nn.leaky_relu(x, 0.2)
        x = _beside(x, onehot).reshape(x.shape[0], -1)
        return Dense(1, use_bias=False, kernel_init=_weights, name="logit")(x)[:, 0]


class DCGAN(nn.Module):
    """Generator and discriminator for images of `size` x `size` pixels.

    | generator, 64x64 pixels  | discriminator            |
    |--------------------------|--------------------------|
    | project, 4x4x512         | conv1, 32x32x64, without batch norm |
    | deconv1, 8x8x256         | conv2, 16x16x128         |
    | deconv2, 16x16x128       | conv3, 8x8x256           |
    | deconv3, 32x32x64        | conv4, 4x4x512           |
    | deconv4, 64x64x3, tanh without batch norm | logit   |

    This is the common variant; all windows are 4x4 with stride 2. For 64x64 pixels of three channels there are
    6,342,272 parameters and 208,445,440 multiply-adds.

    Attributes:
      num_classes: Number of classes, used if `conditional`.
      size: Side of the images in pixels, 32 or 64.
      channels: Channels of the images.
      authors: Use the authors' variant.
      conditional: Condition both networks on the class.
      width: Channels of the layers of highest resolution; None selects the variant's width. There is no flag for it.
      axis_name: Mesh axis for batch statistics.
      sync_bn: Average batch statistics over `axis_name`.
    """

    num_classes: int
    size: int = 64
    channels: int = 3
    authors: bool = False
    conditional: bool = False
    width: int | None = None
    axis_name: str | None = None
    sync_bn: bool = True

    def setup(self):
        axis = self.axis_name if self.sync_bn else None
        common: dict[str, Any] = {"size": self.size, "authors": self.authors, "width": self.width, "axis_name": axis}
        self.generator = Generator(channels=self.channels, **common)
        self.discriminator = Discriminator(**common)

    def _onehot(self, labels):
        return jax.nn.one_hot(labels, self.num_classes) if self.conditional else None

    def generate(self, z, labels, train: bool = False):
        return self.generator(z, self._onehot(labels), train)

    def discriminate(self, x, labels, train: bool = False):
        return self.discriminator(x, self._onehot(labels), train)

    def __call__(self, x, train: bool = False):
        """Calls the generator and then the discriminator on images of the first class, [B, size, size, channels] ->
        logits [B]. Used for initialization and summaries."""
        labels = jnp.zeros(len(x), jnp.int32)
        self.generate(jnp.zeros((len(x), LATENT), x.dtype), labels, train)
        return self.discriminate(x, labels, train)


SPECS = {"dcgan": ModelSpec(module=functools.partial(DCGAN, width=None), task="generation", image_shape=(64, 64, 3))}
