"""digit_scenes: scenes of 64x64 pixels composed from mnist5k's digits, to be segmented into digits and background.

Three to six digits, each scaled by 0.8 to 1.3 and placed at random with all of its ink inside the scene, the later over
the earlier, on smooth noise.
Training scenes are composed afresh for each step from the 4,000 training digits; the 500 test scenes, of the 1,000 test
digits, are fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from data import mnist5k
from data.dataset import Dataset

SIDE, TEST_SCENES, TEST_SEED = 64, 500, 0
FEWEST, MOST = 3, 6
CLASSES = ("background", *map(str, range(10)))
# In the loss. Digits cover a tenth of a scene: background of weight 1 hides them, of less than 0.3 it widens them.
WEIGHTS = (0.3, *[1.0] * 10)
INK = 0.5  # A pixel belongs to the topmost digit with more ink than this.


def _weights(start, scale, size: int):
    """[SIDE, size]: what each pixel of the scene takes from each row of a digit that begins at `start`, in pixels, and
    is `scale` times as large: linear interpolation, nothing outside."""
    place = (jnp.arange(SIDE) + 0.5 - start) / scale - 0.5
    return jnp.maximum(0.0, 1.0 - jnp.abs(place[:, None] - jnp.arange(size)[None]))


def _background(key):
    """Smooth noise [SIDE, SIDE] with mean 0.25 and standard deviation 0.12, before it is cut to 0 .. 1."""
    noise = jax.image.resize(jax.random.normal(key, (8, 8)), (SIDE, SIDE), "cubic")
    return jnp.clip(0.25 + 0.12 * (noise - noise.mean()) / noise.std(), 0.0, 1.0)


def _extent(digits):
    """(first, end), both [N, 2]: the rows and columns between which the ink of each of the digits [N, H, W] lies."""
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


def load() -> Dataset:
    """train: the digits [4000, 28, 28, 1] and their labels, that scenes are made of; test: 500 scenes and labels
    [500, SIDE, SIDE]."""
    splits = mnist5k.load().splits
    keys = jax.random.split(jax.random.key(TEST_SEED), TEST_SCENES)
    images, labels = jax.jit(scenes)(keys, *splits["test"])
    test = np.asarray(images), np.asarray(labels)
    return Dataset("digit_scenes", {"train": splits["train"], "test": test}, CLASSES)
