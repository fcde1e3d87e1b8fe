"""Data augmentation, drawn independently for each image, and normalization; both run on the device inside jit."""

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images, mean, std):
    """uint8 [B, H, W, C] -> float32 with mean 0 and variance 1 per channel; `mean` and `std` are in 0 to 255."""
    return (images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32).reshape(1, 1, 1, -1)) / jnp.asarray(
        std, jnp.float32
    ).reshape(1, 1, 1, -1)


def digits(images, keys, *, shift: float = 2.0, degrees: float = 12.0, scale: float = 0.1):
    """Randomly shifts (by pixels), rotates and scales each image [B, H, W, C] slightly -> float32 (bilinear).

    `keys` [B] has one key per image.
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


# Augmentations of the same image use separate keys: jax.random.split(key, n)[i] equals fold_in(key, i), and the other
# functions here split a key into at most three.
NOISE_KEY = 3
MIX_KEY = 4


def colour_noise(images, keys, *, covariance, std, scale: float):
    """Adds PCA color noise to normalized images [B, H, W, C]: for each image, a random multiple from N(0, scale^2) of
    each principal component of the pixel colors, times the component's standard deviation. Krizhevsky, Sutskever &
    Hinton 2012, section 4.1, use the eigenvalue instead; on the scale 0 to 255, that noise would dominate the image.

    `covariance` [C, C] and `std` [C] are on the scale 0 to 255; `keys` [B] has one key per image.
    """
    variances, components = np.linalg.eigh(np.asarray(covariance))
    directions = jnp.asarray(components * np.sqrt(variances.clip(0)) / np.asarray(std)[:, None], jnp.float32)

    def draw(key):
        return directions @ (scale * jax.random.normal(jax.random.fold_in(key, NOISE_KEY), variances.shape))

    return images + jax.vmap(draw)(keys)[:, None, None]


def flip_shift(images, keys, *, shift: int = 4, reflect: bool = False, cutout: int = 0, flip: bool = True):
    """Randomly mirrors (if `flip`) and shifts each image [B, H, W, C] by up to `shift` pixels, with zero or reflection
    padding; then sets a square of `cutout` pixels to zero (DeVries & Taylor 2017), if `cutout` is greater than 0.

    On normalized images zero is the mean. `keys` [B] has one key per image.
    """
    height, width = images.shape[1:3]

    def change(image_HWC, key):
        flip_key, shift_key, cut_key = jax.random.split(key, 3)
        if flip:
            image_HWC = jnp.where(jax.random.bernoulli(flip_key), image_HWC[:, ::-1], image_HWC)
        pads = ((shift, shift), (shift, shift), (0, 0))
        padded = jnp.pad(image_HWC, pads, mode="reflect" if reflect else "constant")
        y, x = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        image_HWC = jax.lax.dynamic_slice(padded, (y, x, 0), image_HWC.shape)
        if cutout:
            top, left = jax.random.uniform(cut_key, (2,)) * jnp.array([height, width]) - cutout / 2
            rows, columns = jnp.arange(height), jnp.arange(width)
            inside_H, inside_W = (rows >= top) & (rows < top + cutout), (columns >= left) & (columns < left + cutout)
            inside = inside_H[:, None, None] & inside_W[None, :, None]
            image_HWC = jnp.where(inside, jnp.zeros_like(image_HWC), image_HWC)
        return image_HWC

    return jax.vmap(change)(images, keys)


def flip_crop(images, keys, *, size: int):
    """Mirrors and crops each image at random, [B, H, W, C] -> [B, size, size, C]."""

    def change(image_HWC, key):
        flip_key, crop_key = jax.random.split(key)
        image_HWC = jnp.where(jax.random.bernoulli(flip_key), image_HWC[:, ::-1], image_HWC)
        limits = jnp.array([image_HWC.shape[0] - size + 1, image_HWC.shape[1] - size + 1])
        y, x = jax.random.randint(crop_key, (2,), 0, limits)
        return jax.lax.dynamic_slice(image_HWC, (y, x, 0), (size, size, image_HWC.shape[-1]))

    return jax.vmap(change)(images, keys)


def flip_crop_pair(images, labels, keys, *, size: tuple[int, int], flip: bool):
    """Mirrors (if `flip`) and crops each image [B, H, W, C] and its labels [B, H, W] in the same random way to `size`
    (height, width)."""

    def change(image_HWC, label_HW, key):
        flip_key, crop_key = jax.random.split(key)
        if flip:
            turned = jax.random.bernoulli(flip_key)
            image_HWC = jnp.where(turned, image_HWC[:, ::-1], image_HWC)
            label_HW = jnp.where(turned, label_HW[:, ::-1], label_HW)
        limits = jnp.array([side - wanted + 1 for side, wanted in zip(label_HW.shape, size, strict=True)])
        y, x = jax.random.randint(crop_key, (2,), 0, limits)
        image_HWC = jax.lax.dynamic_slice(image_HWC, (y, x, 0), (*size, image_HWC.shape[-1]))
        return image_HWC, jax.lax.dynamic_slice(label_HW, (y, x), size)

    return jax.vmap(change)(images, labels, keys)


def symmetric_beta(key, alpha: float):
    """A random number from Beta(alpha, alpha), computed from two uniform ones (Devroye 1996, "Random variate generation
    in one line of code"). With jax.random.beta, which samples by rejection, the step compiles 1.4 s longer."""
    u, v = jax.random.uniform(key, (2,))
    power, cosine = u ** (1 / alpha), jnp.cos(2 * jnp.pi * v)
    far = (1 - power) * cosine**2
    return 0.5 + 0.5 * jnp.sign(cosine) * jnp.sqrt(far / (power + far))


def mix(images, labels, keys, *, mixup: float = 0.0, cutmix: float = 0.0):
    """Mixes each image [B, H, W, C] with its partner: images 2 i and 2 i + 1 of the batch are partners, so that the
    result does not depend on how the batch is split over devices. B must be even.

    mixup (Zhang et al. 2018) averages both images, with the weight lambda from Beta(mixup, mixup) for the image itself.
    CutMix (Yun et al. 2019) pastes a box of the partner: its center is uniform, its sides are sqrt(1 - lambda) of the
    image's, with lambda from Beta(cutmix, cutmix), and it is clipped at the border. If both are greater than 0, each
    image is mixed by one of them, at random with equal probability (as with `mode="elem"` in timm's Mixup).

    Returns:
      The mixed images, and (the partners' labels [B], the weights [B] of the images' own labels). With CutMix, the
      weight is the fraction of the pixels outside the box.
    """
    height, width = images.shape[1:3]

    def own_share(key):
        """The share of the image itself in each pixel [H, W], and its mean."""
        choice_key, weight_key, center_key = jax.random.split(jax.random.fold_in(key, MIX_KEY), 3)
        found = []
        if mixup:
            weight = symmetric_beta(weight_key, mixup)
            found.append((jnp.full((height, width), weight), weight))
        if cutmix:
            half = 0.5 * jnp.sqrt(1 - symmetric_beta(weight_key, cutmix))
            y, x = jax.random.uniform(center_key, (2,))
            inside_H = jnp.abs((jnp.arange(height) + 0.5) / height - y) < half
            inside_W = jnp.abs((jnp.arange(width) + 0.5) / width - x) < half
            outside = jnp.where(inside_H[:, None] & inside_W[None, :], 0.0, 1.0)
            found.append((outside, outside.mean()))
        if len(found) == 1:
            return found[0]
        return jax.tree.map(lambda a, b: jnp.where(jax.random.bernoulli(choice_key), a, b), *found)

    def partners(x):
        return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

    share_BHW, weight_B = jax.vmap(own_share)(keys)
    share = share_BHW[..., None]
    return share * images + (1 - share) * partners(images), (partners(labels), weight_B)


def flip_views(images):
    """Each image and its mirror image, [B, H, W, C] -> [2, B, H, W, C]."""
    return jnp.stack([images, jnp.flip(images, 2)])


def flip_shift_views(images):
    """Each image, the image moved by one pixel down and right or up and left, with reflection padding, and the mirror
    images of all three, [B, H, W, C] -> [6, B, H, W, C] (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3)."""
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = [jax.lax.slice(padded, (0, i, i, 0), (batch, i + height, i + width, channels)) for i in (0, 2)]
    return flip_views(jnp.concatenate([images, *moved])).reshape(6, *images.shape)


def ten_views(images, size: int):
    """The crops of `size` pixels at the four corners and the center and their mirror images, [B, H, W, C] ->
    [10, B, size, size, C] (Krizhevsky, Sutskever & Hinton 2012, section 4.1)."""
    bottom, right = images.shape[1] - size, images.shape[2] - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = jnp.concatenate([_crop(images, place, size) for place in corners])
    return flip_views(crops).reshape(10, -1, size, size, images.shape[-1])


def center_crop(images, size: int):
    """The central `size` x `size` pixels of images [B, H, W, C]."""
    top, left = ((side - size) // 2 for side in images.shape[1:3])
    return _crop(images, (top, left), size)


def _crop(images, place: tuple[int, int], size: int):
    """The `size` x `size` pixels of images [B, H, W, C] from `place` = (top, left). For a symbolic batch size, as in an
    export, NumPy's notation would become a gather."""
    ends = (images.shape[0], *(start + size for start in place), images.shape[3])
    return jax.lax.slice(images, (0, *place, 0), ends)
