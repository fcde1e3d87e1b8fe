"""digit_scenes: synthetic scenes of 64x64 pixels for segmentation into the digits of mnist5k and background.

A scene has three to six digits on smooth noise, scaled by 0.8 to 1.3 and placed at random entirely inside the scene;
later digits cover earlier ones. Training scenes are generated at each step from the 4,000 training digits. The 500 test
scenes, made of the 1,000 test digits, and the 500 val scenes, made of digits held out from training, are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from data import mnist5k
from data.dataset import Dataset, hold_out

SIDE, FIXED_SCENES, SEEDS = 64, 500, {"test": 0, "val": 1}
FEWEST, MOST = 3, 6
CLASSES = ("background", *map(str, range(10)))
# Class weights of the loss. Digits cover a tenth of a scene: a background weight of 1 suppresses them, and a weight
# below 0.3 makes them too large.
WEIGHTS = (0.3, *[1.0] * 10)
INK = 0.5  # A pixel belongs to the topmost digit whose ink exceeds this.


def _weights(start, scale, size: int):
    """Linear interpolation weights [SIDE, size] of the scene's pixels for the rows of a digit that starts at `start`
    (pixels) and is scaled by `scale`; zero outside the digit."""
    place = (jnp.arange(SIDE) + 0.5 - start) / scale - 0.5
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None] - jnp.arange(size)[None]))


def _background(key):
    """Smooth noise [SIDE, SIDE] with mean 0.25 and standard deviation 0.12, then clipped to 0 .. 1."""
    noise = jax.image.resize(jax.random.normal(key, (8, 8)), (SIDE, SIDE), "cubic")
    return jnp.clip(0.25 + 0.12 * (noise - noise.mean()) / noise.std(), 0.0, 1.0)


def _extent(digits):
    """(first, end), both [N, 2]: the bounding box, in rows and columns, of the nonzero pixels of digits [N, H, W]."""
    inked = jnp.stack([(digits > 0).any(2), (digits > 0).any(1)], 1)
    return inked.argmax(2), inked.shape[2] - inked[..., ::-1].argmax(2)


def compose(key, digits, labels):
    """One scene (image float32 [SIDE, SIDE, 1] in 0 .. 1, label int32 [SIDE, SIDE]) of uint8 digits [N, 28, 28, 1]."""
    size, (count_key, pick_key, scale_key, place_key, noise_key) = digits.shape[1], jax.random.split(key, 5)
    count = jax.random.randint(count_key, (), FEWEST, MOST + 1)
    picked = jax.random.randint(pick_key, (MOST,), 0, len(digits))
    scale = jax.random.uniform(scale_key, (MOST,), minval=0.8, maxval=1.3)
    first, end = _extent(digits[picked, :, :, 0])
    free = SIDE - scale[:, None] * (end - first)
    start = jax.random.uniform(place_key, (MOST, 2)) * free - scale[:, None] * first

    def lay(scene, digit):
        (image, label), (picked, scale, start, there) = scene, digit
        rows, columns = (_weights(start[axis], scale, size) for axis in (0, 1))
        ink = jnp.where(there, rows @ (digits[picked, :, :, 0].astype(jnp.float32) / 255) @ columns.T, 0.0)
        return (ink + (1 - ink) * image, jnp.where(ink > INK, labels[picked] + 1, label)), None

    empty = _background(noise_key), jnp.zeros((SIDE, SIDE), jnp.int32)
    (image, label), _ = jax.lax.scan(lay, empty, (picked, scale, start, jnp.arange(MOST) < count))
    return image[..., None], label


def scenes(keys, digits, labels):
    """`compose` for each of the keys [B]: (images uint8 [B, SIDE, SIDE, 1], labels int32 [B, SIDE, SIDE])."""
    images, labels = jax.vmap(compose, (0, None, None))(keys, jnp.asarray(digits), jnp.asarray(labels))
    return jnp.round(255 * images).astype(jnp.uint8), labels


def load(val_fraction: float = 0.0) -> Dataset:
    """The split train has the digits [4000, 28, 28, 1] of the scenes and their labels; the split test has 500 scenes
    and their labels [500, SIDE, SIDE]. With `val_fraction`, that fraction of the training digits is held out, and the
    split val has 500 scenes of the held-out digits."""
    digits = hold_out(mnist5k.load(), val_fraction)
    splits = {"train": digits.splits["train"]}
    for split in (name for name in digits.splits if name != "train"):
        keys = jax.random.split(jax.random.key(SEEDS[split]), FIXED_SCENES)
        images, labels = jax.jit(scenes)(keys, *digits.splits[split])
        splits[split] = np.asarray(images), np.asarray(labels)
    return Dataset("digit_scenes", splits, CLASSES)
