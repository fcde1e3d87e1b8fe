"""Reads network weights from safetensors and .pth files, without PyTorch and without running code from the file.

A .pth file is a pickle, which can call arbitrary functions. Here it can only create dictionaries, lists, numbers and
strings and call the PyTorch functions that rebuild tensors. Any other name, such as the class of the options in a
training checkpoint, is not imported; it is replaced by an object that does nothing.
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
NEITHER = "it is neither a safetensors file nor in one of PyTorch's two formats"
SAFETENSORS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BOOL": np.bool_, "C64": np.complex64},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}
SHOWN = 10  # An error message lists at most this many entries.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # Header of the format before PyTorch 1.6.
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


class _StorageType(NamedTuple):
    """Represents a class of PyTorch storages."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """The elements that tensors are views of; in the older format, their bytes come after the pickle."""

    key: str
    kind: _StorageType
    elements: int


class _View(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage, offset, size, stride, *rest):
    """Replaces torch._utils._rebuild_tensor and _rebuild_tensor_v2, whose additional arguments concern gradients."""
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
    **{("torch", name): _StorageType(np.dtype(dtype)) for name, dtype in DTYPES.items()},
}


class _Ignored:
    """A placeholder for objects of all other classes and for results of their functions."""

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
        is_storage = isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage"
        if not (is_storage and isinstance(saved[1], _StorageType)):
            raise DataError("it refers to an object that is not a tensor storage")
        if any(part is not None for part in saved[5:]):  # In old files, a view of another storage.
            raise DataError("it contains a view of a storage, a format from before PyTorch 0.4 that is not supported")
        return _Storage(str(saved[2]), saved[1], int(saved[4]))


def _array(view: _View, data: bytes) -> np.ndarray:
    """Copies the tensor to an array. Raises DataError if it exceeds its storage."""
    dtype: np.dtype = view.storage.kind.dtype
    size, stride = view.size, view.stride
    last = view.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = view.offset >= 0 and min(stride, default=0) >= 0 and min(size, default=0) >= 0
    if not inside or (0 not in size and (last + 1) * dtype.itemsize > len(data)):
        raise DataError(f"a tensor of shape {list(size)} exceeds its storage of {len(data)} bytes")
    flat = np.frombuffer(data, dtype, len(data) // dtype.itemsize)[view.offset :]
    return np.lib.stride_tricks.as_strided(flat, size, [step * dtype.itemsize for step in stride]).copy()


def _zip(file) -> tuple[Any, Any]:
    """Reads the format of PyTorch 1.6 and later. Returns (object, function from storage to bytes)."""
    archive = zipfile.ZipFile(file)
    sizes = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in sizes if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DataError(f"it is a zip archive with {len(pickles)} data.pkl files; PyTorch weights have exactly one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder") != b"little":
        raise DataError("its numbers are big-endian, expected little-endian")

    def read(storage):
        name = f"{folder}data/{storage.key}"
        if name not in sizes:
            raise DataError(f"{name} is missing from the archive")
        expected = storage.elements * storage.kind.dtype.itemsize
        if sizes[name].file_size != expected:
            raise DataError(f"{name} has {sizes[name].file_size} bytes, expected {expected}")
        return archive.read(name)

    return _Unpickler(io.BytesIO(archive.read(pickles[0]))).load(), read


def _legacy(file) -> tuple[Any, Any]:
    """Reads the format before PyTorch 1.6: several pickles, then the storages. Returns the same as `_zip`."""
    try:
        known = _Unpickler(file).load() == MAGIC and _Unpickler(file).load() == PROTOCOL
    except pickle.UnpicklingError:  # The file is not a pickle.
        known = False
    if not known:
        raise DataError(NEITHER)
    _Unpickler(file).load()  # The sizes of C types on the machine that wrote the file.
    found, keys = _Unpickler(file).load(), _Unpickler(file).load()
    by_key = {view.storage.key: view.storage for view in _views(found)}
    at, total = file.tell(), file.seek(0, io.SEEK_END)
    places: dict[str, int] = {}
    for key in map(str, keys):  # Each storage is an 8-byte element count followed by the elements.
        file.seek(at)
        count, storage = int.from_bytes(file.read(8), "little"), by_key.get(key)
        places[key], at = at + 8, at + 8 + count * (storage.kind.dtype.itemsize if storage else 0)
        if storage is None or count != storage.elements or at > total:
            raise DataError("it is truncated or its storages do not match its tensors")

    def read(storage):
        if storage.key not in places:
            raise DataError(f"storage {storage.key} is missing")
        file.seek(places[storage.key])
        return file.read(storage.elements * storage.kind.dtype.itemsize)

    return found, read


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file's content. The library's own NumPy function does not support 8-bit floats."""
    import safetensors

    arrays = {}
    for name, entry in safetensors.deserialize(content):
        if entry["dtype"] not in SAFETENSORS:
            raise DataError(f"{name} is {entry['dtype']}, expected one of {', '.join(SAFETENSORS)}")
        arrays[name] = np.frombuffer(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _views(found):
    if isinstance(found, _View):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from _views(value)
    elif isinstance(found, list | tuple) and not isinstance(found, _Storage | _StorageType):
        for value in found:
            yield from _views(value)


def read(path: str) -> dict[str, np.ndarray]:
    """Reads the file's tensors, name -> array. In a training checkpoint, reads the tensors under a key in CONTAINERS,
    and prints a message on standard error if there are also averaged weights. Entries that are not tensors are skipped.

    Raises DataError with the file's name if it can't be read or does not contain weights.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            head = file.read(9)
            file.seek(0)
            if head[8:9] == b"{":
                return read_safetensors(file.read())
            found, storage_bytes = _zip(file) if head.startswith(b"PK") else _legacy(file)
            for name in CONTAINERS:
                if isinstance(found, dict) and isinstance(found.get(name), dict):
                    others = [
                        other for other in found if "ema" in str(other).lower() and isinstance(found[other], dict)
                    ]
                    if others:  # Averaged weights.
                        print(f"{path}: using {name}, not {', '.join(map(str, others))}", file=sys.stderr)
                    found = found[name]
            if not isinstance(found, dict) or not any(isinstance(value, _View) for value in found.values()):
                held = ", ".join(map(str, list(found)[:SHOWN])) if isinstance(found, dict) else type(found).__name__
                keys = ", ".join(CONTAINERS)
                raise DataError(f"it contains no dictionary of tensors at the top level or under {keys}; found: {held}")
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
    except Exception as error:  # A damaged file can make pickle, zipfile or safetensors raise any exception.
        raise DataError(f"{path} contains no readable weights: {' '.join(str(error).split())[:200]}") from None
