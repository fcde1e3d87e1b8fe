"""DCGAN: a generator of transposed convolutions and a discriminator of strided convolutions.

Radford, Metz & Chintala 2016, "Unsupervised representation learning with deep convolutional generative adversarial
networks": no pooling, batch norm everywhere but at the generator's output and the discriminator's input, ReLU and at
the end tanh in the generator, leaky ReLU with slope 0.2 in the discriminator, weights from N(0, 0.02^2).

Two published forms, both for 64 pixels. The common one, PyTorch's dcgan example: 4x4 windows, 64 maps where pictures
are largest, latent vectors from N(0, 1). `authors`, as in their code: 5x5 windows, 128 maps, latent vectors even in
[-1, 1], batch norm of the generator's dense layer by unit, not by map. For 32 pixels the widest block of each is left
out.

`conditional`: a picture's class, one-hot, is put beside the latent vector and the maps of every layer, as the authors'
network for MNIST does (Mirza & Osindero 2014, "Conditional generative adversarial nets").
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models.initializers import normal
from models.layers import BatchNorm, Conv, ConvTranspose, Dense, relu
from models.model_spec import ModelSpec

LATENT = 100  # Numbers of a latent vector.
SIZES = (32, 64)  # Pixels a side.

_weights = normal(0.02)


def _gain(key, shape, dtype=jnp.float32):
    """N(1, 0.02^2), of batch norm."""
    return 1 + _weights(key, shape, dtype)


def latents(keys, *, authors: bool = False):
    """Latent vectors [B, LATENT] from one key for each."""
    draw = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0) if authors else jax.random.normal
    return jax.vmap(lambda key: draw(key, (LATENT,)))(keys)


def _beside(x, onehot):
    """`x` [B, ..., C] with the classes [B, K] as K more maps; `x` itself where these are None."""
    if onehot is None:
        return x
    maps = jnp.broadcast_to(onehot.reshape(len(x), *(1,) * (x.ndim - 2), -1), (*x.shape[:-1], onehot.shape[-1]))
    return jnp.concatenate([x, maps.astype(x.dtype)], -1)


def _blocks(size: int) -> list[int]:
    """Multiples of the width, from the largest pictures to the smallest, of 4 pixels."""
    return [2**i for i in range(size.bit_length() - 3)]


class Generator(nn.Module):
    """Latent vectors [B, LATENT] -> pictures [B, size, size, channels] in -1 .. 1."""

    size: int
    channels: int
    authors: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, z, onehot, train: bool):
        window, padding, width = (5, 2, 128) if self.authors else (4, 1, 64)
        norm = functools.partial(BatchNorm, use_running_average=not train, axis_name=self.axis_name, scale_init=_gain)
        deconv = functools.partial(ConvTranspose, window=window, padding=padding, kernel_init=_weights)
        *widths, widest = (width * multiple for multiple in _blocks(self.size))
        x = Dense(16 * widest, use_bias=False, kernel_init=_weights, name="project")(_beside(z, onehot))
        # In the common form this layer is a 4x4 transposed convolution of one pixel, with batch norm by map.
        x = x if self.authors else x.reshape(-1, 4, 4, widest)
        x = relu(norm(name="bn_project")(x)).reshape(-1, 4, 4, widest)
        for i, features in enumerate(reversed(widths), 1):
            x = relu(norm(name=f"bn{i}")(deconv(features, name=f"deconv{i}")(_beside(x, onehot))))
        return jnp.tanh(deconv(self.channels, name=f"deconv{len(widths) + 1}")(_beside(x, onehot)))


class Discriminator(nn.Module):
    """Pictures [B, size, size, channels] -> [B], the logit of a picture's being real."""

    size: int
    authors: bool
    axis_name: str | None

    @nn.compact
    def __call__(self, x, onehot, train: bool):
        window, padding, width = (5, 2, 128) if self.authors else (4, 1, 64)
        for i, multiple in enumerate(_blocks(self.size), 1):
            conv = Conv(
                width * multiple,
                (window, window),
                strides=(2, 2),
                padding=((padding, padding),) * 2,
                use_bias=False,
                kernel_init=_weights,
                name=f"conv{i}",
            )
            x = conv(_beside(x, onehot))
            if i > 1:
                norm = BatchNorm(
                    use_running_average=not train, axis_name=self.axis_name, scale_init=_gain, name=f"bn{i}"
                )
                x = norm(x)
            x = nn.leaky_relu(x, 0.2)
        x = _beside(x, onehot).reshape(x.shape[0], -1)
        return Dense(1, use_bias=False, kernel_init=_weights, name="logit")(x)[:, 0]


class DCGAN(nn.Module):
    """Both networks, under their names; for pictures of `size` x `size` pixels."""

    num_classes: int
    size: int = 64
    channels: int = 3
    authors: bool = False
    conditional: bool = False
    axis_name: str | None = None
    sync_bn: bool = True

    def setup(self):
        axis = self.axis_name if self.sync_bn else None
        self.generator = Generator(self.size, self.channels, self.authors, axis)
        self.discriminator = Discriminator(self.size, self.authors, axis)

    def _onehot(self, labels):
        return jax.nn.one_hot(labels, self.num_classes) if self.conditional else None

    def generate(self, z, labels, train: bool = False):
        return self.generator(z, self._onehot(labels), train)

    def discriminate(self, x, labels, train: bool = False):
        return self.discriminator(x, self._onehot(labels), train)

    def __call__(self, x, train: bool = False):
        """The discriminator's logits [B] of pictures [B, size, size, channels] of the first class, after the generator
        has made as many: for initial weights and tables of layers."""
        labels = jnp.zeros(len(x), jnp.int32)
        self.generate(jnp.zeros((len(x), LATENT)), labels, train)
        return self.discriminate(x, labels, train)


SPECS = {"dcgan": ModelSpec(module=DCGAN, task="generation", image_shape=(64, 64, 3))}
