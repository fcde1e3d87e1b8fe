"""Tests of configs: dataclass fields that become flags, are validated at parsing, stored and read back."""

import dataclasses
import functools
import json
import os
import shlex

import flax.linen as nn
import numpy as np
import pytest
from absl import flags
from commands import ROOT

import models
from data.dataset import Dataset
from experiments.cli import options, validation
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig, GenerateConfig, ReconstructConfig, SegmentConfig
from experiments.cli.options import option
from experiments.evaluate import EvaluateConfig
from experiments.export import ExportConfig
from experiments.filters import FiltersConfig
from experiments.import_weights import ImportWeightsConfig
from experiments.lecture.__main__ import LectureConfig
from experiments.predict import PredictConfig
from experiments.prepare import PrepareConfig
from experiments.reproduce import ReproduceConfig
from experiments.setup import classification, generation, segmentation, training
from experiments.setup.experiment import ClassificationInfo, GenerationInfo, SegmentationInfo
from experiments.summary import SummaryConfig
from experiments.sweep import SweepConfig
from models.errors import ModelError

CONFIGS = (ClassifyConfig, SegmentConfig, GenerateConfig, ReconstructConfig)


def parsed(config_class, *arguments):
    flag_values = flags.FlagValues()
    options.define(config_class, flag_values)
    assert flag_values(["command", "--workdir=/W", *arguments]) == ["command"]
    return options.from_flags(config_class, flag_values)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_without_flags_a_config_has_its_defaults(config_class):
    assert parsed(config_class) == config_class(workdir="/W")


def test_values_have_the_fields_types():
    config = parsed(ClassifyConfig, "--hidden=30,20", "--drops=0.1", "--nesterov", "--slope=-1", "--steps=7")
    assert (config.hidden, config.drops, config.nesterov, config.slope) == ((30, 20), (0.1,), True, -1.0)
    assert config.steps == 7 and config.bottleneck is None and isinstance(config.slope, float)


@pytest.mark.parametrize(
    "flag, accepted",
    {
        "--batch_size=0": "must be between 1 and 2147483647",
        "--momentum=1": "must be at least 0 and less than 1",
        "--momentum=nan": "must be a finite number",
        "--learning_rate=inf": "must be a finite number",
        "--learning_rate=0": "must be greater than 0",
        "--slope=inf": "must be a finite number",
        "--steps=9007199254740993": "must be between 1 and 2147483647",
        "--workdir=": "--workdir must be given: the folder of the run",
        "--weight_decay=-1e-9": "must be 0 or more",
        "--compression=0": "must be greater than 0 and at most 1",
        "--seed=4294967296": "must be between 0 and 4294967295",
        "--drops=0.5,1": "must be greater than 0 and less than 1",
        "--drops=half": "--drops=half: must be a number, or several separated by commas",
        "--hidden=3.5": "must be an integer, or several separated by commas",
        "--schedule=linear": "value should be one of <constant|step|cosine|one_cycle>",
    }.items(),
)
def test_a_value_out_of_bounds_is_refused_when_it_is_parsed(flag, accepted):
    with pytest.raises(flags.IllegalFlagValueError) as caught:
        parsed(ClassifyConfig, flag)
    assert flag.split("=")[0] in str(caught.value) and accepted in str(caught.value)


def test_paths_are_absolute_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell does not expand the tilde of --workdir=~/w, and a stored relative path would fail in another folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir(tmp_path)
    config = parsed(ClassifyConfig, "--workdir=~/w", "--data_dir=../d", "--init_from=/i/../j")
    assert (config.workdir, config.data_dir, config.init_from) == ("/home/someone/w", f"{tmp_path}/../d", "/i/../j")
    assert parsed(ClassifyConfig, "--workdir=a~/~", "--model=~/m").workdir == f"{tmp_path}/a~/~"
    assert options.from_json(ClassifyConfig, {"workdir": "w", "data_dir": ""}).data_dir is None
    stored = options.from_json(ClassifyConfig, options.to_json(config))
    assert stored == config
    assert parsed(LectureConfig, "--use=~/a,b,").use == ("/home/someone/a", f"{tmp_path}/b", "")


@pytest.mark.parametrize(
    "config_class, names",
    {
        ClassifyConfig: {"workdir", "data_dir", "init_from"},
        EvaluateConfig: {"workdir", "data_dir"},
        ExportConfig: {"workdir", "out"},
        FiltersConfig: {"workdir"},
        ImportWeightsConfig: {"workdir", "data_dir", "weights"},
        LectureConfig: {"workdir", "use"},
        PredictConfig: {"workdir", "out"},
        PrepareConfig: {"source", "data_dir", "shards"},
        SummaryConfig: {"figure"},
        SweepConfig: {"workdir"},
        ReproduceConfig: {"run", "workdir", "data_dir"},
    }.items(),
)
def test_every_flag_of_a_file_or_folder_is_a_path(config_class, names):
    assert {name for name, spec in options.specs(config_class).items() if spec.path} == names


def test_a_relative_path_in_a_removed_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(flags.IllegalFlagValueError, match="--data_dir=d: relative path, but the current folder"):
        parsed(ClassifyConfig, "--data_dir=d")
    assert parsed(ClassifyConfig, "--data_dir=/d").data_dir == "/d"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # As for a user without an entry in passwd.
    with pytest.raises(flags.IllegalFlagValueError, match="--data_dir=~/d: no home folder is known; set HOME"):
        parsed(ClassifyConfig, "--data_dir=~/d")


def test_every_field_has_a_help_text_and_a_default_that_is_accepted():
    for config_class in CONFIGS:
        for name, spec in options.specs(config_class).items():
            assert spec.help.strip().endswith((".", ";")), f"{config_class.__name__}.{name}"
        options.from_json(config_class, options.to_json(config_class(workdir="/W")))


def test_the_command_line_starts_with_the_changed_flags():
    line = options.command_line("classify", ClassifyConfig(workdir="/a b", model="mlp", nesterov=True))
    first, second = line.split(" \\\n  ")
    assert first == "python -m experiments.classify --model=mlp --nesterov '--workdir=/a b'"
    assert "--batch_size=128" in second and "--model" not in second
    several = {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 0}  # Valid for one start only.
    assert line == options.command_line(
        "classify", ClassifyConfig(workdir="/a b", model="mlp", nesterov=True, **several)
    )
    flags = shlex.split(line.replace("\\\n", ""))[3:]  # A shell joins the lines.
    assert parsed(ClassifyConfig, *flags) == ClassifyConfig(workdir="/a b", model="mlp", nesterov=True)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_configs_survive_json_and_flag_lines(config_class):
    config = config_class(workdir="/a b", drops=(0.25, 0.5), nesterov=True, steps=3, eval_split="val")
    assert options.from_json(config_class, json.loads(json.dumps(options.to_json(config)))) == config
    assert parsed(config_class, *options.flag_lines(config)) == config


def test_flags_added_later_have_their_defaults_in_older_runs():
    assert options.from_json(ClassifyConfig, {"model": "mlp", "hidden": ["5"]}) == ClassifyConfig(
        model="mlp", hidden=(5,)
    )
    with pytest.raises(ValueError, match="--warp=3: this version has no such flag"):
        options.from_json(ClassifyConfig, {"warp": 3})
    with pytest.raises(ValueError, match="--batch_size=many: must be an integer"):
        options.from_json(ClassifyConfig, {"batch_size": "many"})
    with pytest.raises(ValueError, match="--model=None: must be given"):
        options.from_json(ClassifyConfig, {"model": None})


def test_an_empty_value_means_that_the_flag_is_not_given():
    config = parsed(ClassifyConfig, "--positive=", "--eval_split=", "--init_from=", "--train_batches=")
    assert config == ClassifyConfig(workdir="/W")
    with pytest.raises(flags.IllegalFlagValueError, match="^--workdir must be given: the folder of the run$"):
        parsed(ClassifyConfig, "--workdir=")


INTEGERS = [name for name, kind in options.flag_types(ClassifyConfig).items() if kind.scalar is int]


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_any_size_are_parsed_or_refused_in_one_line(name):
    for text in ("9" * 400, "-" + "9" * 400, "9007199254740993"):
        try:
            assert getattr(parsed(ClassifyConfig, f"--{name}={text}"), name) in (int(text), (int(text),))
        except flags.IllegalFlagValueError as error:
            assert f"--{name}=" in str(error) and "must be" in str(error)


class Scaled(nn.Module):
    """Logits that are `scale` times a perceptron's."""

    num_classes: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        return self.scale * nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def test_a_new_flag_is_one_field_and_reaches_the_network(monkeypatch):
    """The field defines the flag, validates it, stores it in run.json and passes it to the network."""

    @dataclasses.dataclass(frozen=True)
    class Extended(ClassifyConfig):
        scale: float | None = option(None, "scaled: factor of the logits.", "(0, inf)", network=True)

    monkeypatch.setitem(models.MODELS, "scaled", models.ModelSpec(module=Scaled))
    config = parsed(Extended, "--model=scaled", "--scale=2.5")
    assert classification.network(config, 10).scale == 2.5
    assert options.to_json(config)["scale"] == 2.5 and "--scale=2.5" in options.flag_lines(config)
    with pytest.raises(flags.IllegalFlagValueError, match="must be greater than 0"):
        parsed(Extended, "--scale=0")
    with pytest.raises(UsageError, match="--scale is not supported by --model=mlp"):
        classification.network(parsed(Extended, "--model=mlp", "--scale=2"), 10)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"devices": 200}, "--devices=200: must be between 1 and the batch size, 128"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs --momentum greater than 0"),
        ({"negative": "3"}, "--negative needs --positive"),
        ({"model": "logistic"}, "--positive=DIGIT"),
        ({"slope": 0.1}, "--slope=0.1 needs --activation=leaky_relu"),
        ({"alternate_flip": True}, "--alternate_flip needs --augment=flip_shift"),
        ({"fc_passes": 2}, "--fc_passes=2 --fc_update=accumulate need --parallelism=hybrid"),
        ({"gradients": "backpropagation", "dtype": "bfloat16"}, "--dtype=bfloat16 is not supported by"),
        ({"dry_run_data": True}, "--dry_run_data needs --dry_run"),
        ({"schedule": "one_cycle", "warmup_steps": 8}, "--warmup_steps=8 has no effect with --schedule=one_cycle"),
        ({"drops": (0.5,)}, "--drops=0.5 has no effect with --schedule=constant"),
        ({"schedule": "cosine", "drop_factor": 2.0}, "--drop_factor=2.0 has no effect with --schedule=cosine"),
        ({"optimizer": "adam", "nesterov": True}, "--nesterov=True has no effect with --optimizer=adam"),
        ({"optimizer": "muon", "momentum": 0.5}, "--momentum=0.5 has no effect with --optimizer=muon"),
        ({"cutout": 8}, "--cutout=8 has no effect with --augment=none"),
        ({"augment": "digits", "shift": 2}, "--shift=2 has no effect with --augment=digits"),
        ({"augment": "crop24", "shift_mode": "reflect"}, "--shift_mode=reflect has no effect with --augment=crop24"),
        ({"early_share": 0.2}, "--early_share=0.2 has no effect without --early_size"),
        ({"gradients": "backpropagation", "mixup": 0.2}, "--mixup=0.2 is not supported by --gradients=backpropagation"),
        ({"parallelism": "hybrid", "cutmix": 1.0}, "--cutmix=1.0 is not supported by --parallelism=hybrid"),
    ],
)
def test_invalid_combinations_of_flags_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        validation.check_classify(ClassifyConfig(**given))
    validation.check_classify(ClassifyConfig())


def test_steps_of_epochs_are_exact_and_too_many_are_refused():
    dataset = Dataset("", {"train": (None, np.zeros(256))}, ())
    assert training.total_steps(ClassifyConfig(epochs=2.5), dataset, 1) == 5
    for epochs, expected in ((1.1, 11), (2.2, 22), (8.3, 83), (0.07, 1), (1.11, 12)):
        big = Dataset("d", {"train": (np.zeros((100, 1, 1, 1), np.uint8), np.zeros(100, np.int32))}, ("a",))
        assert training.total_steps(ClassifyConfig(epochs=epochs, batch_size=10), big, 1) == expected
    for epochs in (1e306, 1e12):
        with pytest.raises(UsageError, match="steps: must be less than 2147483648"):
            training.total_steps(ClassifyConfig(epochs=epochs), dataset, 1)


@pytest.mark.parametrize(
    ("flag", "accepted"),
    [
        ("batch_size=1000000000000", "must be between 1 and 2147483647"),
        ("steps=1000000000000000", "must be between 1 and 2147483647"),
        ("image_size=10000000", "must be between 1 and 16384"),
        ("early_size=10000000", "must be between 1 and 16384"),
        ("growth_rate=1000000000", "must be between 1 and 10000"),
        ("depth=1000000000", "must be between 1 and 10000"),
        ("blocks=1000000000", "must be between 1 and 10000"),
    ],
)
def test_sizes_beyond_any_machine_are_refused(flag, accepted):
    with pytest.raises(flags.IllegalFlagValueError, match=f"--{flag}: {accepted}"):
        parsed(ClassifyConfig, f"--{flag}")


@pytest.mark.parametrize("given", [{"batch_size": 1}, {"batch_size": 12, "accumulate": 12}])
def test_batch_norm_over_one_value_is_refused(given):
    info = ClassificationInfo((16, 16, 3), (9.0,) * 3, (1.0,) * 3, ("a", "b"))
    with pytest.raises(
        UsageError, match="bn_dense would normalize a single value per channel to 0: batch norm needs a larger"
    ):
        classification.create_experiment(ClassifyConfig(model="cnn", **given), info, devices=1, steps=1)
    for model in ("lenet", "mlp"):  # Without batch norm.
        shape = dataclasses.replace(info, image_shape=(28, 28, 1), mean=(9.0,), std=(1.0,))
        classification.create_experiment(ClassifyConfig(model=model, **given), shape, devices=1, steps=1)
    config = ClassifyConfig(model="cnn", batch_size=2, sync_bn=False)
    with pytest.raises(UsageError, match="would normalize a single value"):
        classification.create_experiment(config, info, devices=2, steps=1)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("devices", "given"), [(1, {"batch_size": 1}), (4, {"batch_size": 4, "sync_bn": False})])
def test_batch_norm_over_one_value_is_refused_for_generate(size, devices, given):
    info = GenerationInfo((size, size, 3), (9.0,) * 3, (1.0,) * 3, ("a", "b"))
    create = functools.partial(generation.create_experiment, info=info, devices=devices, steps=1)
    line = r"generator/bn_project would normalize a single value per channel to 0: .* \(--batch_size, --sync_bn\)"
    with pytest.raises(UsageError, match=line):
        create(GenerateConfig(authors=True, **given))
    assert create(GenerateConfig(authors=True, **given), checked=False)  # A stored run.
    assert create(GenerateConfig(authors=True, batch_size=4))
    assert create(GenerateConfig(**given))  # 16 values in the lowest resolution.


def test_a_stored_run_with_a_small_batch_can_be_loaded():
    info = SegmentationInfo((2, 2, 3), (9.0,) * 3, (1.0,) * 3, ("a", "b"), (1.0, 1.0))
    config = SegmentConfig(model="segnet_basic", dataset="camvid", batch_size=1)
    with pytest.raises(UsageError, match="would normalize a single value"):
        segmentation.create_experiment(config, info, devices=1, steps=1)
    assert segmentation.create_experiment(config, info, devices=1, steps=1, checked=False)


def test_an_unknown_classifier_is_refused_with_the_classifiers_only():
    with pytest.raises(
        ModelError, match=r"unknown model 'cn'; did you mean cnn\? known: alexnet_owt, .*, vit_tiny$"
    ) as error:
        classification.check_model("cn")
    known = str(error.value).partition("known: ")[2].split(", ")
    assert known == sorted(name for name, spec in models.MODELS.items() if spec.task == "classification")
    with pytest.raises(UsageError, match="--model=dcgan is a model for generation, not classification; use generate"):
        classification.check_model("dcgan")


def test_only_two_files_import_absl():
    readers = {
        str(path.relative_to(ROOT))
        for package in ("data", "models", "train", "experiments")
        for path in (ROOT / package).rglob("*.py")
        if "from absl" in path.read_text()
    }
    assert readers == {"experiments/cli/app.py", "experiments/cli/options.py"}
