"""Checks the table in models/README.md against the networks."""

import dataclasses
import pathlib
import re
import typing

import pytest
from commands import ROOT

import models
from experiments.cli.config import NetworkConfig
from models import summary


class Row(typing.NamedTuple):
    name: str
    paper: str
    published: str
    image: str
    parameters: str
    multiply_adds: str
    recipe: str


ROWS = [
    Row(*(cell.strip().strip("`") for cell in line.strip("|\n").split("|")))
    for line in (ROOT / "models/README.md").read_text().splitlines()
    if line.startswith("| `")
]
# These networks take seconds to trace.
SLOW = {
    "dcnn_wide",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_plain20",
    "cifar_plain32",
    "cifar_plain44",
    "cifar_plain56",
    "densenet --depth=100 --bottleneck --compression=0.5",
    "vit_tiny",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "plain18",
    "plain34",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet152",
    "densenet121",
    "densenet169",
    "densenet201",
    "densenet161",
    "segnet_small",
    "segnet_basic",
    "segnet",
    "dcgan",
    "variational",
}


def options(flags: str) -> dict[str, typing.Any]:
    """The options of a network from flags such as `--depth=100 --bottleneck`."""
    found = re.findall(r"--(\w+)(?:=(\S+))?", flags)
    return {name: (float(value) if "." in value else int(value)) if value else True for name, value in found}


def test_every_network_has_a_row():
    assert [row.name for row in ROWS if " " not in row.name and row.name not in models.MODELS] == []
    assert {row.name.split()[0] for row in ROWS} == set(models.MODELS)


def test_the_help_of_classify_names_classifiers():
    flag = next(field for field in dataclasses.fields(NetworkConfig) if field.name == "model")
    named = re.findall(r"[a-z]\w+", flag.metadata["flag"].help.partition("such as")[2].partition(". ")[0])
    named = [name for name in named if name not in ("for", "ImageNet", "mageNet")]
    assert len(named) > 10 and [name for name in named if models.spec(name).task != "classification"] == []


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in SLOW else []) for row in ROWS]
)
def test_parameters_and_multiply_adds(row):
    name, _, flags = row.name.partition(" ")
    model = models.create(name, models.spec(name).num_classes, **options(flags))
    found = summary.layers(model, tuple(map(int, row.image.split("x"))))
    assert f"{sum(layer.parameters for layer in found):,}" == row.parameters
    assert f"{sum(layer.multiply_adds for layer in found):,}" == row.multiply_adds


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS if row.recipe != "—"])
def test_the_recipe_trains_the_network(row):
    flags = pathlib.Path(ROOT / "experiments/recipes" / row.recipe).read_text().splitlines()
    name, _, rest = row.name.partition(" ")
    # cnn and segnet_small are the default networks of classify and segment.
    model = next((flag for flag in flags if flag.startswith("--model=")), None)
    assert model == f"--model={name}" or (model is None and name in ("cnn", "segnet_small"))
    assert set(rest.split()) <= set(flags)


def test_every_recipe_is_in_the_table():
    text = (ROOT / "models/README.md").read_text()
    assert not [path.name for path in (ROOT / "experiments/recipes").glob("*.flags") if f"`{path.name}`" not in text]
