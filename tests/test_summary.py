"""Checks parameters and multiply-adds against published numbers, using shapes only."""

import jax
import jax.numpy as jnp
import pytest

import models
from models import segnet, summary

# (name, options, image size, parameters, multiply-adds in millions), as published: the ResNet paper's networks with
# option A, DenseNet's table 2, cuda-convnet's 11 % network on 24x24 crops.
PUBLISHED = [
    ("cifar_resnet20", {}, 32, 269_722, "40.55"),
    ("cifar_resnet32", {}, 32, 464_154, "68.86"),
    ("cifar_resnet44", {}, 32, 658_586, "97.17"),
    ("cifar_resnet56", {}, 32, 853_018, "125.49"),
    ("cifar_resnet110", {}, 32, 1_727_962, "252.89"),
    pytest.param("cifar_resnet1202", {}, 32, 19_421_274, "2829", marks=pytest.mark.slow),
    ("cifar_plain20", {}, 32, 269_722, "40.55"),
    ("cifar_plain32", {}, 32, 464_154, "68.86"),
    ("cifar_plain44", {}, 32, 658_586, "97.17"),
    ("cifar_plain56", {}, 32, 853_018, "125.49"),
    ("densenet", {}, 32, 1_019_722, "264.8"),
    pytest.param("densenet", {"depth": 100}, 32, 6_979_642, "1770", marks=pytest.mark.slow),
    pytest.param("densenet", {"depth": 100, "growth_rate": 24}, 32, 27_249_082, "6889", marks=pytest.mark.slow),
    ("densenet", {"depth": 100, "bottleneck": True, "compression": 0.5}, 32, 769_162, "287.9"),
    ("cuda_convnet", {}, 24, 2_112_970, "19.5"),
]
# The same for 224x224 pixels and 1,000 classes.
IMAGENET = [
    ("alexnet_owt", {}, 61_100_840, 714.19),
    ("vgg11", {}, 132_863_336, None),
    ("vgg13", {}, 133_047_848, None),
    ("vgg16", {}, 138_357_544, 15470.0),
    ("vgg19", {}, 143_667_240, 19632.0),
    ("vgg19_bn", {}, 143_678_248, 19632.0),
    ("plain18", {}, 11_515_688, 1795.0),
    ("plain34", {}, 21_623_848, 3644.0),
    ("resnet18", {}, 11_689_512, 1814.0),
    ("resnet34", {}, 21_797_672, 3664.0),
    ("resnet50", {}, 25_557_032, 3858.0),
    ("resnet50", {"v1_5": True}, 25_557_032, 4089.0),
    ("resnet101", {}, 44_549_160, 7570.0),
    ("resnet101", {"v1_5": True}, 44_549_160, 7801.0),
    pytest.param("resnet152", {}, 60_192_808, 11282.0, marks=pytest.mark.slow),
    pytest.param("resnet152", {"v1_5": True}, 60_192_808, 11514.0, marks=pytest.mark.slow),
    ("densenet121", {}, 7_978_856, 2834.0),
    pytest.param("densenet169", {}, 14_149_480, 3360.0, marks=pytest.mark.slow),
    pytest.param("densenet201", {}, 20_013_928, 4291.0, marks=pytest.mark.slow),
    pytest.param("densenet161", {}, 28_681_000, 7728.0, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, options, size, parameters, multiply_adds", PUBLISHED)
def test_published_counts(name, options, size, parameters, multiply_adds):
    found = summary.layers(models.create(name, 10, **options), (size, size, 3))
    assert sum(layer.parameters for layer in found) == parameters
    assert sum(layer.multiply_adds for layer in found) / 1e6 == pytest.approx(
        float(multiply_adds), abs=0.5 * 10 ** -len(multiply_adds.partition(".")[2])
    )


@pytest.mark.parametrize("name, options, parameters, multiply_adds", IMAGENET)
def test_published_counts_for_imagenet(name, options, parameters, multiply_adds):
    found = summary.layers(models.create(name, 1000, **options), (224, 224, 3))
    assert sum(layer.parameters for layer in found) == parameters
    total = sum(layer.multiply_adds for layer in found) / 1e6
    assert multiply_adds is None or total == pytest.approx(multiply_adds, abs=0.005 if multiply_adds < 1000 else 0.5)


def test_the_dense_block_of_the_papers_figure():
    model = models.create("densenet", 10, blocks=1, depth=7, growth_rate=4)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    kernels = {name: leaves["kernel"].shape for name, leaves in variables["params"].items() if "conv" in name}
    # Each of the five layers reads all previous feature maps and adds four.
    assert kernels == {"conv1": (3, 3, 3, 16)} | {
        f"block1_layer{i}_conv1": (3, 3, 16 + 4 * (i - 1), 4) for i in range(1, 6)
    }
    assert variables["params"]["logits"]["kernel"].shape == (36, 10)


def test_multiply_adds_of_lenet():
    found = {layer.name: layer.multiply_adds for layer in summary.layers(models.create("lenet", 10), (28, 28, 1))}
    assert found == {"c1": 117_600, "c3": 240_000, "c5": 48_000, "f6": 10_080, "logits": 840}


@pytest.mark.parametrize(
    ("network", "parameters", "multiply_adds"),
    [(segnet.SegNetBasic, 1_416_587, 59.19), (segnet.SegNet, 29_449_355, 106.71)],
)
def test_published_counts_of_segnet(network, parameters, multiply_adds):
    found = summary.layers(network(11), (360, 480, 3))
    assert sum(layer.parameters for layer in found) == parameters
    assert sum(layer.multiply_adds for layer in found) / 1e9 == pytest.approx(multiply_adds, abs=0.005)
    assert found[-1].shape == (360, 480, 11)
    assert next(layer.shape for layer in found if layer.name.startswith("decoder4")) == (
        45,
        60,
        64 if network is segnet.SegNetBasic else 512,
    )


@pytest.mark.parametrize("network", [segnet.SegNetBasic, segnet.SegNetSmall])
@pytest.mark.parametrize("decoder", segnet.DECODERS)
def test_segnets_decoders_restore_any_size(network, decoder):
    for size in ((17, 30), (16, 16), (3, 5)):
        assert summary.layers(network(5, decoder=decoder), (*size, 3))[-1].shape == (*size, 5)
