"""Augmentation and normalisation on the device, inside jit, drawn for each image alone."""

import jax
import jax.numpy as jnp


def normalize(images, mean, std):
    """uint8 [B, H, W, C] -> float32 with mean 0 and variance 1 by channel; `mean` and `std` are on 0 to 255."""
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)) / jnp.asarray(
        std, jnp.float32
    ).reshape(1, 1, 1, -1)


def digits(images, keys, *, shift: float = 2.0, degrees: float = 12.0, scale: float = 0.1):
    """A small random shift (pixels), rotation and scaling of each image [B, H, W, C] -> float32 (bilinear).

    `keys` [B] holds one key an image.
    """
    height, width = images.shape[1:3]

    def warp(image_HWC, key):
        random = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        angle, factor = jnp.deg2rad(degrees) * random[2], 1.0 + scale * random[3]
        y, x = jnp.mgrid[:height, :width]
        y, x = y - (height - 1) / 2, x - (width - 1) / 2
        cos, sin = factor * jnp.cos(angle), factor * jnp.sin(angle)
        y, x = cos * y - sin * x + shift * random[0], sin * y + cos * x + shift * random[1]
        y, x = y + (height - 1) / 2, x + (width - 1) / 2
        top, left = jnp.floor(y), jnp.floor(x)
        down, right = (y - top)[..., None], (x - left)[..., None]
        padded = jnp.pad(image_HWC, ((1, 2), (1, 2), (0, 0)))
        i = jnp.clip(top.astype(jnp.int32) + 1, 0, height + 1)
        j = jnp.clip(left.astype(jnp.int32) + 1, 0, width + 1)
        upper = padded[i, j] * (1 - right) + padded[i, j + 1] * right
        lower = padded[i + 1, j] * (1 - right) + padded[i + 1, j + 1] * right
        return upper * (1 - down) + lower * down

    return jax.vmap(warp)(images.astype(jnp.float32), keys)


AUGMENTATIONS = {"digits": digits, "none": None}
