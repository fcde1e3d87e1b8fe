"""Tests of reading files of published weights without torch and without executing pickles."""

import argparse
import collections
import io
import json
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from data import DataError, weights

ARRAYS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.bias": np.arange(2, dtype=np.float32),
    "half": np.arange(3, dtype=np.float16),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
}
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Tensor:
    """Represents an array as torch's pickles do."""

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
    """Fake modules with torch's names, so that pickle can write references to them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("must never be called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def tensors(arrays=ARRAYS):
    found = collections.OrderedDict((name, Tensor(array, str(i))) for i, (name, array) in enumerate(arrays.items()))
    found._metadata = {"version": 1}  # torch's state_dict() sets this attribute.
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
    keys = [str(i) for i in range(len(arrays))][::-1]  # Storages may come in any order.
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
def test_both_formats_of_torch_files(tmp_path, torch_names, write, wrap):
    write(tmp_path / "w.pth", wrap(tensors()))
    equal(weights.read(str(tmp_path / "w.pth")))


def test_safetensors_and_a_transposed_view(tmp_path, torch_names):
    save_file(ARRAYS, tmp_path / "w.safetensors")
    equal(weights.read(str(tmp_path / "w.safetensors")))
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_zip(tmp_path / "t.pth", {"t": Tensor(array, "0", transposed=True)}, {"t": array})
    equal(weights.read(str(tmp_path / "t.pth")), {"t": array.T})


@pytest.mark.parametrize(
    "kind, dtype",
    {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BF16": ml_dtypes.bfloat16}.items(),
)
def test_dtypes_that_numpy_lacks(tmp_path, kind, dtype):
    array, place = np.array([[1.5, -2, 0.25]], dtype), tmp_path / "w.safetensors"

    def write(kind, content):
        head = json.dumps({"w": {"dtype": kind, "shape": [1, 3], "data_offsets": [0, len(content)]}}).encode()
        place.write_bytes(struct.pack("<Q", len(head)) + head + content)

    write(kind, array.tobytes())
    equal(weights.read(str(place)), {"w": array})
    write("F8_E8M0", bytes(3))
    with pytest.raises(DataError, match=r"w\.safetensors: w is F8_E8M0, expected one of F64, F32"):
        weights.read(str(place))


@pytest.mark.parametrize("content", [b'{\n  "weight_map": {}}', b"\x89HDF\r\n\x1a\n", b"<html>"])
def test_files_of_other_formats_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json: it is neither a safetensors file nor in one of"):
        weights.read(str(tmp_path / "model.safetensors.index.json"))


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_weight_averages_beside_the_weights_are_reported(tmp_path, torch_names, capsys, write):
    write(tmp_path / "w.pth", {"model": tensors(), "model_ema": {"module.a.bias": 1}, "epoch": 3, "ema_decay": 0.9})
    equal(weights.read(str(tmp_path / "w.pth")))
    assert capsys.readouterr().err == f"{tmp_path / 'w.pth'}: using model, not model_ema\n"
    write(tmp_path / "w.pth", {"epoch": 3, "model_ema": tensors()})
    with pytest.raises(DataError, match="or under state_dict, model, model_state_dict, net; found: epoch, model_ema$"):
        weights.read(str(tmp_path / "w.pth"))


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "net", None])
def test_objects_other_than_tensors_are_skipped_and_never_constructed(tmp_path, torch_names, capsys, write, container):
    options = {"args": argparse.Namespace(lr=0.1, nested={"a": pathlib.PurePosixPath("x")}), "scalar": np.float64(3)}
    options |= {"evil": Evil(), "set": {1, 2}, "counter": collections.Counter("ab"), "epoch": 3}
    found = tensors()
    found["evil"], found["steps"] = Evil(), 7
    write(tmp_path / "w.pth", {container: found, **options} if container else found)
    equal(weights.read(str(tmp_path / "w.pth")))
    write(tmp_path / "evil.pth", {"w": tensors(), "x": Evil()})
    with pytest.raises(DataError, match=r"evil\.pth: it contains no dictionary of tensors"):
        weights.read(str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


def test_damaged_files_are_one_line_errors(tmp_path, torch_names):
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
    with pytest.raises(DataError, match="96 bytes, expected 100"):
        weights.read(str(path))
    long = Tensor(array, "0")
    long.array = np.lib.stride_tricks.as_strided(array, (3, 3, 4), (48, 16, 4))
    long.array = types.SimpleNamespace(
        strides=(48, 16, 4), shape=(30, 3, 4), itemsize=4, dtype=array.dtype, size=array.size
    )
    write_zip(path, {"a": long}, {"a": array})
    with pytest.raises(DataError, match="exceeds its storage of 96 bytes"):
        weights.read(str(path))
    with pytest.raises(DataError, match="cannot read .*nowhere"):
        weights.read(str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(DataError, match="text"):
        weights.read(str(tmp_path / "text"))
