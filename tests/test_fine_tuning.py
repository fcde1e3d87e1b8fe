"""Tests of --init_from for other classes and images, of --freeze and of --backbone_rate."""

import dataclasses
import json
import re
import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from commands import SignalAt
from PIL import Image
from results import result, same

import data
import experiments
import models
from data import convert, decode, stream
from data.dataset import DataError, Dataset, digests
from experiments.cli import validation
from experiments.cli.app import UsageError
from experiments.cli.config import ClassifyConfig, SegmentConfig
from experiments.setup import (
    classification,
    evaluation_data,
    fine_tuning,
    saved_run,
    segmentation,
    source_run,
    stored_network,
)
from experiments.setup.experiment import SegmentationInfo
from models.cnn import TinyCNN
from models.model_spec import ModelSpec
from models.resnet_cifar import TinyCifarResNet
from train import checkpoint, leaves, linear_probe, optimizers
from train.equality import tree_error
from train.parallel import data_parallel
from train.state import State
from train.task import Task
from train.workdir import WorkdirError

DIGITS = tuple("0123456789")
SIDES = (20, 24)  # Of the source's images.


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", ModelSpec(module=TinyCNN))
        patch.setitem(models.MODELS, "tiny_resnet", ModelSpec(module=TinyCifarResNet))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(workdir, state) of a run of the network `tiny` on gray images in ten classes."""
    place, random = tmp_path_factory.mktemp("source") / "A", np.random.default_rng(0)
    images, labels = random.integers(0, 256, (20, *SIDES, 1), np.uint8), np.arange(20, dtype=np.int32) % 10
    dataset = Dataset("mnist5k", {"train": (images, labels), "test": (images, labels)}, DIGITS)
    config = ClassifyConfig(workdir=str(place), model="tiny", batch_size=4)
    info = classification.dataset_info(config, dataset)
    return place, made_run.make_run(place, classification, config, dataset, info)[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of color images of 30x26 pixels in three classes."""
    root, random = tmp_path_factory.mktemp("images") / "D", np.random.default_rng(1)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee", "cow"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (30, 26, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def fine_tuned(source, folder, **flags):
    """(config, data set, experiment) of a run that starts from the source, as in experiments/classify.py."""
    values = {"model": "tiny", "dataset": "folder", "data_dir": str(folder), "init_from": str(source), "batch_size": 4}
    config = ClassifyConfig(**{"workdir": str(folder.parent / "new")} | values | flags)
    validation.check_classify(config)
    config, dataset = source_run.load_dataset(config)
    info, devices = classification.dataset_info(config, dataset), config.devices or 1
    return config, dataset, classification.create_experiment(config, info, devices=devices, steps=3)


def change_run(source, target, *, image_shape, **flags):
    """Writes the run.json of a source with other flags and images."""
    run = json.loads((source / "run.json").read_text())
    changed = run | {"image_shape": image_shape, "flags": run["flags"] | flags}
    (target / "run.json").write_text(json.dumps(changed))


def start_state(config, experiment, split="test"):
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
    new = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7, leaf.dtype), shapes._replace(key=jnp.zeros(())))
    return source_run.init_from(config, new._replace(key=jax.random.key(0)), experiment, split)


def drawn(shapes, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def slow_unless(name, fast):
    return [] if name == fast else [pytest.mark.slow]


def test_gray_and_color_are_converted_as_pillow_does():
    color = np.random.default_rng(0).integers(0, 256, (1500, 3, 4, 3), np.uint8)
    gray = convert.to_channels(color, 1)
    for pixels, converted in zip(color[:20], gray, strict=False):
        np.testing.assert_array_equal(converted[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    np.testing.assert_array_equal(convert.to_channels(gray, 3), np.repeat(gray, 3, axis=-1))
    assert convert.to_channels(color, 3) is color
    both = Dataset("d", {"train": (color, np.zeros(1500)), "test": (gray, np.zeros(1500))}, ("a",))
    found = convert.fit(both, shape=(6, 2, 1)).splits
    expected = Image.fromarray(color[1400]).convert("L").resize((2, 6), Image.Resampling.BILINEAR)
    for images, _ in found.values():
        assert images.shape == (1500, 6, 2, 1) and images.dtype == np.uint8
        np.testing.assert_array_equal(images[1400, ..., 0], np.asarray(expected))
    assert [x.shape[1:] for x, _ in convert.fit(both, channels=3).splits.values()] == [(3, 4, 3)] * 2
    assert convert.fit(both).splits["train"][0] is color
    with pytest.raises(DataError, match=r"d: 1,500 images of 1000x1000 pixels would take more than 4 GiB of memory"):
        convert.fit(both, shape=(1000, 1000, 3))


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("mlp", (8, 8, 1), {("params", "logits", "kernel"), ("params", "logits", "bias")}),
        ("tiny", (8, 8, 1), {("params", "logits", "kernel"), ("params", "logits", "bias")}),
        ("lstm", (8, 8, 1), {("params", "logits", "kernel"), ("params", "logits", "bias")}),
        ("segnet_basic", (16, 16, 3), {("params", "logits", "kernel"), ("params", "logits", "bias")}),
        ("perceptron", (8, 8, 1), None),
        ("logistic", (8, 8, 1), None),
    ],
)
def test_the_head_depends_on_the_number_of_classes(name, shape, expected):
    model = models.create(name, 2)
    if expected is None:
        line = f"--f: all weights of --model={name} depend on the classes, so it has no backbone"
        with pytest.raises(UsageError, match=line):
            fine_tuning.head(model, shape, name=name, flag="--f")
    else:
        assert fine_tuning.head(model, shape, name=name, flag="--f") == expected


class Unusual(nn.Module):
    """A network with batch norm after the layer of the classes."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(3, name="first")(x.reshape(len(x), -1))
        x = nn.Dense(self.num_classes, name="second")(x)
        return nn.BatchNorm(use_running_average=not train, name="norm")(x)


def test_batch_statistics_may_belong_to_the_head():
    found = fine_tuning.head(Unusual(3), (2, 2, 1), name="unusual", flag="--f")
    assert {leaf[:2] for leaf in found} == {("params", "second"), ("params", "norm"), ("batch_stats", "norm")}


def test_other_classes_get_a_new_head_on_the_weights_and_images_of_the_source(source, folder, capsys):
    workdir, theirs = source
    config, dataset, experiment = fine_tuned(workdir, folder)
    info, run = experiment.info, saved_run.read(str(workdir))
    assert info.image_shape == (*SIDES, 1) and info.class_names == ("ant", "bee", "cow")
    assert (info.mean, info.std) == (run.info.mean, run.info.std)
    file = folder / "train" / "bee" / "2.png"
    expected = decode.read_image(str(file), channels=1, crop=decode.whole(SIDES))
    np.testing.assert_array_equal(dataset.splits["train"][0][6], expected)
    ours = start_state(config, experiment)
    assert int(ours.step) == 7  # Of the new state; the optimizer's state is also its own.
    for layer, parts in ours.params.items():
        if layer == "logits":
            assert parts["kernel"].shape == (8, 3) and np.all(parts["kernel"] == 7) and np.all(parts["bias"] == 7)
        else:
            jax.tree.map(np.testing.assert_array_equal, parts, theirs.params[layer])
    jax.tree.map(np.testing.assert_array_equal, ours.batch_stats, theirs.batch_stats)
    assert capsys.readouterr().err.splitlines() == [
        f"--init_from={workdir} (step 0): took 20 arrays (conv1, bn1, conv2, bn2, conv3, bn3, dense, bn_dense); new: "
        "logits/bias, logits/kernel (3 classes instead of 10); images: 20x24x1, normalized as in that run"
    ]


def test_the_head_is_taken_only_for_the_same_classes_in_the_same_order(source, folder, capsys):
    workdir, theirs = source
    config, _, experiment = fine_tuned(workdir, folder)

    def state_of(names):
        info = dataclasses.replace(experiment.info, class_names=names)
        own = classification.create_experiment(config, info, devices=1, steps=3)
        return start_state(config, own)

    jax.tree.map(np.testing.assert_array_equal, state_of(DIGITS).params, theirs.params)
    assert "(conv1 to logits, 9 layers)" in (told := capsys.readouterr().err) and "new" not in told
    other = state_of(DIGITS[::-1])
    assert np.all(other.params["logits"]["kernel"] == 7) and other.params["logits"]["kernel"].shape == (8, 10)
    jax.tree.map(np.testing.assert_array_equal, other.params["conv1"], theirs.params["conv1"])
    assert "new: logits/bias, logits/kernel (10 other classes)" in capsys.readouterr().err


def test_images_are_resized_only_if_the_weights_depend_on_their_size(source, folder, tmp_path):
    change_run(source[0], tmp_path, model="tiny_resnet", image_shape=[16, 16, 1])
    assert not source_run.depends_on_size(saved_run.read(str(tmp_path)))
    assert source_run.depends_on_size(saved_run.read(str(source[0])))
    _, dataset, experiment = fine_tuned(tmp_path, folder, model="tiny_resnet")
    assert experiment.info.image_shape == (30, 26, 1) == dataset.splits["test"][0].shape[1:]
    # Images that are cropped have the size of the source's by default.
    large = folder.parent / "large"
    if not large.exists():
        shutil.copytree(folder, large)
        Image.new("RGB", (99, 80)).save(large / "test" / "ant" / "0.png")
    config, dataset, experiment = fine_tuned(tmp_path, large, model="tiny_resnet")
    assert config.image_size == 16 and experiment.info.image_shape == (16, 16, 1)
    # Cropped on access, the images also have the channels of the source.
    _, dataset, experiment = fine_tuned(tmp_path, folder, model="tiny_resnet", image_size=16)
    assert dataset.splits["train"][0].shape[1:] == (16, 16, 1) == dataset.splits["train"][0][:2].shape[1:]
    line = "--image_size=16: the weights in .* depend on the image size, 20x24 pixels; omit --image_size"
    with pytest.raises(UsageError, match=line):
        fine_tuned(source[0], folder, image_size=16)


def test_whole_images_are_resized_to_a_source_in_memory_unless_flags_crop_them(source, folder, tmp_path):
    line = "--fit=squash is not supported here: images are resized to 20x24 pixels, the size in --init_from$"
    with pytest.raises(UsageError, match=line):
        fine_tuned(source[0], folder, fit="squash")
    change_run(source[0], tmp_path, image_shape=[22, 22, 1])
    images = fine_tuned(tmp_path, folder, fit="pad")[1].splits["train"][0]
    assert images.shape == (12, 22, 22, 1)
    means = images[:1].astype(int).mean((0, 1, 3))
    assert means[0] == means[-1]  # The padding on both sides, since images are 30x26.


def test_a_source_that_cropped_its_images_gives_their_size(source, folder, tmp_path):
    change_run(source[0], tmp_path, image_shape=[22, 22, 1], dataset="folder", image_size=22)
    config, dataset, experiment = fine_tuned(tmp_path, folder)
    assert config.image_size == 22 and experiment.info.image_shape == (22, 22, 1)
    assert dataset.splits["train"][0].shape == (12, 22, 22, 1)
    with pytest.raises(UsageError, match=r"--image_size=24: the weights in .* depend on the image size, 22x22 pixels"):
        fine_tuned(tmp_path, folder, image_size=24)


def test_images_are_read_once(source, folder, tmp_path, monkeypatch):
    """Also where the image size is only known when the images have been found to be large."""
    found, load = [], data.REGISTRY["folder"]
    monkeypatch.setitem(
        data.REGISTRY, "folder", lambda *arguments, **options: found.append(load(*arguments, **options)) or found[-1]
    )
    change_run(source[0], tmp_path, model="tiny_resnet", image_shape=[16, 16, 1])
    large = shutil.copytree(folder, tmp_path / "large")
    Image.new("RGB", (99, 80)).save(large / "test" / "ant" / "0.png")
    for place, size in ((folder, None), (large, 16)):
        found.clear()
        assert fine_tuned(tmp_path, place, model="tiny_resnet")[0].image_size == size and len(found) == 1


def test_images_that_differ_in_size_are_cropped(source, folder, tmp_path):
    change_run(source[0], tmp_path, model="tiny_resnet", image_shape=[16, 16, 1])
    other = shutil.copytree(folder, tmp_path / "other")
    Image.new("RGB", (40, 30)).save(other / "test" / "ant" / "0.png")
    config, dataset, _ = fine_tuned(tmp_path, other, model="tiny_resnet")
    assert config.image_size == 16 and dataset.splits["test"][0].shape == (6, 16, 16, 1)


@pytest.mark.parametrize("flags", [{"fit": "pad"}, {"fit": "squash"}, {"augment": "crop"}])
def test_flags_that_crop_images_use_the_size_of_the_source(source, folder, tmp_path, flags):
    change_run(source[0], tmp_path, image_shape=[22, 22, 1])
    config, dataset, experiment = fine_tuned(tmp_path, folder, **flags)
    assert config.image_size == 22 and experiment.input_shape == (22, 22, 1)
    file = str(folder / "train" / "bee" / "2.png")
    crop = stream.middle(stream.view(22, config.augment, config.fit))
    np.testing.assert_array_equal(dataset.splits["train"][0][6], decode.read_image(file, channels=1, crop=crop))


@pytest.mark.parametrize(
    "flags, side", [({}, 22), ({"model": "tiny_resnet"}, 16), ({"fit": "pad"}, 22), ({"image_size": 22}, 22)]
)
def test_a_resumed_run_does_not_need_its_source(source, folder, tmp_path, flags, side):
    """Whole images, resized or not, and cropped ones."""
    place, flags = tmp_path / "V", flags | {"workdir": str(tmp_path / "W")}
    place.mkdir()
    change_run(source[0], place, model=flags.get("model", "tiny"), image_shape=[side, side, 1])
    config, dataset, experiment = fine_tuned(place, folder, **flags)
    made_run.make_run(tmp_path / "W", classification, config, dataset, experiment.info)
    shutil.rmtree(place)
    again, found, resumed = fine_tuned(place, folder, **flags)
    assert again == config and digests(found) == digests(dataset) and resumed.info == experiment.info
    source_run.check(again, resumed)
    with pytest.raises(WorkdirError, match=f"--init_from={place} does not contain a run"):
        fine_tuned(place, folder, **flags | {"workdir": str(tmp_path / "other")})


def test_a_resumed_run_keeps_the_constants_of_an_older_version(source, folder, tmp_path):
    """Older versions normalized with the mean of the run's own images."""
    config, dataset, _ = fine_tuned(source[0], folder)
    run = json.loads((source[0] / "run.json").read_text())
    run |= {"mean": [1.0], "std": [2.0]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    info = classification.dataset_info(dataclasses.replace(config, workdir=str(tmp_path)), dataset)
    assert (info.mean, info.std) == ((1.0,), (2.0,))


def trained(source, folder, devices=1, steps=2, **flags):
    """(state before, state after) of a short run."""
    config, dataset, experiment = fine_tuned(source[0], folder, devices=devices, **flags)
    state = start_state(config, experiment)._replace(step=jnp.int32(0))
    state = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    params = state.params | {"conv1": {"kernel": state.params["conv1"]["kernel"].at[0, 0].set(-0.0)}}
    state = state._replace(params=params)
    images, labels = (part[: config.batch_size] for part in dataset.splits["train"])
    before, batch = jax.device_get((state.params, state.batch_stats)), {"image": images, "label": labels}
    run = data_parallel.DeviceSteps(experiment.task, devices)
    for step in range(steps):
        state, sums = run.train(step)(state, batch)
    assert np.isfinite(float(np.asarray(sums["loss"]).ravel()[0]))
    return before, jax.device_get((state.params, state.batch_stats))


FROZEN = {"freeze": "backbone", "weight_decay": 0.1, "clip_norm": 1.0}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"devices": 3, "batch_size": 6},
        pytest.param({"optimizer": "muon", "momentum": 0.9}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw"}, marks=pytest.mark.slow),
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_frozen_backbone_stays_bit_identical(source, folder, flags):
    before, after = trained(source, folder, **FROZEN | flags)
    for layer in before[0]:
        equal = jax.tree.map(lambda x, y: x.tobytes() == y.tobytes(), before[0][layer], after[0][layer])
        assert all(jax.tree.leaves(equal)) == (layer != "logits"), layer
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])
    if "devices" in flags:
        _, one = trained(source, folder, **FROZEN | flags | {"devices": 1})
        assert tree_error(after, one) < 1e-5


def test_the_step_of_a_linear_probe_keeps_the_backbone_and_the_batch_statistics():
    """Whatever the step does with them: an added zero changes -0.0, and a mean over devices may round."""
    params = {"body": jnp.array([-0.0, 2.0]), "head": jnp.ones(2)}
    average = {"params": params, "batch_stats": {"mean": jnp.full(2, 3.0)}}
    state = State(params, {"mean": jnp.full(2, 3.0)}, (), jnp.int32(0), None, average)

    def step(state, batch):
        return jax.tree.map(lambda x: x + batch, state), {"loss": batch}

    probe = linear_probe.probing(Task("t", *[None] * 8, early_step=step)._replace(train_step=step), is_body)
    for own in (probe.train_step, probe.early_step):
        new, sums = own(state, 1)
        for weights in ({"params": new.params, "batch_stats": new.batch_stats}, new.average):
            assert np.asarray(weights["params"]["body"]).tobytes() == np.asarray(params["body"]).tobytes()
            np.testing.assert_array_equal(weights["params"]["head"], [2.0, 2.0])
            np.testing.assert_array_equal(weights["batch_stats"]["mean"], [3.0, 3.0])
        assert own(state._replace(average=()), 1)[0].average == ()
        assert (int(new.step), sums) == (1, {"loss": 1})


def is_body(path) -> bool:
    return path[0].key == "body"


def features_of(model, variables, inputs):
    """The input of the last layer, in evaluation mode."""

    @jax.jit
    def apply(variables, inputs):
        kept = {}

        def record(call, arguments, keywords, context):
            kept[context.module.name] = arguments[0] if arguments else None
            return call(*arguments, **keywords)

        with nn.intercept_methods(record):
            model.apply(variables, inputs, train=False)
        return kept["logits"]

    return np.asarray(apply(variables, inputs))


def test_a_linear_probe_equals_training_on_the_features(source, folder):
    """One step of SGD on the head, computed from the features in evaluation mode."""
    before, (params, _) = trained(source, folder, steps=1, freeze="backbone", momentum=0.0, learning_rate=0.3)
    config, dataset, experiment = fine_tuned(source[0], folder)
    images, labels = (part[:4] for part in dataset.splits["train"])
    inputs = (images - np.float32(experiment.info.mean)) / np.float32(experiment.info.std)
    variables = {"params": before[0], "batch_stats": before[1]}
    features, head = features_of(experiment.model, variables, inputs), before[0]["logits"]
    error = jax.nn.softmax(features @ head["kernel"] + head["bias"]) - np.eye(3)[labels]
    expected = {"kernel": head["kernel"] - 0.3 * features.T @ error / 4, "bias": head["bias"] - 0.3 * error.mean(0)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params["logits"], expected)


def test_no_backward_pass_through_a_frozen_backbone(source, folder):
    counts = []
    for flags in ({"freeze": "backbone"}, {}):
        _, dataset, experiment = fine_tuned(source[0], folder, cpu_kernels=False, **flags)
        state = jax.eval_shape(experiment.task.init, jax.random.key(0))
        images, labels = (part[:4] for part in dataset.splits["train"])
        text = str(jax.make_jaxpr(experiment.task.train_step)(state, {"image": images, "label": labels}))
        counts.append(text.count("conv_general_dilated") + text.count("ffi_call"))
    assert counts[0] == 3 and counts[1] > 6, counts  # The forward pass of three layers; then also their gradients.


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_unless(name, "sgd")) for name in optimizers.OPTIMIZERS])
def test_the_backbone_rate_multiplies_updates_exactly(source, folder, name):
    """A power of two, so that products are exact."""
    values = {"optimizer": name, "momentum": 0.9, "weight_decay": 0.5}
    found = []
    for rate in (1.0, 0.25):
        _, _, experiment = fine_tuned(source[0], folder, backbone_rate=rate, **values)
        optimizer = experiment.task.train_step.keywords["optimizer"]
        shapes = jax.eval_shape(experiment.task.init, jax.random.key(0)).params
        params, gradients = (drawn(shapes, seed) for seed in (0, 1))

        @jax.jit
        def updated(params, gradients, optimizer=optimizer):
            _, state = optimizer.update(gradients, optimizer.init(params), params, gradient_norm=1.0)
            return optimizer.update(gradients, state, params, gradient_norm=1.0)[0]

        found.append(updated(params, gradients))
    for layer, updates in found[0].items():
        rate = 1.0 if layer == "logits" else 0.25
        jax.tree.map(lambda x, y, rate=rate: np.testing.assert_array_equal(rate * x, y), updates, found[1][layer])


@pytest.mark.parametrize(
    "flags, line",
    [
        ({"init_from": None, "freeze": "backbone"}, "--freeze=backbone needs --init_from=WORKDIR"),
        ({"init_from": None, "backbone_rate": 0.1}, "--backbone_rate=0.1 needs --init_from=WORKDIR"),
        (
            {"freeze": "backbone", "backbone_rate": 0.5},
            "--backbone_rate=0.5 has no effect with --freeze=backbone, which trains only",
        ),
        ({"freeze": "backbone", "dropout": 0.5}, "--dropout=0.5 has no effect with --freeze=backbone, which runs the"),
        ({"freeze": "backbone", "remat": True}, "--remat=True has no effect with --freeze=backbone"),
        ({"freeze": "backbone", "parallelism": "hybrid"}, "--freeze=backbone is not supported by --parallelism=hybrid"),
        (
            {"freeze": "backbone", "gradients": "backpropagation"},
            "--freeze=backbone is not supported by --gradients=backpropagation",
        ),
        (
            {"backbone_rate": 0.5, "parameter_groups": "author"},
            "--backbone_rate=0.5 is not supported by --parameter_groups=author",
        ),
        ({"model": "mlp"}, "has --model=tiny, this run --model=mlp"),
    ],
)
def test_flags_that_do_not_compose_are_refused(source, folder, flags, line):
    with pytest.raises(UsageError, match=line):
        fine_tuned(source[0], folder, **flags)


def test_a_network_without_a_backbone_is_refused_for_other_classes(folder, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (4, 4, 4, 3), np.uint8), np.arange(4, dtype=np.int32) % 2
    dataset = Dataset("mnist5k", {"train": (images, labels), "test": (images, labels)}, ("a", "b"))
    own = ClassifyConfig(workdir=str(tmp_path / "A"), model="perceptron", batch_size=2)
    info = classification.dataset_info(own, dataset)
    made_run.make_run(tmp_path / "A", classification, own, dataset, info)
    config, _, experiment = fine_tuned(tmp_path / "A", folder, model="perceptron")
    line = f"--init_from={tmp_path / 'A'} has other classes: all weights of --model=perceptron depend on the classes"
    with pytest.raises(UsageError, match=line):
        source_run.new_leaves(config, experiment)
    with pytest.raises(UsageError, match="--freeze=backbone: all weights of --model=perceptron depend on the classes"):
        fine_tuned(tmp_path / "A", folder, model="perceptron", freeze="backbone")


def test_other_shapes_of_the_backbone_are_named(source, folder):
    config, _, experiment = fine_tuned(source[0], folder)
    state = jax.eval_shape(experiment.task.init, jax.random.key(0))
    other = jax.ShapeDtypeStruct((5, 5, 1, 6), jnp.float32)
    state = state._replace(params=state.params | {"conv1": {"kernel": other}})
    line = "contains a different network: .params['conv1']['kernel']: float32[5, 5, 1, 4] (stored), "
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(line) + r"float32\[5, 5, 1, 6\]"):
        source_run.init_from(config, state, experiment, "test")


@pytest.mark.parametrize(
    "ours, theirs, split, expected",
    [
        ({"val_fraction": 0.2}, {}, "val", True),
        ({"val_fraction": 0.2}, {"val_fraction": 0.1}, "val", True),
        ({"val_fraction": 0.2}, {"val_fraction": 0.2}, "val", False),
        ({"val_fraction": 0.1}, {"val_fraction": 0.2}, "val", False),  # A subset of the same images.
        ({"val_fraction": 0.2}, {}, "test", False),
        ({"val_fraction": 0.2, "dataset": "folder"}, {}, "val", False),
        ({"val_fraction": 0.2, "dataset": "folder", "data_dir": "a"}, {"dataset": "folder"}, "val", False),
        ({"dataset": "cifar10", "train_batches": "1-4"}, {"dataset": "cifar10"}, "val", True),
        ({"dataset": "cifar10", "train_batches": "1"}, {"dataset": "cifar10", "train_batches": "1"}, "val", False),
    ],
)
def test_validation_images_that_the_source_may_have_seen(ours, theirs, split, expected):
    assert source_run.overlaps(ClassifyConfig(**ours), ClassifyConfig(**theirs), split) == expected


def test_seen_validation_images_are_reported(source, mnist5k, capsys):
    config = ClassifyConfig(model="tiny", init_from=str(source[0]), val_fraction=0.25, batch_size=4)
    _, dataset = source_run.load_dataset(config)
    assert dataset.splits["train"][0].shape == (3000, *SIDES, 1)
    experiment = classification.create_experiment(
        config, classification.dataset_info(config, dataset), devices=1, steps=1
    )
    start_state(config, experiment, "val")
    assert capsys.readouterr().err.splitlines()[1] == (
        f"warning: --val_fraction=0.25, but {source[0]} was trained with --val_fraction=none: it may have been trained "
        "on images of val, whose scores are then too high"
    )


def make_segment_run(path, config, info):
    """The workdir of a run of segment whose weights are all 3."""
    model = segmentation.network(config, info)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *info.image_shape), np.float32))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 3, leaf.dtype), shapes)
    checkpoints = checkpoint.Checkpoints(path)
    checkpoints.save(5, State(variables["params"], variables["batch_stats"], (), np.int32(5), None), record={})
    checkpoints.wait()
    run = {"task": "segmentation", "steps": 5, "flags": {"model": config.model}, **dataclasses.asdict(info)}
    (path / "run.json").write_text(json.dumps(run))


def test_segment_starts_from_other_classes_and_channels(tmp_path, capsys):
    scenes = SegmentationInfo((64, 64, 1), (60.0,), (50.0,), ("background", *DIGITS), (1.0,) * 11)
    make_segment_run(tmp_path, SegmentConfig(model="segnet_small"), scenes)
    small = {"image_size": "16x24", "class_weights": "none", "batch_size": 2}
    config = SegmentConfig(
        dataset="camvid", dry_run=True, dry_run_data=True, init_from=str(tmp_path), freeze="backbone", **small
    )
    validation.check_segment(config)
    dataset = segmentation.load_dataset(config, **source_run.image_form(config))
    color = segmentation.load_dataset(config)
    found, expected = (part.splits["test"][0] for part in (dataset, color))
    assert found.shape == (233, 16, 24, 1) and expected.shape == (233, 16, 24, 3)
    np.testing.assert_array_equal(found[0], convert.to_channels(expected[0], 1))
    info = segmentation.dataset_info(config, dataset)
    assert (info.mean, info.std, info.image_shape) == ((60.0,), (50.0,), (16, 24, 1))
    experiment = segmentation.create_experiment(config, info, devices=1, steps=2)
    (head,) = {leaf[1] for leaf in source_run.new_leaves(config, experiment)}
    state = start_state(config, experiment, "val")
    for layer, parts in state.params.items():
        assert all(np.all(leaf == (7 if layer == head else 3)) for leaf in jax.tree.leaves(parts)), layer
    assert "(11 other classes)" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--exact_batch_norm=True has no effect with --freeze=backbone"):
        validation.check_segment(dataclasses.replace(config, exact_batch_norm=True))


def test_only_the_same_network_has_a_backbone_to_freeze(tmp_path):
    run = {"task": "classification", "steps": 0, "flags": {"model": "vgg16"}, "class_names": ["a", "b"]}
    (tmp_path / "run.json").write_text(json.dumps(run | {"image_shape": [32, 32, 3], "mean": [0], "std": [1]}))
    config = SegmentConfig(model="segnet", init_from=str(tmp_path), freeze="backbone")
    line = "--freeze=backbone --backbone_rate=1: .* must have the same network, but has --model=vgg16"
    with pytest.raises(UsageError, match=line):
        source_run.image_form(config)
    assert source_run.image_form(dataclasses.replace(config, freeze="none")) == {"channels": 3}


@pytest.mark.slow
def test_scenes_in_color():
    """For a source that was trained on color images."""
    config = SegmentConfig(class_weights="none")
    dataset = segmentation.load_dataset(config, channels=3)
    info = segmentation.dataset_info(config, dataset)
    assert info.image_shape == (64, 64, 3) == dataset.splits["test"][0].shape[1:]
    train, _ = segmentation.preparations(config, info)
    images, _ = train(*(part[:2] for part in dataset.splits["train"]), jax.random.split(jax.random.key(0), 2))
    assert images.shape == (2, 64, 64, 3)


FINE = ["--model=cnn", "--batch_size=8", "--steps=6", "--eval_every=3", "--log_every=1"]


@pytest.mark.slow
def test_a_fine_tuned_run_resumes_and_is_evaluated_with_the_images_of_its_source(start, folder, tmp_path):
    first, workdir = tmp_path / "A", tmp_path / "B"
    result(start("classify", f"--workdir={first}", *FINE))
    flags = [*FINE, f"--init_from={first}", "--dataset=folder", f"--data_dir={folder}", "--freeze=backbone"]
    done = start("classify", f"--workdir={workdir}", *flags)
    summary, lines = result(done), done.stderr.splitlines()
    assert lines[0].startswith(f"--init_from={first} (step 6): took ") and "3 classes instead of 10" in lines[0]
    run, origin = (json.loads((place / "run.json").read_text()) for place in (workdir, first))
    assert run["image_shape"] == [28, 28, 1] and (run["mean"], run["std"]) == (origin["mean"], origin["std"])
    one, other = (leaves.to_host(experiments.load_run(str(place)).state.params) for place in (first, workdir))
    changed = [name for name in one if one[name].shape != other[name].shape or (one[name] != other[name]).any()]
    assert changed == ["['logits']['bias']", "['logits']['kernel']"]

    # Killed and resumed, without the source.
    two = result(start("classify", f"--workdir={tmp_path / 'two'}", *flags, "--devices=2"))
    assert two["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    killed = [f"--workdir={tmp_path / 'killed'}", *flags, "--save_every=2"]
    at = SignalAt(signal.SIGKILL, "train.workdir:MetricsFile.append", 5)
    assert start("classify", *killed, signal_at=at).returncode == -signal.SIGKILL
    first.rename(tmp_path / "moved")
    done = start("classify", *killed)
    assert "resuming from step" in done.stderr and "--init_from" not in done.stderr
    assert same(result(done) | {"workdir": ""}, summary | {"workdir": ""})
    assert same(result(start("evaluate", f"--workdir={workdir}")), summary)
    assert result(start("evaluate", f"--workdir={workdir}", f"--data_dir={folder}"))["loss"] == summary["loss"]
    found = start("predict", f"--workdir={workdir}", folder / "test" / "bee" / "0.png")
    assert found.returncode == 0 and found.stdout.count("\n") == 2, found.stderr
    assert start("filters", f"--workdir={workdir}", "--layer=2").returncode == 0
    assert evaluation_data.in_memory(saved_run.read(str(workdir)))
    assert stored_network.experiment_from_run(saved_run.read(str(workdir))).input_shape == (28, 28, 1)
