"""Every flagfile is read, checked and traced at full size; nothing is allocated."""

import pathlib

import jax
import pytest
from absl import flags as absl_flags

from data import stream
from experiments import build, flags
from train.state import parameter_count

RECIPES = sorted((pathlib.Path(flags.__file__).parent / "recipes").glob("*.flags"))
PARAMETERS = {"cifar_resnet20": 269_722, "cifar_plain56": 853_018, "densenet40": 1_019_722, "densenet100_bc": 769_162}


@pytest.fixture(scope="module", autouse=True)
def defined():
    if "schedule" not in absl_flags.FLAGS:
        flags.define_run_flags()


@pytest.mark.parametrize("path", [path for path in RECIPES if "1202" not in path.name], ids=lambda path: path.stem)
def test_recipe(path):
    absl_flags.FLAGS.unparse_flags()
    for name in absl_flags.FLAGS.flag_values_dict():
        absl_flags.FLAGS[name].unparse()
    absl_flags.FLAGS(["classify", f"--flagfile={path}"])
    config = flags.values()
    shape = (28, 28, 1) if config["dataset"] == "mnist5k" else (32, 32, 3)
    examples, classes = 50_000, 10
    if config["image_size"]:
        side = stream.view(config["image_size"], config["augment"]).side
        shape, examples, classes = (side, side, 3), 1_281_167, 1000
    about = build.About(shape, (120.0,) * shape[-1], (60.0,) * shape[-1], tuple(map(str, range(classes))))
    steps = build.check(config, examples, 1)
    setup = build.setup(config, about, devices=1, steps=steps)
    state = jax.eval_shape(setup.task.init, jax.random.key(0))
    size = config["batch_size"]
    batch = {"image": jax.ShapeDtypeStruct((size, *shape), "uint8"), "label": jax.ShapeDtypeStruct((size,), "int32")}
    after, sums = jax.eval_shape(setup.task.train_step, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert sums["loss"].shape == () and float(setup.learning_rate(steps // 3)) > 0
    if path.stem in PARAMETERS:
        assert parameter_count(state.params) == PARAMETERS[path.stem]
