"""Tests of the zoo's cards for feed-forward networks and the GAN: measurements, short runs, claims of full runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
import models
from experiments.lecture.zoo import depth, digits, feed_forward, gan
from experiments.lecture.zoo.drawing import svg
from models import dcgan
from train.state import parameter_count

CARDS = {card.name: card for module in (feed_forward, depth, gan) for card in module.CARDS}


def card_of(name, *seeds, **sizes):
    """Returns the findings of short runs, after checking that they contain everything that the page needs."""
    card = CARDS[name]
    findings = card.report([json.loads(json.dumps(card.run(seed, **sizes))) for seed in seeds or (0,)])
    assert findings.figure.get_axes() and json.loads(json.dumps([findings.numbers, findings.baseline]))
    assert all(set(value) == {"mean", "std"} for value in findings.numbers.values())
    return findings


def test_every_card_has_a_drawing():
    for card in CARDS.values():
        assert svg(card.diagram, card.title).startswith("<svg")


def parameters(model, image=(28, 28, 1)) -> int:
    return parameter_count(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image)))["params"])


def test_rosenblatts_rule_for_some_passes():
    """Compares the parameters and the errors after each pass with a loop."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((20, 3)).astype(np.float32), (random.uniform(size=20) > 0.5).astype(np.float32)
    params, errors = feed_forward.rosenblatt(jax.random.key(1), x, y, passes=4)
    w, b, expected = np.zeros(3), 0.0, [np.mean(y == 1)]
    for number in range(4):
        for i in np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(1), number), 20)):
            output = float(x[i] @ w + b > 0)
            w, b = w + (y[i] - output) * x[i], b + (y[i] - output)
        expected.append(np.mean((x @ w + b > 0) != (y > 0.5)))
    np.testing.assert_allclose(params["w"], w, rtol=1e-4)
    np.testing.assert_allclose(params["b"], b, rtol=1e-4)
    np.testing.assert_allclose(errors, expected, rtol=1e-6)


def test_the_pair_of_digits():
    x, y = feed_forward.pair("train")
    assert x.shape == (800, 784) and x.min() == 0 and x.max() == 1 and y.sum() == 400


@pytest.mark.slow
def test_the_card_of_the_perceptron():
    findings = card_of("perceptron", 0, 1, passes=3, steps=5)
    assert findings.numbers.keys() == findings.baseline.keys() and "XOR" in findings.text
    assert findings.numbers["lowest_training_error_digits"]["mean"] < 0.2


@pytest.mark.slow
def test_training_curve_and_determinism(mnist5k):
    images, labels = mnist5k.splits["test"]
    net = digits.learn(models.create("perceptron", 10), steps=5, seed=0, rate=0.002)
    assert [step for step, _ in net.curve] == list(range(6)) and net.curve[0][1] == pytest.approx(0.1)
    assert net.curve[-1][1] == np.mean(net.logits(images).argmax(-1) == labels) > 0.3
    assert net.curve == digits.learn(models.create("perceptron", 10), steps=5, seed=0, rate=0.002).curve


@pytest.mark.slow
def test_the_card_of_the_feed_forward_network():
    findings = card_of("feed_forward", steps=2)
    assert findings.numbers.keys() == findings.baseline.keys() == {"test_accuracy"}


@pytest.mark.parametrize("count", [1, 2, 400])
def test_spirals(count, monkeypatch):
    monkeypatch.setattr(depth, "NOISE", 0.0)
    points, labels = depth.spirals(3, count)
    radius = np.linalg.norm(points, axis=1)
    angle = np.pi * depth.TURNS * radius + np.pi * labels  # The radius grows to 2 over all turns.
    expected = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    np.testing.assert_allclose(points, expected, atol=1e-4)
    assert points.shape == (count, 2) and 0.2 <= radius.min() and radius.max() <= 2
    assert set(labels) == set(range(min(count, 2))) and abs(labels.mean() - 0.5) <= 0.5 / count


def test_compared_networks_have_equally_many_parameters():
    for on, shape, classes in (("digits", (28, 28, 1), 10), ("plane", (2,), 2)):
        deep, shallow = (
            parameters(models.create("mlp", classes, hidden=depth.HIDDEN[name][on]), shape) for name in ("three", "one")
        )
        assert abs(deep / shallow - 1) < 0.01
    convolutional, dense = (parameters(models.create(name, 10, **options)) for name, options in depth.NETS.items())
    assert (convolutional, dense) == (61_706, 61_225)


def test_report_of_the_deep_feed_forward_network():
    made = {"points": [[0, 1], [1, 0]], "classes": [0, 1]}
    made |= {"three": {"spirals": 0.9, "digits": 0.8}, "one": {"spirals": 0.6, "digits": 0.8}}
    for name in ("three", "one"):
        made[name]["regions"] = [[0.1, 0.9], [0.5, 0.2]]
    findings = depth.report_deep_feed_forward([made])
    assert findings.numbers["test_accuracy_spirals"]["mean"] == 0.9
    assert findings.baseline["test_accuracy_spirals"]["mean"] == 0.6
    spirals, digits = findings.text.split(". ")
    assert "depth helps" in spirals and "makes no difference" in digits


@pytest.mark.parametrize(
    "deep, verdict", [(0.8, "helps"), (0.55, "hurts"), (0.6, "makes no difference"), (0.605, "makes no difference")]
)
def test_the_sentence_on_depth_follows_the_numbers(deep, verdict):
    assert f"depth {verdict}" in depth.compared("digits", {"mean": deep}, {"mean": 0.6})


def test_shifted_images():
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3, 1)
    np.testing.assert_array_equal(depth.moved(images, 0), images)
    np.testing.assert_array_equal(depth.moved(images, 1)[1, ..., 0], [[0, 0, 0], [0, 9, 10], [0, 12, 13]])
    assert not depth.moved(images, 3).any()


def test_report_of_the_convolutional_network():
    """The verdict depends on the accuracies for digits as they are and for digits shifted by 2 pixels."""
    good, bad, mixed = [0.9] * 6, [0.8] * 6, [0.9] * 2 + [0.7] * 4
    findings = depth.report_deep_convolutional([{"lenet": good, "mlp": bad}])
    assert findings.numbers.keys() == findings.baseline.keys() == {"test_accuracy", "test_accuracy_moved_2_pixels"}
    assert findings.numbers["test_accuracy_moved_2_pixels"]["mean"] == pytest.approx(0.9)
    assert "are better at both" in findings.text
    assert "are not better at both" in depth.report_deep_convolutional([{"lenet": mixed, "mlp": bad}]).text


def test_report_of_the_residual_network():
    """The verdict depends on the last tenth of the curves."""
    falls, stays = np.linspace(0.9, 0.1, 20).tolist(), [0.9] * 20
    findings = depth.report_deep_residual([{"residual": falls, "plain": stays}])
    assert findings.numbers["training_error_56_layers"]["mean"] == pytest.approx(np.mean(falls[-2:]))
    assert "shortcuts make" in findings.text
    assert "do not make" in depth.report_deep_residual([{"residual": stays, "plain": falls}]).text


def test_width_of_a_dcgan():
    """The default width is the published one; a quarter of it has about a sixteenth of the weights."""
    common = {"size": 32, "channels": 1}
    whole = jax.eval_shape(dcgan.DCGAN(10, **common).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    same = jax.eval_shape(dcgan.DCGAN(10, width=64, **common).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert jax.tree.map(lambda x: x.shape, whole) == jax.tree.map(lambda x: x.shape, same)
    narrow = parameters(dcgan.DCGAN(10, width=16, **common), (32, 32, 1))
    assert 1 / 16 < narrow / parameter_count(whole["params"]) < 1 / 8
    assert "width" not in models.options("dcgan")


def test_images_of_the_gan_round_trip():
    images = data.load("mnist5k").splits["test"][0][:3]
    form = gan.form()
    whole = form.to_network(images)
    assert whole.shape == (3, 32, 32, 1) and float(whole.min()) == -1 and float(whole.max()) == 1
    assert (np.asarray(whole)[:, :2] == -1).all() and (np.asarray(whole)[:, :, -2:] == -1).all()
    np.testing.assert_array_equal(form.to_image(whole), images)


def test_scores_of_the_gan():
    """For a classifier with known outputs: distances of means, certain and uncertain classes."""
    random = np.random.default_rng(0)
    found = random.standard_normal((100, 2))
    logits = np.zeros((100, 4))
    logits[:50, 0], logits[50:90, 1] = 100, 100  # The other ten are uncertain.
    real = found.mean(0) + [3, 4], np.cov(found.T)
    scores = gan.scores(lambda images: (found, jnp.asarray(logits)), np.zeros((100, 1)), real)
    assert scores["frechet_distance"] == pytest.approx(25)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    divergence = [(row[row > 0] * np.log(row[row > 0] / p.mean(0)[row > 0])).sum() for row in p]
    assert scores["inception_score"] == pytest.approx(np.exp(np.mean(divergence)))
    assert scores["confident_share"] == pytest.approx(0.9)


@pytest.mark.parametrize("distance, verdict", [(20, "samples resemble"), (50, "hardly"), (90, "do not resemble")])
def test_report_of_the_gan(distance, verdict):
    kinds = {"samples": distance, "untrained": 110.0, "digits": 10.0}
    made = {kind: {"frechet_distance": d, "inception_score": 2.0, "confident_share": 0.5} for kind, d in kinds.items()}
    classes, images = [10] * 9 + [1], np.zeros((2, 28, 28), int).tolist()
    findings = gan.report([{**made, "steps": 3, "classes": classes, "images": images}])
    assert verdict in findings.text
    assert findings.numbers["rarest_class_share"]["mean"] == pytest.approx(1 / 91)
    assert set(findings.numbers) == {*gan.SCORES, "rarest_class_share"}
    assert set(findings.baseline) == {*gan.SCORES, *(f"{name}_of_digits" for name in gan.SCORES)}


@pytest.mark.usefixtures("optimized_programs")
@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_claims(name):
    """The claims hold with a margin for one seed; the GAN and the residual network are trained for fewer steps."""
    sizes = {"gan": {"steps": 700}, "deep_residual": {"steps": 150}}
    findings = card_of(name, **sizes.get(name, {}))
    found, baseline = ({key: value["mean"] for key, value in values.items()} for values in findings[1:3])
    if name == "perceptron":
        assert found["lowest_training_error_digits"] == 0 and found["lowest_training_error_xor"] > 0.15
        assert baseline["lowest_training_error_xor"] < 0.05
    elif name == "feed_forward":
        assert found["test_accuracy"] > 0.925 > 0.915 > baseline["test_accuracy"]
    elif name == "deep_feed_forward":
        assert found["test_accuracy_spirals"] > baseline["test_accuracy_spirals"] + 0.1
        assert found["test_accuracy_digits"] > 0.92
    elif name == "deep_convolutional":
        assert found["test_accuracy"] > 0.955 > 0.95 > baseline["test_accuracy"]
        assert found["test_accuracy_moved_2_pixels"] > baseline["test_accuracy_moved_2_pixels"] + 0.1
    elif name == "deep_residual":
        assert found["training_error_56_layers"] < baseline["training_error_56_layers"] - 0.1
    else:
        assert found["frechet_distance"] < 0.25 * baseline["frechet_distance"]
        assert found["confident_share"] > 0.15
