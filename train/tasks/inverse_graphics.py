"""The learning rule of inverse graphics: one factor varies in a mini-batch, and the latent variables that do not belong
to it are clamped to their mean (Kulkarni, Whitney, Kohli & Tenenbaum 2015, "Deep convolutional inverse graphics
network", section 3.2).

Here, there are two factors: a digit's rotation, which the first latent variable represents, and everything else about
the digit. The losses are as in tasks/reconstruction.py, with all examples of a mini-batch on one device.
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from train.tasks.reconstruction import bernoulli_nll, gaussian_kl, reparameterized

LIMIT = 45.0  # Rotations are between -LIMIT and LIMIT degrees.
ROTATING = 0.5  # Fraction of the mini-batches in which the rotation varies.


def rotated(images, degrees):
    """Images [B, H, W, C] rotated counterclockwise by `degrees` [B] about their centers, with linear interpolation and
    zeros outside the image."""
    height, width = images.shape[1:3]
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )

    def one(image, angle):
        cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
        source = [cos * rows + sin * columns + (height - 1) / 2, cos * columns - sin * rows + (width - 1) / 2]
        plane = functools.partial(map_coordinates, coordinates=source, order=1)
        return jax.vmap(plane, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(images, degrees)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def clamped(z, active, pull: float):
    """z [B, L] with the latent variables that are not `active`, bool [L], replaced by their mean over the mini-batch.

    In the backward pass, the gradient of an inactive variable is `pull` times its difference from that mean, which
    makes it invariant to the factor that varies; the gradient of an active variable is passed through.
    """
    return jnp.where(active[None], z, z.mean(0, keepdims=True))


def _clamped_forward(z, active, pull):
    return clamped(z, active, pull), (z, active)


def _clamped_backward(pull, kept, gradient):
    z, active = kept
    return jnp.where(active[None], gradient, pull * (z - z.mean(0, keepdims=True))), None


clamped.defvjp(_clamped_forward, _clamped_backward)


def one_factor(images, key):
    """(images [B, H, W, C], active [2]): a mini-batch in which one factor varies, drawn with `key`. It has either the
    first image in B rotations, with active = (True, False), or all images in one rotation, with (False, True)."""
    rotates = jax.random.bernoulli(jax.random.fold_in(key, 0), ROTATING)
    # Not 1, which is the number of the latent noise in _bound.
    degrees = jax.random.uniform(jax.random.fold_in(key, 2), (len(images),), minval=-LIMIT, maxval=LIMIT)
    images = jnp.where(rotates, images[:1], images)
    degrees = jnp.where(rotates, degrees, degrees[:1])
    return rotated(images, degrees), jnp.array([rotates, ~rotates])


def any_factors(images, keys):
    """Rotates each of the images [B, H, W, C] at random, with keys [B]."""
    draw = functools.partial(jax.random.uniform, minval=-LIMIT, maxval=LIMIT)
    return rotated(images, jax.vmap(draw)(keys))


def _bound(apply, images, keys, between):
    """The negative ELBO [B] in nats, with z -> between(z) between encoder and decoder."""
    mean, log_variance = apply(images, method="encode")
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 1), mean.shape[1:]))(keys)
    logits = apply(between(reparameterized(mean, log_variance, noise)), method="decode")
    error, kl = bernoulli_nll(logits, images), gaussian_kl(mean, log_variance)
    return error + kl, {"reconstruction": error, "kl": kl}


def one_factor_loss(apply, images, keys, *, pull: float, size: int):
    """The negative ELBO in nats of mini-batches of `one_factor`, `size` images each, with inactive latent variables
    `clamped`. A step averages over several mini-batches, because the gradients of one mini-batch of a single digit are
    noisy."""
    groups = images.reshape(-1, size, *images.shape[1:])
    groups, active = jax.vmap(one_factor)(groups, keys[::size])

    def between(z):
        is_active = jnp.where(jnp.arange(z.shape[1])[None] == 0, active[:, :1], active[:, 1:])
        clamp = jax.vmap(functools.partial(clamped, pull=pull))
        return clamp(z.reshape(-1, size, z.shape[1]), is_active).reshape(z.shape)

    return _bound(apply, groups.reshape(images.shape), keys, between)


def variational_loss(apply, images, keys):
    """The negative ELBO in nats of images in random rotations, without clamping."""
    return _bound(apply, any_factors(images, keys), keys, lambda z: z)
