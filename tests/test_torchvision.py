"""Tests of converting torchvision state dicts to variables, and of the command import_weights."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import models
from benchmarks import parity
from data import decode, stream
from models import torchvision


def entries(name, salt="s"):
    return {key: parity.draw(key, shape, salt=salt) for key, shape in parity.entry_shapes(name).items()}


def test_entries_are_converted_to_variables():
    given = entries("resnet18")
    model, variables = models.from_torchvision("resnet18", {f"module.{key}": array for key, array in given.items()})
    assert model.num_classes == 1000
    kernel = variables["params"]["stage2_block1"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], given["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(
        variables["batch_stats"]["stage1_block2"]["bn2"]["var"], given["layer1.1.bn2.running_var"]
    )


def test_missing_and_mismatched_entries_are_listed():
    given = entries("resnet18")
    given["extra.weight"] = given.pop("conv1.weight")
    given["fc.weight"] = given["fc.weight"][:, :100]
    with pytest.raises(ValueError) as error:
        models.from_torchvision("resnet18", given)
    for part in (
        "missing: conv1.weight",
        "unexpected: extra.weight",
        "fc.weight is [1000, 100], expected [1000, 512]",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="missing: fc.bias, with one value per class"):
        models.from_torchvision("resnet18", {})
    with pytest.raises(ValueError, match=r"value per class; entries: backbone\.bn1\.bias, .* and 82 more$"):
        models.from_torchvision("resnet18", {f"backbone.{key}": array for key, array in given.items()})
    with pytest.raises(ValueError, match="not supported by --model=lenet; supported by: alexnet_owt, densenet121"):
        models.from_torchvision("lenet", {})


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("conv1.weight", lambda x: x * np.nan, "conv1.weight is not finite"),
        ("fc.weight", lambda x: x.astype(np.float64) * 1e300, "fc.weight is not finite"),
        ("bn1.running_var", lambda x: -x, "bn1.running_var, a variance, is negative"),
        ("fc.weight", lambda x: x + 1j, "fc.weight is complex"),
        ("fc.weight", lambda x: (100 * x).astype(np.int8), "fc.weight is int8, expected floating-point"),
        ("fc.bias", lambda x: x > 0, "fc.bias is bool, expected floating-point"),
        ("fc.bias", lambda x: x[:0], "missing: fc.bias, with one value per class"),
    ],
)
def test_invalid_values_are_reported_with_their_entry(key, change, message):
    given = entries("resnet18")
    given[key] = change(given[key])
    with pytest.raises(ValueError, match=re.escape(message)):
        models.from_torchvision("resnet18", given)


def test_two_names_of_the_same_entry_are_refused():
    given = entries("resnet18")
    given["module.fc.bias"] = given["fc.bias"]
    with pytest.raises(ValueError, match=r"fc\.bias and module\.fc\.bias name the same entry"):
        models.from_torchvision("resnet18", given)


def test_alternative_names_of_layers():
    for key, aliases, expected in (
        ("features.denseblock1.denselayer2.norm.1.weight", {}, "features.denseblock1.denselayer2.norm1.weight"),
        ("features.denseblock1.denselayer2.norm1.weight", {}, "features.denseblock1.denselayer2.norm1.weight"),
        ("_orig_mod.module.fc.bias", {}, "fc.bias"),
        ("model.layer1.0.bn1.weight", {}, "layer1.0.bn1.weight"),
        ("module.pre_logits.fc1.bias", models.vgg.TIMM_NAMES, "classifier.0.bias"),
        ("head.fc.weight", models.vgg.TIMM_NAMES, "classifier.6.weight"),
    ):
        assert torchvision.canonical_name(key, aliases) == expected


def test_dense_layers_after_flattening_are_reordered():
    weight = np.random.default_rng(0).normal(size=(5, 3 * 2 * 2)).astype(np.float32)
    image_CHW = np.random.default_rng(1).normal(size=(3, 2, 2)).astype(np.float32)
    expected = weight @ image_CHW.ravel()
    for given in (weight, weight.reshape(5, 3, 2, 2)):
        shapes = {"params": {"fc6": {"kernel": jax.ShapeDtypeStruct((12, 5), "float32")}}}
        found = torchvision.variables(
            {"f.weight": given}, shapes, layout=torchvision.TorchvisionLayout({"fc6": "f"}, {"fc6": 3})
        )
        kernel = found["params"]["fc6"]["kernel"]
        np.testing.assert_allclose(image_CHW.transpose(1, 2, 0).ravel() @ kernel, expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, spec in models.MODELS.items() if spec.torchvision))
def test_every_layer_has_one_name_in_torchvision(name):
    names = models.spec(name).torchvision.names
    assert len(set(names.values())) == len(names)
    assert len(parity.entry_shapes(name)) >= 2 * len(names) - 1 - sum("conv" in path for path in names)


def test_error_measure():
    own = np.array([[1.0, -4.0] + [0.0] * 998, [2.0, 0.0] + [0.0] * 998])
    golden = {
        "logits_first8": own[:, :8].tolist(),
        "logits_mean": own.mean(1).tolist(),
        "logits_std": own.std(1).tolist(),
    }
    assert parity.relative_error(own, golden) == 0.0
    golden["logits_first8"][0][1] = -3.0
    assert parity.relative_error(own, json.loads(json.dumps(golden))) == pytest.approx(0.25)


@pytest.mark.slow
def test_the_command_creates_a_complete_workdir(tmp_path, start):
    given = entries("resnet18")
    given["fc.weight"], given["fc.bias"] = given["fc.weight"][:3], given["fc.bias"][:3]
    save_file(given, tmp_path / "w.safetensors")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(random.integers(0, 256, (80, 70, 3), dtype=np.uint8))
                image.save(tmp_path / "d" / split / name / f"{i}.png")

    def run(name, *arguments):
        done = start(name, f"--workdir={tmp_path / 'w'}", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    source = ["--model=resnet18", f"--weights={tmp_path / 'w.safetensors'}", "--image_size=32"]
    refused = run("import_weights", *source, "--nov1_5")
    assert refused.returncode == 2 and "--nov1_5" in refused.stderr
    done = run("import_weights", *source, f"--data_dir={tmp_path / 'd'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["classes"] == 3
    again = run("import_weights", *source)
    assert again.returncode == 1 and "already contains a run" in again.stderr
    # If imported without a folder, classes have no names; evaluation uses the names of its folder.
    elsewhere = f"--workdir={tmp_path / 'unnamed'}"
    assert run("import_weights", *source, elsewhere).returncode == 0
    views = run("evaluate", elsewhere, f"--data_dir={tmp_path / 'd'}", "--split=val", "--tta=ten_view")
    assert views.returncode == 0 and json.loads(views.stdout.splitlines()[-1])["examples"] == 6, views.stderr
    assert "true \\ predicted,a,b,c" in (tmp_path / "unnamed" / "confusion.csv").read_text()
    labelled = run("predict", str(tmp_path / "d" / "val" / "a" / "0.png"), "--top=3")
    assert labelled.returncode == 0 and len(labelled.stdout.splitlines()) == 4, labelled.stderr
    model, variables = models.from_torchvision("resnet18", given, image_size=32)
    view = stream.View(32)
    pixels = decode.read_image(
        str(tmp_path / "d" / "val" / "a" / "0.png"), channels=3, crop=stream.middle(view)
    ).astype(np.float32)
    images = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = jax.nn.softmax(model.apply(variables, images[None].astype(np.float32), train=False))[0]
    row = labelled.stdout.splitlines()[1].split(",")
    assert float(row[2]) == pytest.approx(float(expected.max()), abs=1e-4)
    assert row[1] == "abc"[int(expected.argmax())]
