"""Compares attention and the vision transformer with NumPy loops, and tests the card."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from experiments.lecture.zoo import attention as zoo
from models import attention
from models.errors import ModelError

(CARD,) = zoo.CARDS


def by_hand(queries, keys, values):
    """One head in loops: queries [Q, D], keys and values [K, D]."""
    out, weights = np.zeros(queries.shape), np.zeros((len(queries), len(keys)))
    for i, query in enumerate(queries):
        scores = np.array([sum(q * k for q, k in zip(query, key, strict=True)) for key in keys]) / np.sqrt(len(query))
        weights[i] = np.exp(scores) / np.exp(scores).sum()
        out[i] = sum(weight * value for weight, value in zip(weights[i], values, strict=True))
    return out, weights


@pytest.mark.parametrize("count", [1, 5])
def test_attention_equals_the_equation(count):
    random = np.random.default_rng(0)
    queries, (keys, values) = random.normal(size=(2, 4, 3, 6)), random.normal(size=(2, 2, count, 3, 6))
    mixed, weights = attention.attention(*(jnp.asarray(x, jnp.float32) for x in (queries, keys, values)))
    assert mixed.shape == (2, 4, 3, 6) and weights.shape == (2, 3, 4, count)
    for b in range(2):
        for head in range(3):
            out, shares = by_hand(queries[b, :, head], keys[b, :, head], values[b, :, head])
            np.testing.assert_allclose(mixed[b, :, head], out, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(weights[b, head], shares, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, rtol=1e-6)


def drawn(model, shape):
    """Parameters from N(0, 0.3^2), larger than initial ones, so that no attention map is uniform."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def dense(x, layer):
    return x @ layer["kernel"].astype(np.float64) + layer["bias"]


def layer_norm(x, layer):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def transformer_by_hand(params, image, *, patch, heads, blocks):
    """Logits [C] and all blocks' weights [heads, T, T] for an image [H, W, C] (Dosovitskiy et al. 2020, eq. 1-4)."""
    rows = [
        image[y : y + patch, x : x + patch].ravel()
        for y in range(0, image.shape[0], patch)
        for x in range(0, image.shape[1], patch)
    ]
    tokens = params["tokens"]
    z = np.concatenate([tokens["class_token"][0], dense(np.array(rows), params["patches"])]) + tokens["positions"][0]
    width, maps = z.shape[1], []
    for number in range(1, blocks + 1):
        block = params[f"block{number}"]
        qkv = dense(layer_norm(z, block["norm1"]), block["attention"]["qkv"])
        size, mixed, weights = width // heads, [], []
        for head in range(heads):
            columns = [slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3)]
            out, shares = by_hand(*(qkv[:, each] for each in columns))
            mixed.append(out)
            weights.append(shares)
        z = z + dense(np.concatenate(mixed, axis=1), block["attention"]["out"])
        s = dense(layer_norm(z, block["norm2"]), block["dense1"])
        z = z + dense(0.5 * s * (1 + np.tanh(np.sqrt(2 / np.pi) * (s + 0.044715 * s**3))), block["dense2"])
        maps.append(np.array(weights))
    return dense(layer_norm(z[0], params["norm"]), params["logits"]), maps


SMALL = {"patch": 2, "width": 6, "heads": 3, "blocks": 2}


def test_the_vision_transformer_equals_its_equations():
    model, shape = models.create("vit_tiny", 4, **SMALL), (2, 4, 6, 2)
    params, images = drawn(model, shape), np.random.default_rng(1).normal(size=shape).astype(np.float32)
    logits, maps = jax.jit(model.apply)({"params": params}, images), zoo.attention_maps(model, params, images)
    assert maps.shape == (2, 3, 2, 3)
    for image, found, shown in zip(images, logits, maps, strict=True):
        expected, weights = transformer_by_hand(params, image, patch=2, heads=3, blocks=2)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(shown, weights[-1][:, 0, 1:].reshape(3, 2, 3), rtol=1e-3, atol=1e-5)


def test_without_position_embeddings_the_order_of_patches_has_no_effect():
    model, shape = models.create("vit_tiny", 4, **SMALL), (1, 4, 4, 1)
    params, images = drawn(model, shape), np.random.default_rng(1).normal(size=shape).astype(np.float32)
    swapped = np.concatenate([images[:, :, 2:], images[:, :, :2]], axis=2)
    apply = jax.jit(lambda params, images: model.apply({"params": params}, images))
    assert np.abs(apply(params, images) - apply(params, swapped)).max() > 1e-3
    params["tokens"]["positions"] = np.zeros_like(params["tokens"]["positions"])
    np.testing.assert_allclose(apply(params, images), apply(params, swapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options, shape, message",
    [
        ({}, (28, 30, 1), "sides are multiples of 4 pixels, not 28x30"),
        ({"patch": 5}, (28, 28, 1), "sides are multiples of 5 pixels, not 28x28"),
        ({"heads": 3}, (28, 28, 1), "a multiple of its 3 heads, not 64"),
    ],
)
def test_invalid_sizes_are_refused(options, shape, message):
    with pytest.raises(ModelError, match=message):
        models.create("vit_tiny", 10, **options).init(jax.random.key(0), jnp.zeros((1, *shape)))


def test_first_filters_are_the_patches_weights():
    params = drawn(models.create("vit_tiny", 4, width=8, blocks=1), (1, 8, 8, 3))
    filters = attention.first_filters(params, {})
    image = np.random.default_rng(0).normal(size=(4, 4, 3))
    assert filters.shape == (4, 4, 3, 8)
    expected = image.ravel() @ params["patches"]["kernel"]
    np.testing.assert_allclose((image[..., None] * filters).sum((0, 1, 2)), expected, rtol=1e-5)


def test_concentration_of_known_maps():
    even, single = np.full((2, 3, 4, 4), 1 / 16), np.zeros((1, 1, 4, 4))
    single[0, 0, 2, 1] = 0.7
    assert zoo.concentration(even) == pytest.approx(0.25) and zoo.concentration(single) == pytest.approx(1)


def check_report(result):
    found = CARD.report([result, result])
    assert found.numbers["test_accuracy"] == {"mean": pytest.approx(result["own"]["accuracy"]), "std": 0.0}
    assert found.baseline["test_accuracy"]["mean"] == pytest.approx(result["other"]["accuracy"])
    own, other = (result[whose]["accuracy"] for whose in ("own", "other"))
    relation = "more than" if own > other + 0.01 else "fewer than" if own < other - 0.01 else "about the same as"
    assert f"{100 * own:.1f} %" in found.text and f"{relation} the {100 * other:.1f} %" in found.text
    return found


def test_report():
    """With the maps of an untrained network and made-up accuracies."""
    digits = np.random.default_rng(0).integers(0, 256, (1, 4, 4))
    model = models.create("vit_tiny", 4, **SMALL)
    maps = zoo.attention_maps(model, drawn(model, (1, 4, 4, 1)), digits[..., None] / np.float32(255))
    better, worse = {"accuracy": 0.75, "parameters": 5}, {"accuracy": 0.5, "parameters": 7}
    for own, other in ((better, worse), (worse, better), (worse, worse)):
        found = check_report({"own": own, "other": other, "digits": digits.tolist(), "maps": maps.tolist()})
        assert (found.numbers["parameters"], found.baseline["parameters"]) == (own["parameters"], other["parameters"])


@pytest.mark.slow
def test_short_run():
    result = CARD.run(0, steps=1, patch=14, width=8, heads=2, blocks=1)
    assert result["own"]["parameters"] == 196 * 8 + 8 + 8 * 6 + 12 * 64 + 13 * 8 + 16 + 90
    assert np.shape(result["maps"]) == (zoo.SHOWN, 2, 2, 2) and np.shape(result["digits"]) == (zoo.SHOWN, 28, 28)
    check_report(result)


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
def test_card():
    found = CARD.report([CARD.run(0, steps=800)])
    assert found.numbers["test_accuracy"]["mean"] > 0.93 and found.numbers["attention_to_best_quarter"]["mean"] > 0.4
