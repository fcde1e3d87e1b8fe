"""A small vision transformer (Vaswani et al. 2017, "Attention is all you need"; Dosovitskiy et al. 2020, "An image is
worth 16x16 words")."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.errors import ModelError
from models.initializers import normal
from models.layers import Dense, Dropout, gelu
from models.model_spec import ModelSpec


def attention(queries_BQHD, keys_BKHD, values_BKHD):
    """softmax(Q K^T / sqrt(D)) V for each of H heads (Vaswani et al. 2017, eq. 1).

    Returns:
      (outputs [B, Q, H, D], weights [B, H, Q, K]). The weights of each query sum to 1.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries_BQHD, keys_BKHD) * queries_BQHD.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values_BKHD), weights


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens [B, T, width] (Vaswani et al. 2017, section 3.2.2). The attention weights
    [B, heads, T, T] are sown as the intermediate "weights"."""

    heads: int

    @nn.compact
    def __call__(self, x_BTE):
        width = x_BTE.shape[-1]
        split = Dense(3 * width, name="qkv")(x_BTE).reshape(*x_BTE.shape[:2], 3, self.heads, width // self.heads)
        mixed, weights = attention(*(lax.index_in_dim(split, i, 2, keepdims=False) for i in range(3)))
        self.sow("intermediates", "weights", weights)
        return Dense(width, name="out")(mixed.reshape(x_BTE.shape))


class Block(nn.Module):
    """A block of the encoder, [B, T, width] -> the same shape: self-attention and an MLP with one hidden layer, each
    with layer norm before it and a residual connection around it (Dosovitskiy et al. 2020, eq. 2 and 3)."""

    heads: int
    dropout: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train: bool):
        width = x.shape[-1]
        mixed = SelfAttention(self.heads, name="attention")(nn.LayerNorm(name="norm1")(x))
        x = x + Dropout(self.dropout, self.axis_name)(mixed, train)
        hidden = gelu(Dense(4 * width, name="dense1")(nn.LayerNorm(name="norm2")(x)))
        return x + Dropout(self.dropout, self.axis_name)(Dense(width, name="dense2")(hidden), train)


class Tokens(nn.Module):
    """Prepends the class token to the patches [B, T, width] and adds position embeddings: [B, 1 + T, width]."""

    @nn.compact
    def __call__(self, x):
        batch, patches, width = x.shape
        token = self.param("class_token", normal(0.02), (1, 1, width)).astype(x.dtype)
        positions = self.param("positions", normal(0.5), (1, 1 + patches, width)).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x], axis=1) + positions


class ViT(nn.Module):
    """Images [B, H, W, C] whose sides are multiples of `patch` -> logits [B, num_classes].

    | layer           | output for 28x28x1 pixels |                                          |
    |-----------------|---------------------------|------------------------------------------|
    | patches         | 49x64                     | dense layer on the pixels of each patch  |
    | tokens          | 50x64                     | class token, position embeddings         |
    | block1 to block4| 50x64                     | self-attention with 4 heads, MLP         |
    | logits          | num_classes               | layer norm and dense, on the class token |

    It is smaller than the ViTs of the paper and than DeiT's ViT-Ti, which has 192 channels and 12 blocks. For 28x28x1
    pixels and ten classes there are 205,066 parameters and 9,881,216 multiply-adds in dense layers; the products of
    queries, keys and values are another 1,280,000. Weights are initialized by Glorot's rule, the class token from
    N(0, 0.02^2) and the position embeddings from N(0, 0.5^2): with 0.02 for both, positions are learned late in a short
    run (mnist5k, two blocks, 400 steps: accuracy 88.3 instead of 93.7 %). Raises ModelError for images of other sizes,
    or if `heads` does not divide `width`.

    Attributes:
      num_classes: Number of classes.
      patch: Side of a patch in pixels.
      width: Channels of a token.
      heads: Heads of each block.
      blocks: Number of blocks.
      dropout: Dropout rate of the output of each residual branch.
      axis_name: Mesh axis for dropout's keys.
    """

    num_classes: int
    patch: int = 4
    width: int = 64
    heads: int = 4
    blocks: int = 4
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        batch, height, width, channels = x.shape
        if height % self.patch or width % self.patch:
            raise ModelError(
                f"vit_tiny needs images whose sides are multiples of {self.patch} pixels, not {height}x{width}"
            )
        if self.width % self.heads:
            raise ModelError(f"vit_tiny needs a width that is a multiple of its {self.heads} heads, not {self.width}")
        down, across = height // self.patch, width // self.patch
        x = x.reshape(batch, down, self.patch, across, self.patch, channels).swapaxes(2, 3)
        x = Dense(self.width, name="patches")(x.reshape(batch, down * across, -1))
        x = Tokens(name="tokens")(x)
        for i in range(1, self.blocks + 1):
            x = Block(self.heads, self.dropout, self.axis_name, name=f"block{i}")(x, train)
        class_token = lax.index_in_dim(x, 0, 1, keepdims=False)
        return Dense(self.num_classes, name="logits")(nn.LayerNorm(name="norm")(class_token))


TinyViT = functools.partial(ViT, width=8, heads=2, blocks=1)  # For tests.


def first_filters(params, batch_stats):
    """The weights from the pixels of a patch to its token, [patch, patch, C, width], for the default patch size."""
    del batch_stats
    kernel = np.asarray(params["patches"]["kernel"])
    return kernel.reshape(ViT.patch, ViT.patch, -1, kernel.shape[1])


SPECS = {"vit_tiny": ModelSpec(module=ViT, first_filters=first_filters)}
