"""Tests of the topics convolution, pooling and abstraction: their mathematics, and a short run of each."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import models
from experiments.lecture import abstraction, convolution, pooling, topic
from models.cnn import CNN
from models.layers import Conv, max_pool
from train.workdir import Workdir


def test_convolution_equals_loops_and_sparse_matrix():
    random, b = np.random.default_rng(0), 0.7
    a_HW, w_KL = random.normal(size=(9, 8)), random.normal(size=(3, 2))
    params = {"kernel": w_KL[..., None, None], "bias": np.array([b])}
    layer = jax.jit(Conv(1, w_KL.shape, padding="VALID").apply)
    expected = np.tanh(layer({"params": params}, a_HW[None, :, :, None].astype(np.float32)))[0, :, :, 0]
    assert expected.shape == (7, 7)
    np.testing.assert_allclose(convolution.in_loops(a_HW, w_KL, b, sigma=np.tanh), expected, atol=1e-6)
    matrix = convolution.as_matrix(w_KL, a_HW.shape)
    assert matrix.shape == (72, 49) and ((matrix != 0).sum(0) == w_KL.size).all()
    np.testing.assert_allclose(np.tanh(a_HW.reshape(-1) @ matrix + b).reshape(7, 7), expected, atol=1e-6)


def test_the_text_on_convolution_follows_the_numbers(tmp_path):
    with contextlib.closing(Workdir(str(tmp_path))) as workdir:
        this_topic = topic.Topic(workdir, {"seeds": 3})
    inside = {"dense": 3_617_280, "local": 119_808, "convolution": 208}

    def described(still, moved):
        """The text for mean accuracies of the dense, local and both convolutional networks, with deviations of 0.01."""
        kinds = [*inside, convolution.FINE]
        by_kind = ({k: {"mean": x, "std": 0.01} for k, x in zip(kinds, part, strict=True)} for part in (still, moved))
        return convolution.description(this_topic, *by_kind, inside)

    first, moved, still = described((0.95, 0.92, 0.91, 0.96), (0.3, 0.4, 0.6, 0.35))
    assert "208 parameters, 576 times fewer than the locally connected layer and 17,391 times fewer" in first
    assert "over 3 seeds" in first and "the network with the convolution is the most accurate" in moved
    assert "the dense layer is more accurate than the convolution, by 4.0 percentage points" in still
    assert "recognizes 96.0 ± 1.0 % in the middle, but only 35.0 ± 1.0 % of the shifted digits: " in still
    assert "loses this accuracy by the pooling over 8x8" in still
    assert len(described((0.93, 0.92, 0.92, 0.92), (0.3, 0.4, 0.6, 0.3))) == 2  # Within the deviations: no comment.
    assert "The claim is not confirmed" in described((0.9, 0.9, 0.9, 0.9), (0.3, 0.59, 0.6, 0.3))[1]
    local = described((0.91, 0.94, 0.91, 0.92), (0.3, 0.4, 0.6, 0.3))[2]
    assert "the locally connected layer" in local and "by 3.0 percentage points" in local and "2x2" not in local


def test_convolution_is_a_locally_connected_layer_with_equal_weights():
    nets = {kind: convolution.OneLayer(kind) for kind in convolution.NAMES}
    images = np.random.default_rng(0).normal(size=(3, 28, 28, 1)).astype(np.float32)
    shapes = {k: jax.eval_shape(net.init, jax.random.key(0), images)["params"] for k, net in nets.items()}
    count = {k: sum(leaf.size for leaf in jax.tree.leaves(shape["layer"])) for k, shape in shapes.items()}
    assert count == {"dense": 785 * 24 * 24 * 8, "local": 24 * 24 * 26 * 8, "convolution": 26 * 8}
    params = jax.jit(nets["convolution"].init)(jax.random.key(0), images)["params"]
    kernel, bias = params["layer"]["kernel"].reshape(1, 1, 25, 8), jnp.arange(8.0) / 8
    params["layer"]["bias"] = bias
    equal = {"kernel": jnp.tile(kernel, (24, 24, 1, 1)), "bias": jnp.tile(bias.reshape(1, 1, 8), (24, 24, 1))}
    shared, unshared = (
        jax.jit(nets[kind].apply)({"params": {**params, "layer": layer}}, images)
        for kind, layer in (("convolution", params["layer"]), ("local", equal))
    )
    np.testing.assert_allclose(shared, unshared, atol=1e-5)


def test_unshared_weights_start_at_the_scale_of_shared_ones():
    images = jnp.zeros((1, 28, 28, 1))
    params = jax.jit(convolution.OneLayer("local").init)(jax.random.key(0), images)["params"]
    assert float(params["layer"]["kernel"].std()) == pytest.approx((2 / 25) ** 0.5, rel=0.02)


def test_shifted_digits():
    images = np.zeros((9, 7, 7, 1), np.uint8)
    images[:, 3, 3] = 255
    positions = [tuple(np.argwhere(image[..., 0])[0]) for image in convolution.shifted(images, 2)]
    assert len(set(positions[:8])) == 8 and positions[0] == positions[8]
    assert {(y - 3, x - 3) for y, x in positions} == {(2 * y, 2 * x) for y, x in convolution.DIRECTIONS}
    assert not convolution.shifted(images, 4).any()  # Shifted out of the image, not wrapped around.
    np.testing.assert_array_equal(convolution.shifted(images, 0), images)


def test_shifting_and_rotating_images():
    images = np.random.default_rng(0).uniform(size=(2, 9, 9, 1)).astype(np.float32)
    move = pooling.moved
    down = np.pad(images, ((0, 0), (2, 0), (0, 0), (0, 0)))[:, :9]
    np.testing.assert_allclose(move(images, np.array([2.0, 0.0]), 0.0), down, atol=1e-6)
    np.testing.assert_allclose(move(images, np.zeros(2), 90.0), np.rot90(images, -1, axes=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(move(images, np.zeros(2), 0.0), images, atol=1e-6)


def test_pooling_is_invariant_within_a_window():
    """If a feature moves within its window, the maximum is unchanged; the unpooled features change by sqrt(2)."""
    before, after = np.zeros((2, 1, 8, 8, 1), np.float32)
    before[0, 4, 4], after[0, 7, 6] = 3.0, 3.0
    pools = {name: pool for name, (*_, pool) in pooling.POOLS.items()}
    change = jax.jit(lambda a, b: {name: pooling.relative_change(pool(a), pool(b))[0] for name, pool in pools.items()})
    found = change(before, after)
    assert float(found["none"]) == pytest.approx(2**0.5) and float(found["max_2"]) == pytest.approx(2**0.5)
    assert found["max_4"] == found["average_4"] == 0
    # The lecture's maximum over the neighborhood K(i'j').
    a = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    expected = [[a[0, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].max() for j in range(2)] for i in range(2)]
    one, two = jax.jit(lambda a: (pools["max_4"](a), max_pool(max_pool(a, 2), 2)))(a)
    np.testing.assert_array_equal(one[0, :, :, 0], expected)
    np.testing.assert_array_equal(two, one)  # convolution.OneLayer pools like this.


def test_gabor_filters():
    bank = pooling.gabor(np.random.default_rng(0))
    assert bank.shape == (7, 7, 1, 8)
    np.testing.assert_allclose(bank.sum((0, 1, 2)), 0, atol=1e-6)  # No response to a constant image.
    np.testing.assert_allclose((bank**2).sum((0, 1, 2)), 1, rtol=1e-6)
    assert np.abs(np.corrcoef(bank.reshape(49, 8).T) - np.eye(8)).max() < 0.95


def test_linear_probe():
    """The probe separates linearly separable classes at any feature scale, and no others."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 10
    x = random.normal(size=(200, 12)).astype(np.float32)
    separable = x + 4 * np.eye(12, dtype=np.float32)[labels]

    def accuracy(x):
        return float(abstraction.probe(x[:100], labels[:100], x[100:], labels[100:]))

    assert accuracy(separable) > 0.95 and accuracy(x) < 0.3
    assert accuracy(x + separable) == pytest.approx(accuracy(1000 * (x + separable) + 7), abs=0.011)


def test_features_are_inputs_of_the_next_layer():
    model, images = models.create("cnn", 10), np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    seen = jax.jit(lambda variables, images: abstraction.features(model, variables, images))(variables, images)
    assert {name: value.shape[1] for name, value in seen.items()} == {
        "pixels": 784, "conv1": 512, "conv2": 576, "conv3": 576, "dense": 64, "logits": 10
    }  # fmt: skip
    assert tuple(abstraction.LAYERS) == ("pixels", "conv1", "conv2", "conv3", "dense", "logits")
    layer = variables["params"]["logits"]
    np.testing.assert_allclose(seen["logits"], seen["dense"] @ layer["kernel"] + layer["bias"][None], atol=1e-5)
    scale = (1 + 1e-5) ** -0.5  # The scale of an untrained batch norm.
    dense = np.maximum(seen["conv3"] @ variables["params"]["dense"]["kernel"] * scale, 0)
    np.testing.assert_allclose(seen["dense"], dense, atol=1e-5)


def test_signal_networks():
    """The output of the convolution does not depend on the position; the output of the larger dense network does."""
    x, labels, positions = abstraction.signals(np.random.default_rng(0), 200)
    for signal, label, place in zip(x, labels, positions, strict=True):
        signal[place : place + 32, 0] -= list(abstraction.SHAPES.values())[label]
    assert x.shape == (200, 128, 1) and set(labels) == {0, 1, 2} and positions.min() >= 0 and positions.max() <= 96
    assert x.std() == pytest.approx(abstraction.NOISE, rel=0.02)
    for shape in abstraction.SHAPES.values():
        assert (shape**2).mean() == pytest.approx(1, abs=0.05)
    silent = np.zeros((2, 128, 1), np.float32)
    silent[0, 20:52, 0] = silent[1, 70:102, 0] = abstraction.SHAPES["chirp"]
    sizes = []
    for shared in (True, False):
        net = abstraction.SignalNet(shared)
        variables = jax.jit(net.init)(jax.random.key(0), silent)
        one, other = np.asarray(jax.jit(net.apply)(variables, silent))
        assert np.allclose(one, other, atol=1e-5) == shared
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    assert sizes == [163, 8451]


RUNS = {
    "convolution": (convolution, {"steps": 2}, ("accuracy_by_shift", "filters")),
    "pooling": (pooling, {"digits": 12}, ("change_by_shift", "change_by_rotation")),
    "abstraction": (abstraction, {"steps": 40, "signal_steps": 2}, ("probes", "signals")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_short_runs(name, tmp_path, capsys, monkeypatch, mnist5k):
    module, options, drawn = RUNS[name]
    assert options.keys() == module.OPTIONS.keys()
    few = {split: (images[::5], labels[::5]) for split, (images, labels) in mnist5k.splits.items()}
    monkeypatch.setattr(module.data, "load", lambda name: mnist5k._replace(splits=few))
    monkeypatch.setattr(topic, "start_cache", lambda: None)
    monkeypatch.setattr(abstraction, "probe", functools.partial(abstraction.probe, steps=10))
    monkeypatch.setattr(abstraction.models, "create", lambda name, classes: CNN(classes, widths=(4, 4, 4), features=8))
    assert topic.run(name, module.experiment, workdir=str(tmp_path), options={"seeds": 1, **options}) == 0
    numbers, page = json.loads(capsys.readouterr().out), json.loads((tmp_path / "lesson.json").read_text())
    assert 1 <= len(page["text"]) <= 5 and [figure[0] for figure in page["figures"]] == list(drawn)
    assert not any("±" in str(part) for part in (page["text"], page["tables"]))  # The spread of one seed is unknown.
    for figure in drawn:
        with Image.open(tmp_path / "figures" / f"{figure}.png") as image:
            assert image.width == 624 and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    if name == "convolution":
        assert max(numbers["max_difference_loops"], numbers["max_difference_matrix"]) < 1e-5
        assert numbers["times_fewer_than"]["local"] == 24 * 24
    elif name == "pooling":
        change = numbers["shift_1"]
        assert change["none"]["mean"] > change["max_2"]["mean"] > change["max_4"]["mean"] > 0
        ratios = numbers["shift_1_of_between_classes"]
        assert f"Their ratio is {ratios['none']:.2f} without pooling" in page["text"][1]
    else:
        trained, untrained = numbers["probe"]["trained"], numbers["probe"]["untrained"]
        assert trained["pixels"] == untrained["pixels"]
        assert trained["logits"]["mean"] > untrained["logits"]["mean"] + 0.1
        values = [value for row in (trained, untrained) for value in row.values()]
        said = {f"{100 * value['mean']:.1f} %" for value in values}
        layers, networks = (rows for _, _, rows in page["tables"])
        assert [row[0] for row in layers] == list(abstraction.LAYERS) and {c for row in layers for c in row[1:]} == said
        assert [row[1] for row in networks] == [163, 8451]
        drawing = page["widgets"]["draw"]
        shapes = [[5, 5, 1, 4], [3, 3, 4, 4], [3, 3, 4, 4], [36, 8], [8, 10]]
        assert [layer["shape"] for layer in drawing["layers"]] == shapes
        assert 0.5 < drawing["accuracy"] < 1 and np.shape(drawing["digits"]) == (10, 28, 28)
