"""Published weights: files are read without torch and without running them, and become our variables."""

import collections
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import models
from benchmarks import parity
from data import DataError, decode, stream, weights
from models import peer

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.bias": np.arange(2, dtype=np.float32),
    "half": np.arange(3, dtype=np.float16),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Tensor:
    """What torch's pickles hold in the place of an array."""

    def __init__(self, array, key, transposed=False):
        self.array, self.key, self.transposed = array, key, transposed

    def __reduce_ex__(self, protocol):
        module = sys.modules["torch._utils"]
        strides = tuple(step // self.array.itemsize for step in self.array.strides)
        shape = self.array.shape
        if self.transposed:
            shape, strides = shape[::-1], strides[::-1]
        storage = Storage(self.array, self.key)
        return module._rebuild_tensor_v2, (storage, 0, shape, strides, False, collections.OrderedDict())


class Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, found):
        if not isinstance(found, Storage):
            return None
        kind = getattr(sys.modules["torch"], STORAGES[str(found.array.dtype)])
        saved = ("storage", kind, found.key, "cpu", found.array.size)
        return (*saved, None) if self.legacy else saved


@pytest.fixture
def torch_names(monkeypatch):
    """Modules of torch's names, so that pickle can write them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("only named, never called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def tensors(arrays=ARRAYS):
    found = collections.OrderedDict((name, Tensor(array, str(i))) for i, (name, array) in enumerate(arrays.items()))
    found._metadata = {"version": 1}  # torch's modules leave an attribute on the dictionary.
    return found


def dump(found, legacy=False, protocol=2):
    text = io.BytesIO()
    pickler = Pickler(text, protocol)
    pickler.legacy = legacy
    pickler.dump(found)
    return text.getvalue()


def write_zip(path, found, arrays=ARRAYS, folder="archive"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", dump(found))
        archive.writestr(f"{folder}/byteorder", "little")
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"{folder}/data/{i}", array.tobytes())


def write_legacy(path, found, arrays=ARRAYS):
    parts = [
        pickle.dumps(weights.MAGIC, 2),
        pickle.dumps(weights.PROTOCOL, 2),
        pickle.dumps({"little_endian": True}, 2),
    ]
    keys = [str(i) for i in range(len(arrays))][::-1]  # The storages come in an order of their own.
    parts += [dump(found, legacy=True), pickle.dumps(keys, 2)]
    for key in keys:
        array = list(arrays.values())[int(key)]
        parts.append(struct.pack("<q", array.size) + array.tobytes())
    path.write_bytes(b"".join(parts))


def equal(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("wrap", [lambda found: found, lambda found: {"epoch": 3, "state_dict": found}])
def test_both_formats_of_torch(tmp_path, torch_names, write, wrap):
    write(tmp_path / "w.pth", wrap(tensors()))
    equal(weights.read(str(tmp_path / "w.pth")))


def test_safetensors_and_a_transposed_view(tmp_path, torch_names):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    equal(weights.read(str(tmp_path / "w.safetensors")))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_zip(tmp_path / "t.pth", {"t": Tensor(array, "0", transposed=True)}, {"t": array})
    equal(weights.read(str(tmp_path / "t.pth")), {"t": array.T})


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_what_is_no_tensor_is_refused_by_name(tmp_path, torch_names, capsys, write):
    write(tmp_path / "evil.pth", {"w": tensors(), "x": Evil()})
    with pytest.raises(DataError, match=r"evil\.pth: it names (builtins|__builtin__)\.print"):
        weights.read(str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


def test_damaged_files_are_one_line(tmp_path, torch_names):
    path = tmp_path / "w.pth"
    for write in (write_zip, write_legacy):
        write(path, tensors())
        whole = path.read_bytes()
        for keep in (0, 5, 40, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:keep])
            with pytest.raises(DataError, match="w.pth"):
                weights.read(str(path))
    array = ARRAYS["a.weight"]
    write_zip(path, {"a": Tensor(np.zeros((5, 5), np.float32), "0")}, {"a": array})
    with pytest.raises(DataError, match="96 bytes, which is not what its tensor says"):
        weights.read(str(path))
    long = Tensor(array, "0")
    long.array = np.lib.stride_tricks.as_strided(array, (3, 3, 4), (48, 16, 4))
    long.array = types.SimpleNamespace(
        strides=(48, 16, 4), shape=(30, 3, 4), itemsize=4, dtype=array.dtype, size=array.size
    )
    write_zip(path, {"a": long}, {"a": array})
    with pytest.raises(DataError, match="reaches out of its 96 bytes"):
        weights.read(str(path))
    with pytest.raises(DataError, match="cannot read .*nowhere"):
        weights.read(str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(DataError, match="text"):
        weights.read(str(tmp_path / "text"))


def entries(name, salt="s"):
    return {key: parity.draw(key, shape, salt=salt) for key, shape in parity.entry_shapes(name).items()}


def test_entries_become_variables():
    given = entries("resnet18")
    model, variables = models.from_peer("resnet18", {f"module.{key}": array for key, array in given.items()})
    assert model.num_classes == 1000
    kernel = variables["params"]["stage2_block1"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], given["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(
        variables["batch_stats"]["stage1_block2"]["bn2"]["var"], given["layer1.1.bn2.running_var"]
    )


def test_what_does_not_fit_is_listed():
    given = entries("resnet18")
    given["extra.weight"] = given.pop("conv1.weight")
    given["fc.weight"] = given["fc.weight"][:, :100]
    with pytest.raises(ValueError) as error:
        models.from_peer("resnet18", given)
    for part in ("missing: conv1.weight", "surplus: extra.weight", "fc.weight is [1000, 100], needed is [1000, 512]"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="missing: fc.bias, one number for each class"):
        models.from_peer("resnet18", {})
    with pytest.raises(ValueError, match="lenet has no known peer"):
        models.from_peer("lenet", {})


@pytest.mark.parametrize(
    "key, change, told",
    [
        ("conv1.weight", lambda x: x * np.nan, "conv1.weight is not finite"),
        ("fc.weight", lambda x: x.astype(np.float64) * 1e300, "fc.weight is not finite"),
        ("bn1.running_var", lambda x: -x, "bn1.running_var, a variance, is negative"),
        ("fc.weight", lambda x: x + 1j, "fc.weight is complex"),
        ("fc.bias", lambda x: x[:0], "missing: fc.bias, one number for each class"),
    ],
)
def test_wrong_values_are_named(key, change, told):
    given = entries("resnet18")
    given[key] = change(given[key])
    with pytest.raises(ValueError, match=re.escape(told)):
        models.from_peer("resnet18", given)


def test_two_names_of_one_entry():
    given = entries("resnet18")
    given["module.fc.bias"] = given["fc.bias"]
    with pytest.raises(ValueError, match=r"fc\.bias and module\.fc\.bias are names of the same entry"):
        models.from_peer("resnet18", given)


def test_other_names_of_the_same_layers():
    for key, aliases, expected in (
        ("features.denseblock1.denselayer2.norm.1.weight", {}, "features.denseblock1.denselayer2.norm1.weight"),
        ("features.denseblock1.denselayer2.norm1.weight", {}, "features.denseblock1.denselayer2.norm1.weight"),
        ("module.pre_logits.fc1.bias", models.vgg.ALIASES, "classifier.0.bias"),
        ("head.fc.weight", models.vgg.ALIASES, "classifier.6.weight"),
    ):
        assert peer.canonical(key, aliases) == expected


def test_a_flattened_image_is_put_in_our_order():
    weight = np.random.default_rng(0).normal(size=(5, 3 * 2 * 2)).astype(np.float32)
    image_CHW = np.random.default_rng(1).normal(size=(3, 2, 2)).astype(np.float32)
    expected = weight @ image_CHW.ravel()
    for given in (weight, weight.reshape(5, 3, 2, 2)):
        found, _ = None, None
        shapes = {"params": {"fc6": {"kernel": jax.ShapeDtypeStruct((12, 5), "float32")}}}
        found = peer.variables({"f.weight": given}, shapes, peer=peer.Peer({"fc6": "f"}, {"fc6": 3}))
        kernel = found["params"]["fc6"]["kernel"]
        np.testing.assert_allclose(image_CHW.transpose(1, 2, 0).ravel() @ kernel, expected, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(models.PEERS))
def test_every_layer_has_one_peer(name):
    names = models.PEERS[name].names
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


def test_the_command_makes_a_workdir_like_any_other(tmp_path):
    given = entries("resnet18")
    given["fc.weight"], given["fc.bias"] = given["fc.weight"][:3], given["fc.bias"][:3]
    save_file(given, tmp_path / "w.safetensors")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b", "c"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for i in range(2):
                picture = Image.fromarray(random.integers(0, 256, (80, 70, 3), dtype=np.uint8))
                picture.save(tmp_path / "d" / split / name / f"{i}.png")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def start(name, *arguments):
        command = [sys.executable, "-m", f"experiments.{name}", f"--workdir={tmp_path / 'w'}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    source = ["--model=resnet18", f"--weights={tmp_path / 'w.safetensors'}", "--image_size=32"]
    refused = start("import_weights", *source, "--nov1_5")
    assert refused.returncode == 2 and "--nov1_5" in refused.stderr
    done = start("import_weights", *source, f"--data_dir={tmp_path / 'd'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["classes"] == 3
    again = start("import_weights", *source)
    assert again.returncode == 1 and "holds a run already" in again.stderr
    # Imported without a folder the classes have no names: those of the folder that it is scored on count.
    elsewhere = f"--workdir={tmp_path / 'unnamed'}"
    assert start("import_weights", *source, elsewhere).returncode == 0
    views = start("evaluate", elsewhere, f"--data_dir={tmp_path / 'd'}", "--split=val", "--tta=ten_view")
    assert views.returncode == 0 and json.loads(views.stdout.splitlines()[-1])["examples"] == 6, views.stderr
    assert "true \\ predicted,a,b,c" in (tmp_path / "unnamed" / "confusion.csv").read_text()
    labelled = start("predict", str(tmp_path / "d" / "val" / "a" / "0.png"), "--top=3")
    assert labelled.returncode == 0 and len(labelled.stdout.splitlines()) == 4, labelled.stderr
    model, variables = models.from_peer("resnet18", given, image_size=32)
    view = stream.View(32)
    pixels = decode.read_picture(
        str(tmp_path / "d" / "val" / "a" / "0.png"), channels=3, crop=stream.middle(view)
    ).astype(np.float32)
    images = (pixels / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    expected = jax.nn.softmax(model.apply(variables, images[None].astype(np.float32), train=False))[0]
    row = labelled.stdout.splitlines()[1].split(",")
    assert float(row[2]) == pytest.approx(float(expected.max()), abs=1e-4)
    assert row[1] == "abc"[int(expected.argmax())]
