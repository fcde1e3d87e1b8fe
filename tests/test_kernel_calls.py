"""Tests of calls that the C kernels reject, libraries that are not loaded, and disabled kernels."""

import os
import re
import shutil
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.cpu_kernels import build, ffi, ops

WINDOW = {"window": np.array([1, 1, 1, 1], np.int64)}
POOLING = {"window": np.array([3, 2, 1, 1], np.int64)}
EPSILON = {"epsilon": np.float32(1e-5)}
NORM = {"moments": (2, 3), "scale": (3,), "bias": (3,)}
NORM_ATTRIBUTES = EPSILON | {"slope": np.float32(0)}
VALID = {  # A call of each kernel: (operands, results, attributes).
    "convolution": ({"images": (2, 5, 6, 3), "kernel": (3, 3, 3, 4), "affine": (2, 3)}, [(2, 5, 6, 4)], WINDOW),
    "kernel_gradient": ({"images": (2, 5, 6, 3), "gradient": (2, 5, 6, 4), "affine": (2, 3)}, [(3, 3, 3, 4)], WINDOW),
    "affine": ({"scale": (3,), "bias": (3,), "statistics": (2, 5)}, [(2, 3)], EPSILON),
    "affine_gradient": (
        {"total": (2, 5), "gradient": (2, 3), "scale": (3,), "statistics": (2, 5)},
        [(2, 5), (2, 3)],
        EPSILON,
    ),
    "affine_relu_gradient": (
        {"total": (2, 3, 4, 5), "gradient": (2, 3, 4, 3), "x": (2, 3, 4, 5), "affine": (2, 3)},
        [(2, 3, 4, 5), (2, 3)],
        {},
    ),
    "batch_moments": ({"x": (6, 3)}, [(2, 3)], {}),
    "batch_norm": ({"x": (6, 3), **NORM, "shortcut": (6, 3)}, [(6, 3)], NORM_ATTRIBUTES),
    "batch_norm_sums": ({"gradient": (6, 3), "x": (6, 3), **NORM, "y": (6, 3)}, [(2, 3), (6, 3)], NORM_ATTRIBUTES),
    "batch_norm_gradient": (
        {"gradient": (6, 3), "x": (6, 3), **NORM, "means": (2, 3)},
        [(6, 3)],
        NORM_ATTRIBUTES,
    ),
    "update_running_stats": (
        {"mean": (3,), "variance": (3,), "statistics": (2, 5)},
        [(3,), (3,)],
        {"momentum": np.float32(0.9)},
    ),
    "max_pool": ({"x": (2, 5, 6, 3)}, [(2, 3, 3, 3)], POOLING),
    "max_pool_gradient": ({"x": (2, 5, 6, 3), "gradient": (2, 3, 3, 3)}, [(2, 5, 6, 3)], POOLING),
    "product": ({"x": (16, 64), "w": (64, 65)}, [(16, 65)], {}),
    "product_gradient": ({"w": (64, 65), "gradient": (16, 65)}, [(16, 64)], {}),
    "product_kernel_gradient": ({"x": (16, 64), "gradient": (16, 65)}, [(64, 65)], {}),
}


def call(name, operands, results, attributes, dtypes=None):
    """Calls a kernel through XLA, without checking the shapes."""
    arrays = [jnp.ones(shape, (dtypes or {}).get(key, jnp.float32)) for key, shape in operands.items()]
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in results]
    return jax.block_until_ready(jax.ffi.ffi_call(f"nutshell_{name}", shapes)(*arrays, **attributes))


def refusal(name, *arguments, **options) -> str:
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"INVALID_ARGUMENT: {name}: ") as caught:
        call(name, *arguments, **options)
    return str(caught.value)


def shown(shape) -> str:
    return f"float32[{','.join(map(str, shape))}]"


@pytest.mark.parametrize("name", ffi.NAMES)
def test_every_array_and_attribute_of_a_call_is_checked(name):
    operands, results, attributes = VALID[name]
    assert [y.shape for y in call(name, operands, results, attributes)] == results
    last, shape = list(operands.items())[-1]
    message = refusal(name, operands | {last: (*shape, 1)}, results, attributes)
    assert f"{last} must be a nonempty float32[" in message and f", not {shown((*shape, 1))}, in {name}(" in message
    message = refusal(name, operands | {last: (*shape[:-1], 2)}, results, attributes)
    assert re.search(r"with (\w=\d+ )*\w=\d+, not float32\[|C must be at most P=2, not 3", message)
    for key in operands:
        message = refusal(name, operands, results, attributes, dtypes={key: jnp.int32})
        assert re.search(rf"{key} must be a nonempty float32\[.*, not int32\[", message)
    bad = [*results[:-1], (*results[-1][:-1], results[-1][-1] + 7)]
    assert f", not {shown(bad[-1])}, in {name}(" in refusal(name, operands, bad, attributes)
    assert f"got {len(operands)} operands and" in refusal(name, operands, [*results, (1,)], attributes)
    for attribute, value in attributes.items():  # Attributes are found by name.
        others = {key: other for key, other in attributes.items() if key != attribute}
        for wrong in ({"a" + attribute: value}, {attribute: np.int32(1)}):
            assert f"attribute {attribute} must be" in refusal(name, operands, results, others | wrong)
        more = attributes | {"a": np.int32(1), "z": np.int32(1)}
        assert [y.shape for y in call(name, operands, results, more)] == results


@pytest.mark.parametrize(
    ("operands", "window", "message"),
    [
        ({}, [0, 1, 1, 1], "strides must be between 1 and 1048576, not 0 and 1"),
        ({}, [1, 2**40, 1, 1], "strides must be between 1 and 1048576, not 1 and 1099511627776"),
        ({}, [1, 1, -(2**40), 1], "padding must be between"),
        ({}, [1, 1, 1], "the attribute window must be an array of 4 int64"),
        ({"images": (2, 5, 6, 9)}, [1, 1, 1, 1], "the images have 9 channels and the kernel 3"),
        ({"images": (0, 5, 6, 3)}, [1, 1, 1, 1], "images must be a nonempty float32[B,H,W,P], not float32[0,5,6,3]"),
        ({"kernel": (3, 3, 3, 0)}, [1, 1, 1, 1], "kernel must be a nonempty float32[h,w,C,O], not float32[3,3,3,0]"),
    ],
)
def test_the_window_and_the_channels_of_a_convolution_are_checked(operands, window, message):
    plain = {key: shape for key, shape in VALID["convolution"][0].items() if key != "affine"}
    window = {"window": np.array(window, np.int64)}
    assert message in refusal("convolution", plain | operands, [(2, 5, 6, 4)], window)


@pytest.mark.parametrize(
    "window, message",
    [
        ([0, 2, 1, 1], "the side must be between 1 and 4096, and the stride between 1 and 1048576, not 0 and 2"),
        ([4097, 2, 1, 1], "not 4097 and 2"),
        ([3, 0, 1, 1], "not 3 and 0"),
        ([3, 2**20 + 1, 1, 1], "not 3 and 1048577"),
        ([3, 2, 2**20 + 1, 1], "padding must be between -1048576 and 1048576, not 1048577 and 1"),
        ([3, 2, 1, -(2**20) - 1], "not 1 and -1048577"),
    ],
)
def test_the_windows_of_max_pooling_are_checked(window, message):
    operands, results, _ = VALID["max_pool"]
    assert message in refusal("max_pool", operands, results, {"window": np.array(window, np.int64)})


def test_a_convolution_that_needs_too_much_memory_is_refused():
    operands = {"images": (1, 1, 1, 16), "kernel": (1, 1, 16, 1)}
    window = {"window": np.array([2**20, 2**20, 0, 0], np.int64)}  # 2^20 phases of 2^20 columns.
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: convolution: .* 17592202821632 floats"):
        call("convolution", operands, [(1, 1, 2**20, 1)], window)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A cache folder; the kernels are replaced by a library with one function."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "source/answer.c")
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_a_library_that_others_could_replace_is_not_loaded(folder, mode):
    folder.chmod(mode)
    link = folder.with_name("link")
    link.symlink_to(folder)
    for path in (folder, link):
        with pytest.raises(OSError, match=f"{re.escape(str(folder))} must belong to this user and not be writable by"):
            build.load_from(path)
    assert not list(folder.iterdir())


def test_a_library_that_others_could_write_is_compiled_again(folder):
    before = os.umask(0)
    try:
        build.load_from(folder)
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o700
    inode = path.stat().st_ino
    build.load_from(folder)
    assert path.stat().st_ino == inode
    path.chmod(0o720)
    assert build.load_from(folder).answer() == 42
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o700 and path.stat().st_ino != inode


def test_a_library_that_is_exchanged_after_its_check_is_not_loaded(folder, monkeypatch):
    """As by someone who can rename a folder above."""
    build.load_from(folder)
    (path,) = folder.iterdir()
    loaded, load = [], build.ctypes.CDLL

    def exchange(name):
        path.unlink()
        path.write_bytes(b"another library")
        loaded.append(load(name))
        return loaded[0]

    monkeypatch.setattr(build.ctypes, "CDLL", exchange)
    assert build.load_from(folder).answer() == 42 and loaded


@pytest.mark.parametrize("package", ["jax", "jaxlib", "ziglang"])
def test_another_version_of_a_package_compiles_again(folder, monkeypatch, package):
    build.load_from(folder)
    before, version = set(folder.iterdir()), build.importlib.metadata.version
    monkeypatch.setattr(build.importlib.metadata, "version", lambda name: "9" if name == package else version(name))
    assert build.load_from(folder).answer() == 42 and len(set(folder.iterdir()) - before) == 1


HANDLER = """
import os, pathlib, signal, subprocess, sys
signal.signal(signal.SIGINT, lambda *_: print("signal"))
from models.cpu_kernels import build

class Interrupted(subprocess.Popen):
    def communicate(self, *arguments, **options):  # The compiler runs.
        os.killpg(os.getpgid(0), signal.SIGINT)
        return super().communicate(*arguments, **options)

subprocess.Popen = Interrupted
build.load_from(pathlib.Path(sys.argv[1]))
print("loaded")
"""


@pytest.mark.slow
def test_ctrl_c_during_the_compilation_reaches_only_the_command(environment, tmp_path):
    """A terminal sends the signal to the whole process group. The command handles it itself, for example at the end of
    a training step; its kernels must still be available."""
    done = subprocess.run(
        [sys.executable, "-c", HANDLER, str(tmp_path)],
        env=environment, capture_output=True, text=True, start_new_session=True, timeout=commands.LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "signal\nloaded\n")
    assert done.stderr.startswith("compiling the CPU kernels") and done.stderr.count("\n") == 1


def test_disabled_kernels_are_neither_used_nor_compiled(monkeypatch):
    monkeypatch.setattr(ffi, "_disabled", False)
    monkeypatch.setattr(ffi, "available", lambda: pytest.fail("compiled"))
    ops.disable()

    def loss(x, kernel, w):
        y = ops.dot_general(x.reshape(16, -1), w, (((1,), (0,)), ((), ()))).sum()
        y += ops.conv_transpose(x, kernel, (2, 2), ((1, 1), (1, 1)), (9, 9)).sum()
        return y + ops.conv_general_dilated(x, kernel, (1, 1), "SAME").sum()

    x, kernel, w = jnp.ones((16, 5, 5, 3)), jnp.ones((3, 3, 3, 4)), jnp.ones((75, 64))
    assert not ops.use_cpu_kernels(x)
    assert "ffi_call" not in str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, kernel, w))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="requires gcc")
def test_kernels_pass_the_address_and_undefined_behavior_sanitizers(environment):
    line = [sys.executable, "-P", "tests/kernels/check.py", "--quick"]
    done = subprocess.run(
        line, cwd=commands.ROOT, env=environment, capture_output=True, text=True, timeout=commands.LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if ": skipped: " in done.stdout:
        pytest.skip(done.stdout.strip())
    assert re.fullmatch(r"gcc, this processor, .*: passed: \d+ lanes, \d{4} comparisons, .*\n", done.stdout)
