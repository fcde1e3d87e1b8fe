"""Tests of digit scenes: occlusion, number and size of digits, and fixed test scenes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import digit_scenes


@pytest.fixture(scope="module")
def dataset():
    return digit_scenes.load()


def test_the_splits(dataset):
    images, labels = dataset.splits["test"]
    assert images.shape == (500, 64, 64, 1) and labels.shape == (500, 64, 64) and images.dtype == np.uint8
    assert set(np.unique(labels)) == set(range(11)) and dataset.class_names[:2] == ("background", "0")
    assert dataset.splits["train"][0].shape == (4000, 28, 28, 1)
    again = digit_scenes.load().splits["test"]
    np.testing.assert_array_equal(again[0], images)
    np.testing.assert_array_equal(again[1], labels)


def test_the_background(dataset):
    images, labels = dataset.splits["test"]
    noise = jax.vmap(digit_scenes._background)(jax.random.split(jax.random.key(1), 200))
    assert noise.mean() == pytest.approx(0.25, abs=0.01) and float(noise.std(axis=(1, 2)).min()) > 0.1
    assert 0.2 < images[labels == 0].mean() / 255 < 0.3
    # Smooth: neighboring pixels differ by much less than the standard deviation.
    assert float(jnp.abs(jnp.diff(noise, axis=1)).mean()) < 0.03


def bars(width):
    """Digits whose middle columns are full of ink."""
    digit = np.zeros((28, 28, 1), np.uint8)
    digit[:, 14 - width : 14 + width] = 255
    return digit


def test_each_digit_is_labelled_where_it_is_on_top():
    digits, labels = np.stack([bars(3), bars(9)]), np.array([4, 7])
    images, found = jax.jit(digit_scenes.scenes)(jax.random.split(jax.random.key(0), 300), digits, labels)
    images, found = np.asarray(images), np.asarray(found)
    assert set(np.unique(found)) == {0, 5, 8}
    # Opaque ink hides what is below it; a scene has 3 to 6 bars, each 0.8 to 1.3 times 28 pixels high.
    assert (images[found > 0] > 127).all()
    rows = (found > 0).any(2).sum(1)
    assert rows.min() >= 0.8 * 28 - 1 and rows.max() <= 64
    area = (found > 0).mean((1, 2)) * 64**2
    assert area.max() > 3 * area.min()
    both = [set(np.unique(scene)) >= {5, 8} for scene in found]
    assert 0.5 < np.mean(both) < 1.0, "the mean of 1 - 2 (1/2)^n for n from 3 to 6 is 0.88, less for hidden digits"


def test_only_the_ink_must_stay_inside_the_scene():
    digit = np.zeros((1, 28, 28, 1), np.uint8)
    digit[:, 2:8, 15:24] = 255
    found = np.asarray(jax.jit(digit_scenes.scenes)(jax.random.split(jax.random.key(0), 300), digit, np.array([4]))[1])
    assert (found > 0).sum((1, 2)).min() >= (0.8 * 6 - 1) * (0.8 * 9 - 1)
    for seen in ((found > 0).any((0, 2)), (found > 0).any((0, 1))):  # By row, and by column.
        assert seen[1:-1].all()


def test_the_later_digit_is_on_top():
    key = jax.random.key(3)
    digits = np.full((2, 28, 28, 1), 255, np.uint8)
    label = np.asarray(digit_scenes.compose(key, jnp.asarray(digits), jnp.array([1, 2]))[1])
    _, pick_key, scale_key, place_key, _ = jax.random.split(key, 5)
    picked = np.asarray(jax.random.randint(pick_key, (6,), 0, 2))
    scale = np.asarray(jax.random.uniform(scale_key, (6,), minval=0.8, maxval=1.3))
    start = np.asarray(jax.random.uniform(place_key, (6, 2))) * (64 - scale * 28)[:, None]
    count = int(jax.random.randint(jax.random.split(key, 5)[0], (), 3, 7))
    expected = np.zeros((64, 64), int)
    for i in range(count):  # More than a pixel inside, to exclude interpolated edges.
        low, high = np.ceil(start[i] + 1).astype(int), np.floor(start[i] + scale[i] * 28 - 1).astype(int)
        outer = np.floor(start[i] - 1).astype(int), np.ceil(start[i] + scale[i] * 28 + 1).astype(int)
        box = tuple(slice(max(0, a), b) for a, b in zip(*outer, strict=True))
        expected[box] = -1
        expected[low[0] : high[0], low[1] : high[1]] = picked[i] + 2
    sure = expected >= 0
    np.testing.assert_array_equal(label[sure], expected[sure])
    assert sure.mean() > 0.5
