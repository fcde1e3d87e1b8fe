"""Tests of both forms of dropout, correlations, the scanned and the unrolled network, and a short run of each topic."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from experiments.cli.app import UsageError
from experiments.lecture import dropout, narrow_nets, plain_vs_residual, topic
from models.layers import Dropout
from models.resnet_cifar import CifarResNet

FAST = {"xla_backend_optimization_level": 0}  # Compiles faster; these programs run only once.


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.8])
def test_the_forms_of_dropout_differ_by_a_factor(rate):
    """The lecture's form gives 1 - p times the output of inverted dropout, with the same mask and at test time."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.uniform(0.5, 2.0, (64, 50)), jnp.float32)
    inverted = jax.jit(lambda x: Dropout(rate).apply({}, x, True, rngs={"dropout": jax.random.key(1)}))
    mask = inverted(jnp.ones_like(x)) > 0
    assert abs(float(mask.mean()) - (1 - rate)) < 0.04
    once = dropout.lecture_dropout(x, mask, rate=rate, train=True)
    np.testing.assert_array_equal(once, np.where(mask, x, 0))
    np.testing.assert_allclose(once, (1 - rate) * inverted(x), rtol=1e-6)
    test = dropout.lecture_dropout(x, None, rate=rate, train=False)
    np.testing.assert_allclose(test, (1 - rate) * Dropout(rate).apply({}, x, False), rtol=1e-6)


def test_expectation_of_dropout():
    """The mean over n masks is the test output, with standard deviation x sqrt(p (1 - p) / n)."""
    x, masks = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, 2000), jnp.float32), 2000
    for rate in (0.2, 0.5):
        found = dropout.mean_over_masks(x, jax.random.key(0), rate=rate, masks=masks)
        test = dropout.lecture_dropout(x, None, rate=rate, train=False)
        away = np.asarray((found - test) / (x * np.sqrt(rate * (1 - rate) / masks)))
        assert abs(away.mean()) < 0.1 and 0.95 < away.std() < 1.05


def test_mean_correlation():
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, -1.0, -1.0, 1.0])  # Uncorrelated.
    columns = np.stack([a, -3 * a + 1, b, np.full(4, 7.0)], axis=1)  # |r| of pairs: 1, 0, 0; the last is constant.
    assert dropout.mean_correlation(columns) == pytest.approx(1 / 3)
    assert dropout.mean_correlation(columns[:, 2:]) == 0.0


def test_few_digits(mnist5k):
    labels = mnist5k.splits["train"][1]
    rows = dropout.few_digits(labels)
    assert (np.bincount(labels[rows]) == 50).all() and (np.diff(rows) > 0).all()


@pytest.mark.parametrize("residual", [False, True])
def test_scanned_network_equals_published_network(residual):
    """With 16 maps and unstacked weights NarrowNet equals CifarResNet, including batch statistics."""
    model, deep = narrow_nets.NarrowNet(10, 14, residual, 16), CifarResNet(10, 14, residual)
    random, images = np.random.default_rng(0), jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    shapes = jax.eval_shape(lambda key: model.init(key, images), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: random.uniform(-0.2, 0.5, leaf.shape).astype(np.float32), shapes)

    def unstack(tree):
        found = {name: leaf for name, leaf in tree.items() if not name.startswith("stage")}
        for stage in (1, 2, 3):
            after = 1
            if stage > 1:
                found[f"stage{stage}_block1"], after = tree[f"stage{stage}_first"], 2
            for block in (1, 2)[after - 1 :]:
                rest = tree[f"stage{stage}_rest"]
                found[f"stage{stage}_block{block}"] = jax.tree.map(lambda leaf, at=block - after: leaf[at], rest)
        return found

    def outputs(model):
        def apply(variables):
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

        return jax.jit(apply, compiler_options=FAST)

    logits, changed = outputs(model)(variables)
    expected, others = outputs(deep)({kind: unstack(tree) for kind, tree in variables.items()})
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    statistics = unstack(changed["batch_stats"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), statistics, others["batch_stats"])


@pytest.mark.parametrize("net", narrow_nets.NETS)
def test_number_of_layers(net):
    depth, residual = narrow_nets.NETS[net]
    assert (depth, residual) == (int(net[-2:]), net.startswith("residual"))
    model = narrow_nets.NarrowNet(10, depth, residual, 4)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 7, 7, 1))), jax.random.key(0))["params"]
    kernels = [leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
    assert sum(shape[0] if len(shape) == 5 else 1 for shape in kernels) == depth


def test_blocks_are_initialized_independently():
    model = narrow_nets.NarrowNet(10, 20, True, 4)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 7, 7, 1))), compiler_options=FAST)
    params = init(jax.random.key(0))["params"]
    kernels = np.asarray(params["stage3_rest"]["conv1"]["kernel"])
    assert kernels.shape == (2, 3, 3, 16, 16) and np.abs(np.corrcoef(kernels.reshape(2, -1))[0, 1]) < 0.1
    np.testing.assert_allclose(kernels.var((1, 2, 3, 4)), 2 / (9 * 16), rtol=0.1)  # Kaiming, fan-in of one block.


def test_moving_average():
    values = [[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 4.0]]
    np.testing.assert_allclose(narrow_nets.moving_average(values, 2), [[1.5, 2.5, 4.5], [0.0, 2.0, 4.0]])
    np.testing.assert_allclose(narrow_nets.moving_average(values, 4), [[3.0], [2.0]])


def test_choice_of_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_vs_residual, "default_dir", lambda name: tmp_path)
    assert plain_vs_residual.choose("auto").name == "mnist5k"
    with pytest.raises(data.DataError, match="cifar10 is not prepared"):
        plain_vs_residual.choose("cifar10")
    place = tmp_path / "nutshell_cifar10" / "1.0.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text("damaged")
    monkeypatch.setattr(data, "load", lambda name: name)  # A damaged store is not skipped.
    assert plain_vs_residual.choose("auto") == "cifar10"
    assert plain_vs_residual.choose("mnist5k") == "mnist5k"


def run_small(module, name, workdir, **options):
    """(lesson.json, summary.json) of a short run of a topic, after checks of its figures."""
    defaults = {option: default for option, (default, _) in ({"seeds": topic.SEEDS} | module.OPTIONS).items()}
    taken = defaults | options
    assert topic.run(name, module.experiment, workdir=str(workdir), options=taken) == 0
    found, numbers = (json.loads((workdir / f"{file}.json").read_text()) for file in ("lesson", "summary"))
    for figure, title, caption in found["figures"]:
        assert (workdir / "figures" / f"{figure}.png").stat().st_size > 5000 and title and caption
    assert all(f"--{option}={value}" in found["command"] for option, value in taken.items())
    return found, numbers


def test_curves_of_dropout_are_not_cut():
    """Axes from 0 to 100 %; an axis around the final values would exaggerate a difference of one point."""
    net = {"step": [0, 5, 10], "train": [0.1, 1.0, 1.0], "test": [0.1, 0.8, 0.86]}
    axes = dropout.draw_curves({"without": [net], "with": [net]}, "title").axes[0]
    assert axes.get_ylim() == (0, 100) and axes.get_xlim() == (0, 10)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training, no dropout", "test, no dropout", "training, dropout", "test, dropout"]
    np.testing.assert_allclose([line.get_ydata()[-1] for line in axes.get_lines()], [100, 86, 100, 86])


@pytest.mark.slow
def test_short_run_of_dropout(tmp_path, monkeypatch, mnist5k):
    monkeypatch.setattr(data, "load", lambda name: mnist5k)
    monkeypatch.setattr(dropout, "MASKS", 100)
    found, numbers = run_small(dropout, "dropout", tmp_path, seeds=2, steps=8, hidden=36)
    assert [name for name, *_ in found["figures"]] == ["accuracy", "features_without", "features_with"]
    for key in ("test_accuracy", "train_accuracy", "activation_correlation", "weight_correlation"):
        assert all(0 <= numbers[key][name]["mean"] <= 1 for name in dropout.NETS)
    scores = numbers["test_accuracy"]
    gain = scores["with"]["mean"] - scores["without"]["mean"]
    assert scores["difference"]["mean"] == pytest.approx(gain) and scores["with"]["std"] > 0
    assert 0 < numbers["mean_over_masks_error"]["mean"] < 0.15
    assert "10.0 % are expected by chance" in found["text"][2]  # sqrt(0.5 / (0.5 * 100)) for 100 masks.
    ((title, header, rows),) = found["tables"]
    assert title == "With and without dropout, mean ± standard deviation over 2 seeds"
    assert header == ["quantity", "no dropout", "dropout", "difference at the same seed"]
    cells = [f"{100 * scores[name]['mean']:.1f} ± {100 * scores[name]['std']:.1f}" for name in dropout.NETS]
    change = f"{100 * gain:.1f} ± {100 * scores['difference']['std']:.1f} points"
    assert rows[0] == ["test accuracy", f"{cells[0]} %", f"{cells[1]} %", change]
    (guess,) = found["guesses"]
    assert guess[0] == "accuracy" and guess[-1] == pytest.approx(100 * scores["with"]["mean"])
    pieces = {seed: json.loads((tmp_path / f"pieces/with_seed{seed}.json").read_text())["found"] for seed in (0, 1)}
    assert np.shape(pieces[0]["features"]) == (36, 784) and pieces[0]["step"] == list(range(9))
    assert scores["with"]["mean"] == pytest.approx(np.mean([piece["test"][-1] for piece in pieces.values()]))
    for option, value in (("rate", 1.0), ("hidden", 35)):
        with pytest.raises(UsageError, match=f"--{option}={value}"):
            run_small(dropout, "dropout", tmp_path / "none", **{option: value})
    assert not (tmp_path / "none" / "options.json").exists()


class Shallow(narrow_nets.NarrowNet):
    """Stands in for the deep networks, which take long to compile."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(self.maps)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(x) * (0.0 if self.depth == 56 and not self.residual else 1.0)


def test_standard_error_of_gap():
    deep, shallow = np.array([0.2, 0.4]), np.array([0.1, 0.1])  # The gaps 0.1 and 0.3 have standard error 0.1.
    found = plain_vs_residual.gap(deep, shallow, 1000)
    assert found["mean"] == pytest.approx(0.2) and found["standard_error"] == pytest.approx(0.1)
    few = plain_vs_residual.gap(np.array([0.5, 0.5]), np.array([0.5, 0.5]), 25)  # Seeds agree, but 25 images are few.
    assert few["std"] == 0 and few["standard_error"] == pytest.approx((2 * 0.25 / 25 / 2) ** 0.5)


@pytest.mark.slow
def test_short_run_of_plain_vs_residual(tmp_path, monkeypatch, mnist5k):
    """With stand-in networks. plain-56 learns nothing, which the text and numbers must state."""
    monkeypatch.setattr(data, "load", lambda name: mnist5k)
    monkeypatch.setattr(narrow_nets, "NarrowNet", Shallow)
    found, numbers = run_small(plain_vs_residual, "plain_vs_residual", tmp_path, dataset="mnist5k", seeds=2, steps=50)
    errors, gaps = numbers["training_error"], numbers["56_minus_20_layers"]
    assert (numbers["dataset"], numbers["pixels_a_side"], numbers["window_steps"]) == ("mnist5k", 7, 5)
    assert errors["plain-56"]["mean"] > 0.8 and errors["plain-20"]["mean"] < 0.75
    assert gaps["plain"]["mean"] == pytest.approx(errors["plain-56"]["mean"] - errors["plain-20"]["mean"])
    assert gaps["residual"]["mean"] == gaps["residual"]["std"] == 0.0
    text = "the deeper network has a higher training error without shortcuts and no higher one with them"
    assert text in found["text"][0]
    (_, _, (plain, residual)), (guess,) = found["tables"][0], found["guesses"]
    worse, error = 100 * gaps["plain"]["mean"], 100 * gaps["plain"]["standard_error"]
    assert plain[0] == "without shortcuts" and plain[3] == f"{worse:.2f} ± {error:.2f} points"
    assert residual[1] == residual[2] and residual[3].startswith("0.00 ± ")
    assert guess[0] == "training_error" and guess[-1] == pytest.approx(100 * errors["plain-56"]["mean"])
    kept = json.loads((tmp_path / "pieces/mnist5k_plain-20_seed0.json").read_text())["found"]
    assert len(kept) == 50 and all(round(64 * error, 9).is_integer() for error in kept)
    for option, value in (("dataset", "mnist"), ("steps", 19), ("pool", 5)):
        with pytest.raises(UsageError, match=f"--{option}={value}"):
            run_small(plain_vs_residual, "plain_vs_residual", tmp_path / "none", **{option: value})
