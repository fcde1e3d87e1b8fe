"""Validates every flag file and traces one recipe of each kind at full size, without allocating memory."""

import re

import jax
import numpy as np
import pytest
from absl import flags
from commands import ROOT

import models
from data import stream
from data.dataset import Dataset
from experiments.cli import options, validation
from experiments.cli.config import ClassifyConfig
from experiments.setup import classification, training
from experiments.setup.experiment import ClassificationInfo
from train.state import parameter_count

FOUND = sorted((ROOT / "experiments" / "recipes").glob("*.flags"))
TASKS = {path: models.spec(re.findall(r"^--model=(\w+)", path.read_text(), re.MULTILINE)[0]).task for path in FOUND}
RECIPES = [path for path, task in TASKS.items() if task == "classification"]
PARAMETERS = {"cifar_resnet20": 269_722, "cifar_plain20": 269_722, "densenet40": 1_019_722, "densenet100_bc": 769_162}

# (fraction of the run, learning rate) as in the sources: the AlexNet author's files divide by 250^(1/3) three times,
# from 0.01 for a batch of 128 to 4e-5; the others divide by ten.
TENTHS = [(0.1, 0.1), (0.5, 0.01), (0.9, 0.001)]
RATES = {
    "alexnet_owt": [(0.1, 0.01), (0.5, 0.001), (0.9, 0.0001)],
    "alexnet_owt_hybrid": [(0.1, 8 * 0.01), (0.3, 8 * 0.001587), (0.6, 8 * 0.000252), (0.9, 8 * 4e-5)],
    "vgg19": [(0.1, 0.01), (0.6, 0.001), (0.8, 0.0001), (0.95, 0.00001)],
    "cifar_resnet20": [(0.4, 0.1), (0.6, 0.01), (0.8, 0.001)],
    "densenet40": [(0.4, 0.1), (0.6, 0.01), (0.8, 0.001)],
    **dict.fromkeys(("plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121"), TENTHS),
}
# Deeper versions of networks whose step is traced.
DEEPER = {f"cifar_{kind}{depth}" for kind in ("resnet", "plain") for depth in (32, 44, 56, 110)}
DEEPER |= {"resnet34", "resnet101", "resnet152"}


TRACED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if "densenet" in path.stem else [])
    for path in RECIPES
    if path.stem != "cifar_resnet1202"
]


@pytest.mark.parametrize("path", TRACED)
def test_recipe(path):
    flag_values = flags.FlagValues()
    options.define(ClassifyConfig, flag_values)
    flag_values(["classify", f"--flagfile={path}", "--workdir=W"])
    config = options.from_flags(ClassifyConfig, flag_values)
    validation.check_classify(config)
    shape = (28, 28, 1) if config.dataset in ("mnist5k", "fashion_mnist") else (32, 32, 3)
    examples, classes = 50_000, 10
    if config.image_size:
        side = stream.view(config.image_size, config.augment).side
        shape, examples, classes = (side, side, 3), 1_281_167, 1000
    covariance = ((3600.0, 9.0, 9.0), (9.0, 3600.0, 9.0), (9.0, 9.0, 3600.0))
    names = tuple(map(str, range(classes)))
    info = ClassificationInfo(shape, (120.0,) * shape[-1], (60.0,) * shape[-1], names, covariance)
    dataset = Dataset("", {"train": (None, np.broadcast_to(0, examples))}, names)
    steps = training.total_steps(config, dataset, 1)
    setup = classification.create_experiment(config, info, devices=1, steps=steps, checked=False)
    for share, rate in RATES.get(path.stem, ()):
        assert float(setup.learning_rate(round(share * steps))) == pytest.approx(rate, rel=1e-3)
    if path.stem in DEEPER:
        return
    state = jax.eval_shape(setup.task.init, jax.random.key(0))
    size = config.batch_size
    batch = {"image": jax.ShapeDtypeStruct((size, *shape), "uint8"), "label": jax.ShapeDtypeStruct((size,), "int32")}
    after, sums = jax.eval_shape(setup.task.train_step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert sums["loss"].shape == () and float(setup.learning_rate(steps // 3)) > 0
    if path.stem in PARAMETERS:
        assert parameter_count(state.params) == PARAMETERS[path.stem]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FOUND])
def test_a_header_states_source_results_deviations_and_command(path):
    comments = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    names = ("Source", "Published", "Ours", "Training", "Deviations", "Variant", "Data", "Command")
    found = [name for line in comments for name in names if re.match(rf"{name}(:| \()", line)]
    assert found == [name for name in names if name in found]
    assert {"Source", "Published", "Ours", "Deviations", "Command"} <= set(found)
    data = " --data_dir=D" if "Data" in found else ""
    task = {"classification": "classify", "segmentation": "segment", "reconstruction": "reconstruct"}[TASKS[path]]
    command = f"python -m experiments.{task} --flagfile=experiments/recipes/{path.name}{data} --workdir=W"
    assert " ".join(comments).partition("Command: ")[2].removesuffix(" --devices=8") == command
    assert not re.search(r"^--(workdir|data_dir)", path.read_text(), re.MULTILINE)
