"""Tests of every network: common requirements and parameter counts."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT

import models
from experiments.cli.config import ClassifyConfig, NetworkConfig
from experiments.setup import classification
from experiments.setup.experiment import ClassificationInfo
from models import (
    alexnet,
    attention,
    cnn,
    dcgan,
    dcnn,
    densenet,
    initializers,
    layers,
    resnet,
    resnet_cifar,
    summary,
    vgg,
)
from models.errors import ModelError
from models.resnet_cifar import Block
from train.precision import cast_floating

NAMES = [
    "perceptron",
    "logistic",
    "mlp",
    "lenet",
    "cnn",
    "rnn",
    "lstm",
    "gru",
    "vit_tiny",
    pytest.param("cifar_resnet20", marks=pytest.mark.slow),
    pytest.param("cifar_plain20", marks=pytest.mark.slow),
    "densenet",
    pytest.param("cuda_convnet", marks=pytest.mark.slow),
    "dcnn",
]
TINY = {"densenet": densenet.TinyDenseNet, "vit_tiny": attention.TinyViT}
VARIANTS = [
    (alexnet.TinyAlexNet, 63),
    (attention.TinyViT, 8),
    (cnn.TinyCNN, 8),
    (dcnn.TinyDCNN, 9),
    (densenet.TinyDenseNet, 8),
    (densenet.TinyImageNetDenseNet, 29),
    (resnet.TinyResNet, 32),
    (resnet_cifar.TinyCifarResNet, 8),
    (vgg.TinyVGG, 32),
]
COUNTS = {
    "perceptron": 7_850,
    "logistic": 785,
    "mlp": 235_146,
    "lenet": 61_706,
    "cnn": 94_058,
    "lstm": 81_674,
    "vit_tiny": 205_066,
}


def outputs_of(model, images):
    """The shapes and dtypes of a network's outputs in training, with parameters of the images' dtype."""
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def forward(images, variables):
        variables = variables | {"params": cast_floating(variables["params"], images.dtype)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)})

    return jax.eval_shape(forward, images, variables)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "name", ["dcnn", "dcgan", "cnn", "lenet", "lstm", "gru", "vit_tiny", "densenet", "cifar_resnet20", "segnet_small"]
)
def test_dtypes_of_outputs_and_statistics(name, x64, dtype):
    """The output has the images' dtype and batch statistics stay float32, regardless of JAX's default dtype."""
    images = jax.ShapeDtypeStruct((4, 32, 32, 1 if name in ("lenet", "cnn") else 3), dtype)
    if name == "lenet":
        images = images.update(shape=(4, 28, 28, 1))
    options = {"size": 32, "conditional": True} if name == "dcgan" else {}
    model = TINY[name](num_classes=3) if name in TINY else models.create(name, 3, **options)
    with jax.enable_x64(x64):
        output, stats = outputs_of(model, images)
    assert output.dtype == dtype and {leaf.dtype for leaf in jax.tree.leaves(stats)} <= {jnp.dtype("float32")}


def test_latent_vectors_do_not_depend_on_jax_enable_x64():
    keys = jax.random.split(jax.random.key(0), 3)
    for authors in (False, True):
        expected = dcgan.latents(keys, authors=authors)
        with jax.enable_x64(True):
            np.testing.assert_array_equal(dcgan.latents(keys, authors=authors), expected, strict=True)


def classes_of(name):
    return models.spec(name).num_classes


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_gradients(name):
    model = TINY.get(name, functools.partial(models.create, name))(num_classes=classes_of(name))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 28, 28, 1)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    traces = []

    @jax.jit
    @jax.grad
    def gradients(params):
        traces.append(1)
        rest = {k: v for k, v in variables.items() if k != "params"}
        logits, _ = model.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        )
        return (logits**2).sum() + logits.sum()

    logits = jax.jit(model.apply)(variables, images)
    assert logits.shape == (4, 1 if name == "logistic" else 10) and logits.dtype == jnp.float32
    for _ in range(2):
        found = jax.tree.leaves(jax.device_get(gradients(variables["params"])))
    assert all(np.isfinite(gradient).all() for gradient in found) and any(gradient.any() for gradient in found)
    assert len(traces) == 1


@pytest.mark.parametrize(("variant", "side"), VARIANTS)
def test_tiny_variants(variant, side):
    model = variant(10)
    found = summary.layers(model, (side, side, 3))
    assert found[-1].shape == (10,) and sum(layer.parameters for layer in found) < 200_000


def test_named_variants_equal_the_registry():
    for module, name in (
        (resnet.ResNet50, "resnet50"),
        (resnet.Plain34, "plain34"),
        (resnet_cifar.ResNet20, "cifar_resnet20"),
        (vgg.VGG16, "vgg16"),
        (vgg.VGG19BN, "vgg19_bn"),
        (densenet.DenseNet121, "densenet121"),
        (dcnn.DCNNWide, "dcnn_wide"),
    ):
        assert module(10) == models.create(name, 10)


@pytest.mark.parametrize(
    "window, stride, padding, ceil",
    [(2, 2, 0, False), (3, 2, 1, False), (3, 2, 0, False), (3, 1, 1, False), (2, 2, 0, True), (3, 2, 0, True)],
)
@pytest.mark.parametrize("size", [(7, 8), (4, 5)])
def test_max_pool_equals_flax(window, stride, padding, ceil, size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    # With ceil, one window of each row and column may extend beyond the edge.
    high = [padding + (ceil and (side - window) % stride > 0) * (stride - (side - window) % stride) for side in size]

    def theirs(x):
        return nn.max_pool(x, (window, window), strides=(stride, stride), padding=[(padding, side) for side in high])

    def ours(x):
        return layers.max_pool(x, window, stride=stride, padding=padding, ceil=ceil)

    def both_ways(f):
        return jax.jit(lambda x: (f(x), jax.grad(lambda x: (f(x) ** 2).sum())(x)))(x)

    for found, expected in zip(both_ways(ours), both_ways(theirs), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_second_order_gradients_of_overlapping_max_pooling():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)), jnp.float32)

    def squared_gradient(pool, x):
        gradient = jax.grad(lambda x: (pool(x) ** 3).sum())(x)
        return (gradient**2 * jnp.arange(x.size).reshape(x.shape)).sum()

    ours = jax.grad(lambda x: squared_gradient(lambda x: layers.max_pool(x, 3, stride=2, padding=1), x))(x)
    pads = ((1, 1), (1, 1))
    theirs = jax.grad(lambda x: squared_gradient(lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=pads), x))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)
    assert jnp.abs(ours).max() > 100


def test_local_response_norm_and_ceil_pooling_against_loops():
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 12)).astype(np.float32)
    total = np.stack([(x[..., max(0, c - 2) : c + 3] ** 2).sum(-1) for c in range(12)], axis=-1)
    found = layers.local_response_norm(jnp.asarray(x), size=5, alpha=0.3, beta=0.75)
    np.testing.assert_allclose(found, x / (1 + 0.3 / 5 * total) ** 0.75, rtol=1e-5)
    pooled = np.stack(
        [np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in (0, 2)], axis=1) for i in (0, 2, 4)], axis=1
    )
    np.testing.assert_array_equal(layers.max_pool(jnp.asarray(x), 3, stride=2, ceil=True), pooled)


def test_a_residual_block_of_zero_weights_is_the_option_a_shortcut():
    block = Block(width=8, stride=2)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 4, 4, 4)), jnp.float32)
    shapes = jax.eval_shape(lambda key, x: block.init(key, x, False), jax.random.key(1), x)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    expected = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    np.testing.assert_array_equal(block.apply(variables, x, False), expected)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_parameter_count(name):
    found = summary.layers(models.create(name, classes_of(name)), (28, 28, 1))
    assert sum(layer.parameters for layer in found) == COUNTS[name]


@pytest.mark.parametrize("name, options", [("cnn", {}), ("mlp", {"dropout": 0.5})])
def test_training_differs_from_evaluation_with_batch_norm_and_dropout(name, options):
    model = models.create(name, 10, **options)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 28, 28, 1)), jnp.float32)
    variables, rngs = jax.jit(model.init)(jax.random.key(1), images), {"dropout": jax.random.key(2)}
    train = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"], rngs=rngs)[0])
    evaluation = jax.jit(lambda v: model.apply(v, images, train=False))
    assert not np.allclose(train(variables), evaluation(variables))


def test_every_models_specs_are_in_the_registry_and_no_name_is_used_twice():
    files = [path.stem for path in (ROOT / "models").glob("*.py") if "\nSPECS" in path.read_text()]
    names = [name for file in files for name in getattr(models, file).SPECS]
    assert sorted(names) == sorted(models.MODELS)


@pytest.mark.parametrize(
    "name, image_shape, num_classes, task",
    [
        ("mlp", (28, 28, 1), 10, "classification"),
        ("logistic", (28, 28, 1), 2, "classification"),
        ("cifar_plain20", (32, 32, 3), 10, "classification"),
        ("densenet", (32, 32, 3), 10, "classification"),
        ("densenet121", (224, 224, 3), 1000, "classification"),
        ("plain18", (224, 224, 3), 1000, "classification"),
        ("vgg11_bn", (224, 224, 3), 1000, "classification"),
        ("segnet_small", (64, 64, 1), 11, "segmentation"),
        ("segnet", (360, 480, 3), 11, "segmentation"),
        ("dcgan", (64, 64, 3), 10, "generation"),
        ("variational", (28, 28, 1), 10, "reconstruction"),
    ],
)
def test_image_shape_classes_and_task_of_a_model(name, image_shape, num_classes, task):
    spec = models.spec(name)
    assert (spec.image_shape, spec.num_classes, spec.task) == (image_shape, num_classes, task)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'lenett'; did you mean lenet\? known: alexnet_owt, auto"):
        models.create("lenett", 10)
    known = "; did you mean resnet18\\? known: alexnet_owt, densenet121, .*, vgg19_bn$"  # Only those of torchvision.
    with pytest.raises(ModelError, match=known):
        models.from_torchvision("resnet19", {})
    with pytest.raises(ValueError, match="takes no option 'depth'"):
        models.create("mlp", 10, depth=3)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
def test_max_pool_equals_a_loop_and_sends_the_gradient_to_the_first_maximum(shape):
    x = np.round(np.random.default_rng(0).normal(size=shape), 0).astype(np.float32)  # Rounded: many ties.
    expected, grad = np.zeros((shape[0], shape[1] // 2, shape[2] // 2, shape[3]), np.float32), np.zeros(shape)
    for b, i, j, c in np.ndindex(expected.shape):
        window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        di, dj = np.unravel_index(window.argmax(), (2, 2))
        expected[b, i, j, c] = window.max()
        grad[b, 2 * i + di, 2 * j + dj, c] += 1
    np.testing.assert_array_equal(layers.max_pool(jnp.asarray(x), 2), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: layers.max_pool(x, 2).sum())(jnp.asarray(x)), grad)


def test_dropout_keeps_the_mean_and_drops_the_rate():
    x = jnp.ones((64, 1000))
    y = layers.Dropout(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert abs(float((y == 0).mean()) - 0.25) < 0.01 and abs(float(y.mean()) - 1) < 0.01
    np.testing.assert_array_equal(layers.Dropout(0.25).apply({}, x, False), x)


def test_dropout_masks_depend_on_the_rows_in_the_global_batch():
    """Parts of a batch, given with their row indices, have the masks of the whole batch, also in hidden layers."""
    model, images = models.create("mlp", 10, hidden=(40,), dropout=0.5), jnp.ones((6, 2, 2, 1))
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def apply(rows):
        given = variables | layers.batch_rows(jnp.asarray(rows))
        return model.apply(given, images[: len(rows)], train=True, rngs={"dropout": jax.random.key(0)})

    whole = model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
    assert len(np.unique(whole[:, 0])) == 6
    np.testing.assert_allclose(apply([4, 1]), whole[np.array([4, 1])], rtol=1e-5)


def test_activations():
    x = jnp.array([-2.0, 0.5])
    np.testing.assert_allclose(layers.activation("rectified_tanh")(x), [0.0, np.tanh(0.5)], rtol=1e-6)
    np.testing.assert_allclose(layers.activation("leaky_relu", slope=0.1)(x), [-0.2, 0.5], rtol=1e-6)
    # From Hendrycks & Gimpel's tanh approximation; the exact values are -0.0455 and 0.3457.
    np.testing.assert_allclose(layers.activation("gelu")(x), [-0.045402, 0.345714], atol=1e-6)
    with pytest.raises(ValueError, match="unknown activation 'swish'; known: gelu, leaky_relu, "):
        layers.activation("swish")


@pytest.mark.parametrize("channels", [3, 1])
def test_dcnns_first_filters_whiten_the_patches(channels):
    rng, model = np.random.default_rng(0), models.create("dcnn", 10)
    images = rng.normal(size=(50, 1, 1, channels)) + np.cumsum(rng.normal(size=(50, 32, 32, channels)), axis=2) / 6
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images[:1], jnp.float32))
    whitening = dcnn.whitening_from_images(variables["batch_stats"], images)["whitening"]
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    outputs = patches.reshape(-1, 4 * channels) @ np.asarray(whitening).reshape(4 * channels, -1)
    flat = patches.reshape(-1, 4 * channels)
    variances = np.linalg.eigvalsh(flat.T @ flat / len(flat))[::-1]
    expected = np.diag(variances / (variances + 1e-1))
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), expected, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 1])
def test_dcnns_first_filters_combine_both_layers(channels):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 9, 8, channels)).astype(np.float32)
    whitening = rng.normal(size=(2, 2, channels, 4 * channels))
    both = rng.normal(size=(3, 3, 8 * channels, 5))
    together = dcnn.first_filters({"block1_conv1": {"kernel": both}}, {"whitening": whitening})

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, jnp.asarray(kernel, jnp.float32), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def first_layers(images):
        white = convolve(images, whitening)
        return convolve(layers.gelu(jnp.concatenate([white, -white], -1)), both)

    odd_part = (first_layers(images) - first_layers(-images)) / 2
    np.testing.assert_allclose(convolve(images, together), odd_part, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3, 16, 12), (7, 5), (1, 1, 64, 128)])
def test_initial_weights_follow_the_papers_and_equal_flax(shape):
    key = jax.random.key(0)
    kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")(key, shape)
    np.testing.assert_allclose(initializers.kaiming_normal(key, shape), kaiming, rtol=1e-6)
    glorot = nn.initializers.glorot_uniform()(key, shape)
    np.testing.assert_allclose(initializers.glorot_uniform(key, shape), glorot, rtol=1e-6, atol=1e-8)
    normal = nn.initializers.normal(0.1)(key, shape)
    np.testing.assert_allclose(initializers.normal(0.1)(key, shape), normal, rtol=1e-6)


@pytest.mark.parametrize("draw", [initializers.kaiming_normal, initializers.glorot_uniform])
def test_a_layer_without_channels_is_refused(draw):
    with pytest.raises(ModelError, match="a layer with a kernel of shape 3x3x0x8 has no weights"):
        draw(jax.random.key(0), (3, 3, 0, 8))


@pytest.mark.parametrize("filters", [2, 5])
def test_a_dirac_convolution_begins_as_the_identity(filters):
    kernel = initializers.dirac(jax.random.key(0), (3, 3, 3, filters))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32)
    found = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(found[..., :3], x[..., :filters], rtol=1e-6)
    drawn = initializers.kaiming_normal(jax.random.key(0), (3, 3, 3, filters))
    np.testing.assert_array_equal(kernel[..., 3:], drawn[..., 3:])


@pytest.mark.parametrize(
    "name, options, least, line",
    [
        ("densenet121", {}, 29, "densenet121 needs images of at least 29x29 pixels, not 28x40"),
        (
            "densenet",
            {"depth": 9, "blocks": 4},
            8,
            "DenseNet of 4 blocks needs images of at least 8x8 pixels, not 7x40",
        ),
        ("cuda_convnet", {}, 4, "cuda_convnet needs images of at least 4x4 pixels, not 3x40"),
    ],
)
def test_the_smallest_image(name, options, least, line):
    model = models.create(name, 10, **options)
    assert all(np.prod(layer.shape) > 0 for layer in summary.layers(model, (least, least, 3)))
    with pytest.raises(models.ModelError, match=line):
        summary.layers(model, (least - 1, 40, 3))


@pytest.mark.slow
@pytest.mark.parametrize("author", [False, True])
def test_alexnets_initial_weights_follow_its_source(author):
    model = models.create("alexnet_owt", 1000, author_weights=author)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    stds = {"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03}
    biases = {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc6": 1, "fc7": 1, "logits": -7}
    assert params.keys() == biases.keys()
    for name, layer in params.items():
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        if author:
            assert kernel.std() == pytest.approx(stds.get(name, 0.01), rel=0.02)
            assert abs(kernel).max() > 3 * kernel.std()
            assert (bias == biases[name]).all()
        else:
            for values, slack in ((kernel, 0.01), (bias, 0.3)):
                assert abs(values).max() == pytest.approx(bound, rel=slack / 3) and abs(values).max() < 1.0001 * bound
                assert values.std() == pytest.approx(bound / 3**0.5, rel=slack)


def test_author_groups_set_alexnets_first_weights():
    for author in (False, True):
        model = classification.network(NetworkConfig(model="alexnet_owt"), 10, author=author)
        assert model.author_weights == author


@pytest.mark.parametrize("fields, missing", [({}, "axis_name"), ({"axis_name": str | None}, "sync_bn")])
def test_batch_norm_without_its_fields_is_refused_on_several_devices(monkeypatch, fields, missing):
    class Alone(nn.Module):
        num_classes: int
        __annotations__.update(fields)
        axis_name = None

        @nn.compact
        def __call__(self, x, train: bool = False):
            x = layers.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
            return layers.Dense(self.num_classes)(x)

    monkeypatch.setitem(models.MODELS, "alone", models.ModelSpec(module=Alone))
    config = ClassifyConfig(model="alone", batch_size=8)
    info = ClassificationInfo((4, 4, 1), (0.0,), (1.0,), ("a", "b"))
    assert classification.create_experiment(config, info, devices=1, steps=1).model.num_classes == 2
    with pytest.raises(ValueError, match=f"alone has batch norm, but no field {missing} for its statistics"):
        classification.create_experiment(config, info, devices=2, steps=1)
