"""Tests of the filters command: grids, receptive fields, guided gradients, and maximally activating patches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from PIL import Image

import data
import models
from experiments import filters
from experiments.cli import compilation_cache
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig
from experiments.filters import FiltersConfig
from experiments.reporting import figures_filters, report
from experiments.setup import classification
from experiments.setup.experiment import ClassificationInfo, Experiment
from models import layers
from train import workdir
from train.state import State


def test_the_filter_grid_has_one_pixel_lines_and_scales_each_filter():
    kernels = np.zeros((7, 2, 3, 3))
    kernels[1] = [[[-1, 0, 1]] * 3] * 2
    kernels[2] = 100 * kernels[1]
    grid = figures_filters.filter_grid(kernels)
    scale = -(-figures_filters.WIDTH // 13)  # Rows of three filters, four pixels each, and a final line.
    assert grid.shape == (10 * scale, 13 * scale, 3)
    small = grid[::scale, ::scale]
    np.testing.assert_array_equal(grid, small.repeat(scale, 0).repeat(scale, 1))
    assert not small[::3].any() and not small[:, ::4].any() and not small[7:, 5:].any()
    assert (small[1:3, 1:4] == 128).all() and (small[7:9, 1:4] == 128).all()
    for left in (5, 9):
        np.testing.assert_array_equal(small[1:3, left : left + 3], [[[0, 128, 255]] * 3] * 2)


def test_grids_prefer_full_rows():
    assert [figures_filters.columns_of(n) for n in (1, 5, 6, 7, 10, 32, 64, 96)] == [1, 5, 3, 3, 5, 8, 8, 12]


def test_filters_without_three_channels_are_gray_with_zero_in_the_middle():
    np.testing.assert_array_equal(figures_filters.as_colour([[1.0, 3.0]]), [[2.0, 2.0, 2.0]])
    found = figures_filters.around_grey(
        np.array([[-4.0, 0.0, 2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.5]]).reshape(3, 1, 3, 1)
    )
    np.testing.assert_array_equal(found.reshape(3, 3), [[0.0, 0.5, 0.75], [0.5, 0.5, 0.5], [1.0, 0.5, 0.75]])


def test_guided_relu_passes_positive_gradients_through_positive_inputs():
    x, slope = jnp.array([-1.0, 2.0, 3.0, 0.0]), jnp.array([5.0, -1.0, 4.0, 1.0])

    def loss(x):
        return (slope * layers.relu(x)).sum()

    def guided_loss(x):
        return (slope * layers.relu(x, guided=True)).sum()

    value, gradient = jax.jit(jax.value_and_grad(guided_loss))(x)
    assert value == 10.0
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 4.0, 0.0])
    np.testing.assert_array_equal(jax.grad(loss)(x), [0.0, -1.0, 4.0, 0.0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet", {"activation": "relu"}),
        ("lenet", {"activation": "rectified_tanh"}),
        ("lenet", {"activation": "gelu"}),
        ("cnn", {}),
        ("cuda_convnet", {}),
        ("dcnn", {}),
        ("densenet", {"depth": 10}),
        pytest.param("densenet121", {}, marks=pytest.mark.slow),
        ("cifar_resnet20", {}),
        ("resnet18", {}),
        ("alexnet_owt", {}),
        ("vgg11", {}),
    ],
)
def test_every_rectifier_of_a_network_is_guided(name, options):
    model = models.create(name, 10, **options)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def jaxpr(model):
        return str(jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, images))

    plain, guided = jaxpr(model), jaxpr(model.clone(guided=True))
    rectifier = " = tanh" if name == "dcnn" or options.get("activation") == "gelu" else " = le "
    assert plain.count(rectifier) == guided.count("name=_guided_") > 0


def test_guided_is_not_an_option_of_commands():
    assert "guided" not in models.options("cnn")


def test_convolutions_come_in_the_order_of_the_forward_pass():
    model, images = models.create("dcnn", 10), jnp.zeros((2, 17, 17, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    found = jax.eval_shape(lambda variables: filters.outputs(model, variables, images), variables)
    assert list(found)[:3] == ["block1_conv1", "block1_conv2", "block2_conv1"] and len(found) == 6
    assert found["block1_conv2"].shape == (2, 8, 8, 48)


def fields(name, layer, shape):
    # The sigmoid of an image of zeros is not zero.
    options = {"lenet": {"activation": "sigmoid"}}
    model = models.create(name, 10, **options.get(name, {}))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    return filters.receptive_fields(model, variables, shape, name=layer)


@pytest.mark.parametrize(
    ("name", "layer", "shape", "first", "stride", "size"),
    [
        ("cnn", "conv2", (28, 22, 1), -4, 2, 10),  # 5x5, pool 2, 3x3.
        ("lenet", "c3", (28, 28, 1), -2, 2, 14),  # Two pixels of padding; 5x5, pool 2, 5x5.
        ("cuda_convnet", "conv2", (24, 24, 3), -6, 2, 15),  # 5x5, pool 3 of stride 2, 5x5.
        ("dcnn", "block1_conv2", (32, 32, 3), -3, 2, 9),  # 2x2 whitening, padded 3x3, pool 2, 3x3.
        ("cifar_resnet20", "stage2_block1/conv2", (32, 32, 3), -10, 2, 21),  # Seven 3x3, 3x3 of stride 2, 3x3.
    ],
)
def test_receptive_fields_against_a_hand_calculation(name, layer, shape, first, stride, size):
    for found, pixels in zip(fields(name, layer, shape), shape[:2], strict=True):
        start = first + stride * np.arange(len(found))
        np.testing.assert_array_equal(found, np.stack([start, start + size], axis=1).clip(0, pixels))


def test_patches_at_the_border_are_padded_in_place():
    image = np.arange(20.0).reshape(4, 5, 1)
    found = filters.cut(image, ((0, 2), (3, 5)), size=(3, 3), fill=-1.0)[..., 0]
    np.testing.assert_array_equal(found, [[-1, -1, -1], [3, 4, -1], [8, 9, -1]])
    np.testing.assert_array_equal(filters.cut(image, ((1, 4), (2, 5)), size=(3, 3), fill=-1.0), image[1:4, 2:5])


class Planted(nn.Module):
    """An identity 3x3 convolution, ReLU, and a 5x5 convolution with two filters: the mean and `kernel`."""

    kernel: np.ndarray
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        middle = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
        x = layers.relu(
            layers.Conv(1, (3, 3), use_bias=False, kernel_init=lambda *_: middle, name="conv1")(x), guided=self.guided
        )
        both = jnp.concatenate([jnp.full((5, 5, 1, 1), 0.001), jnp.asarray(self.kernel).reshape(5, 5, 1, 1)], axis=-1)
        return layers.Conv(2, (5, 5), use_bias=False, kernel_init=lambda *_: both, name="conv2")(x)


def test_the_patches_of_a_planted_filter_contain_its_pattern():
    cross = np.maximum(np.eye(5), np.eye(5)[::-1])
    images = np.random.default_rng(0).integers(0, 60, (20, 16, 12, 1)).astype(np.uint8)
    places = {13: (7, 5), 2: (2, 9), 17: (12, 3)}  # Centers by image; the second and third are near a border.
    for bright, (image, (y, x)) in zip((255, 225, 195), places.items(), strict=True):
        images[image, y - 2 : y + 3, x - 2 : x + 3, 0] = np.where(cross, bright, 60)
    model = Planted(2 * cross - 1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 12, 1)))
    info = ClassificationInfo((16, 12, 1), (51.0,), (102.0,), ("a", "b"))
    experiment = Experiment(info, (16, 12, 1), model, None, None)
    state = State(variables["params"], {}, None, jnp.zeros(()), None)

    def prepare(images):
        return (images.astype(jnp.float32) - 51.0) / 102.0

    channels, patches, gradients = filters.excited_patches(
        state, images, experiment=experiment, prepare=prepare, name="conv2"
    )
    assert list(channels) == [1, 0] and patches.shape == gradients.shape == (2, 9, 7, 7, 1)
    for i, (image, (y, x)) in enumerate(places.items()):
        whole = np.pad(images[image] / 255, ((3, 3), (3, 3), (0, 0)), constant_values=0.5)
        np.testing.assert_allclose(patches[0, i], whole[y : y + 7, x : x + 7], atol=1e-6)
        # Only the cross: guided ReLU passes only positive gradients, although the whole pattern is above the mean.
        np.testing.assert_array_equal(gradients[0, i, ..., 0], np.pad(cross, 1))


def make_run(path, model):
    """Creates the workdir of a classifier with two checkpoints, the older one the best, and returns their states."""
    config, dataset = ClassifyConfig(workdir=str(path), model=model), data.load("mnist5k")
    return made_run.make_run(path, classification, config, dataset, classification.dataset_info(config, dataset))


@pytest.mark.slow
def test_the_command_on_a_network_with_convolutions(tmp_path, monkeypatch, capsys, environment, start):
    monkeypatch.setattr(compilation_cache, "start_cache", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    older, newer = make_run(tmp_path, "cnn")
    for which, state in (("best", older), ("latest", newer)):
        assert filters.main(FiltersConfig(str(tmp_path), 1, which)) == 0
        kernels = np.asarray(state.params["conv1"]["kernel"]).transpose(3, 0, 1, 2)
        with Image.open(tmp_path / "filters_layer1.png") as image:
            np.testing.assert_array_equal(np.asarray(image), figures_filters.filter_grid(kernels))
        assert capsys.readouterr().out == f"conv1: 32 filters of 5x5x1: {tmp_path}/filters_layer1.png\n"
    with pytest.raises(UsageError, match="--layer=4: must be between 1 and 3: 1 conv1, 2 conv2, 3 conv3$"):
        filters.main(FiltersConfig(str(tmp_path), 4))
    (tmp_path / "report.html").write_text(f"<main>{report.MORE}</main>")
    done = start("filters", f"--workdir={tmp_path}", "--layer=2")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<main><figure><h3>Patches for conv2</h3>") and page.endswith(f"{report.MORE}</main>")
    assert len(done.stdout.splitlines()) == 1 and "9 patches of 10x10 pixels" in done.stdout
    with Image.open(tmp_path / "filters_layer2.png") as image:
        assert image.width >= figures_filters.WIDTH
    done = start("filters", f"--workdir={tmp_path}", "--layer=4")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert start("filters", f"--workdir={tmp_path}", "--layer=0").stderr == "error: --layer=0: must be 1 or more\n"


def test_the_command_without_a_convolution_and_without_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "start_cache", lambda: None)
    _, state = make_run(tmp_path / "run", "mlp")
    assert filters.main(FiltersConfig(str(tmp_path / "run"))) == 0
    templates = np.asarray(state.params["dense1"]["kernel"]).T.reshape(-1, 28, 28, 1)
    with Image.open(tmp_path / "run" / "filters_layer1.png") as image:
        np.testing.assert_array_equal(np.asarray(image), figures_filters.filter_grid(templates))
    with pytest.raises(UsageError, match="--layer=2: mlp has no convolution; must be 1 \\(dense1\\)$"):
        filters.main(FiltersConfig(str(tmp_path / "run"), 2))
    with pytest.raises(workdir.WorkdirError, match="does not contain a run"):
        filters.main(FiltersConfig(str(tmp_path)))
