"""Reads network weights from safetensors and .pth files, without PyTorch and without running code from the file.

A .pth file is a pickle, which can call arbitrary functions. Here it can only create dictionaries, lists, numbers and
strings and call the PyTorch functions that rebuild tensors. Any other name, such as that of the options in a training
checkpoint, is not looked up: an object that does nothing stands in its place.
"""

import collections
import io
import pathlib
import pickle
import sys
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from data.dataset import DataError

CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
NEITHER = "it is neither safetensors nor one of torch's two formats"
SAFETENSORS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BOOL": np.bool_, "C64": np.complex64},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}
SHOWN = 10  # Entries that a message names.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # Of the format before torch 1.6.
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Kind(NamedTuple):
    """Stands for a class of torch's storages."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """The elements that a tensor is a view of; in the older format their bytes come after the pickle."""

    key: str
    kind: _Kind
    elements: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage, offset, size, stride, *rest):
    """torch._utils._rebuild_tensor and its second version, whose `rest` concerns gradients."""
    del rest
    return _View(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(tensor, *rest):
    del rest
    return tensor


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _Kind(np.dtype(dtype)) for name, dtype in DTYPES.items()},
}


class _Ignored:
    """Stands for an object of any other class, and for what its functions would return."""

    def __new__(cls, *arguments, **options):
        del arguments, options
        return super().__new__(cls)

    def __init__(self, *arguments, **options):
        pass

    def _ignore(self, *arguments):
        pass

    __setstate__ = __setitem__ = append = extend = add = update = _ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return ALLOWED.get((module, name), _Ignored)

    def persistent_load(self, saved):
        if not (isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage" and isinstance(saved[1], _Kind)):
            raise DataError("it refers to something that is not a tensor's storage")
        if any(part is not None for part in saved[5:]):  # An old file's view of another storage.
            raise DataError("it refers to a part of a storage, as torch saved before version 0.4")
        return _Storage(str(saved[2]), saved[1], int(saved[4]))


def _array(view: _View, data: bytes) -> np.ndarray:
    """The tensor as an array of its own. Raises DataError where it reaches out of its storage."""
    dtype: np.dtype = view.storage.kind.dtype
    size, stride = view.size, view.stride
    last = view.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = view.offset >= 0 and min(stride, default=0) >= 0 and min(size, default=0) >= 0
    if not inside or (0 not in size and (last + 1) * dtype.itemsize > len(data)):
        raise DataError(f"a tensor {list(size)} reaches out of its {len(data)} bytes")
    flat = np.frombuffer(data, dtype, len(data) // dtype.itemsize)[view.offset :]
    return np.lib.stride_tricks.as_strided(flat, size, [step * dtype.itemsize for step in stride]).copy()


def _zip(file) -> tuple[Any, Any]:
    """(object, function from storage to bytes) of torch 1.6 and later."""
    archive = zipfile.ZipFile(file)
    sizes = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in sizes if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DataError("it is an archive without one data.pkl: no weights of torch")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder") != b"little":
        raise DataError("its numbers are big-endian")

    def read(storage):
        name = f"{folder}data/{storage.key}"
        if name not in sizes:
            raise DataError(f"{name} is missing in the archive")
        if sizes[name].file_size != storage.elements * storage.kind.dtype.itemsize:
            raise DataError(f"{name} has {sizes[name].file_size} bytes, which is not what its tensor says")
        return archive.read(name)

    return _Unpickler(io.BytesIO(archive.read(pickles[0]))).load(), read


def _legacy(file) -> tuple[Any, Any]:
    """The same of the format before torch 1.6: pickles one behind the other, then the storages."""
    try:
        known = _Unpickler(file).load() == MAGIC and _Unpickler(file).load() == PROTOCOL
    except pickle.UnpicklingError:  # Of a file that is no pickle at all.
        known = False
    if not known:
        raise DataError(NEITHER)
    _Unpickler(file).load()  # The sizes of C's types on the machine that wrote it.
    found, keys = _Unpickler(file).load(), _Unpickler(file).load()
    by_key = {view.storage.key: view.storage for view in _views(found)}
    at, total = file.tell(), file.seek(0, io.SEEK_END)
    places: dict[str, int] = {}
    for key in map(str, keys):  # Each storage is a count of elements in eight bytes and then the elements.
        file.seek(at)
        count, storage = int.from_bytes(file.read(8), "little"), by_key.get(key)
        places[key], at = at + 8, at + 8 + count * (storage.kind.dtype.itemsize if storage else 0)
        if storage is None or count != storage.elements or at > total:
            raise DataError("it is cut short or its storages do not fit its tensors")

    def read(storage):
        if storage.key not in places:
            raise DataError(f"storage {storage.key} is missing")
        file.seek(places[storage.key])
        return file.read(storage.elements * storage.kind.dtype.itemsize)

    return found, read


def _safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file; safetensors' own function for numpy knows none of 8 bits a number."""
    import safetensors

    arrays = {}
    for name, entry in safetensors.deserialize(content):
        if entry["dtype"] not in SAFETENSORS:
            raise DataError(f"{name} is {entry['dtype']}, must be one of {', '.join(SAFETENSORS)}")
        arrays[name] = np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _views(found):
    if isinstance(found, _View):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _views(value)
    elif isinstance(found, list | tuple) and not isinstance(found, _Storage | _Kind):
        for value in found:
            yield from _views(value)


def read(path: str) -> dict[str, np.ndarray]:
    """name -> array of the file's tensors. Of a training checkpoint, which holds them as one of CONTAINERS, these are
    taken, and a line on standard error says if there are averages beside them; entries that are no tensors are skipped.

    Raises DataError, naming the file, for anything but weights.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            head = file.read(9)
            file.seek(0)
            if head[8:9] == b"{":
                return _safetensors(file.read())
            found, storage_bytes = _zip(file) if head.startswith(b"PK") else _legacy(file)
            for name in CONTAINERS:
                if isinstance(found, dict) and isinstance(found.get(name), dict):
                    others = [
                        other for other in found if "ema" in str(other).lower() and isinstance(found[other], dict)
                    ]
                    if others:  # Averages of the weights.
                        print(f"{path}: {name} is taken, not {', '.join(map(str, others))}", file=sys.stderr)
                    found = found[name]
            if not isinstance(found, dict) or not any(isinstance(value, _View) for value in found.values()):
                held = ", ".join(map(str, list(found)[:SHOWN])) if isinstance(found, dict) else type(found).__name__
                raise DataError(f"it holds no dictionary of tensors, by itself or as {', '.join(CONTAINERS)}: {held}")
            cache: dict[str, bytes] = {}
            arrays = {}
            for name, view in found.items():
                if not isinstance(view, _View):
                    continue
                key = view.storage.key
                cache = cache if key in cache else {key: storage_bytes(view.storage)}
                arrays[str(name)] = _array(view, cache[key])
            return arrays
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # Whatever a damaged file makes pickle, zipfile or safetensors say.
        raise DataError(f"{path} holds no weights that can be read: {' '.join(str(error).split())[:200]}") from None
