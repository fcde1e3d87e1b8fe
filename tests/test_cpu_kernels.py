"""Compares the kernels of models/cpu_kernels with XLA's operations, and tests their compilation."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from models.cpu_kernels import build, ffi, ops

LAYOUT = ("NHWC", "HWIO", "NHWC")
MATRICES = (((1,), (0,)), ((), ()))  # dimension_numbers of a matrix product.
FORMS = [  # (image, outputs, window, strides, padding)
    ((12, 16, 16, 3), 8, (5, 5), (1, 1), "SAME"),
    ((6, 9, 7, 8), 5, (3, 3), (1, 1), ((2, 0), (1, 1))),
    ((2, 8, 8, 8), 4, (1, 1), (1, 1), ((1, 2), (0, 3))),  # Padding wider than the window.
    ((2, 8, 9, 8), 4, (3, 3), (1, 1), ((-1, 2), (0, -2))),  # Negative: no window covers the cropped pixels.
    ((6, 33, 31, 4), 5, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((34, 17, 17, 4), 3, (3, 3), (2, 2), "VALID"),
    ((7, 32, 32, 3), 5, (7, 7), (2, 2), ((3, 3), (3, 3))),  # No window covers the last row.
    ((3, 8, 8, 3), 4, (1, 1), (2, 2), "VALID"),
    ((2, 16, 16, 3), 4, (11, 11), (4, 4), ((2, 2), (2, 2))),
    ((1, 1, 1, 1), 1, (1, 1), (1, 1), "VALID"),
    ((2, 5, 30, 17), 33, (5, 2), (3, 2), ((2, 1), (0, 2))),  # One more than a channel block and than two vectors.
    ((3, 4, 6, 16), 65, (3, 3), (1, 1), "SAME"),
    ((2, 3, 25, 33), 16, (3, 3), (1, 1), "SAME"),  # One more position than the largest tile.
    ((1, 70, 90, 35), 11, (3, 3), (1, 1), "SAME"),  # An image in several strips.
    ((3, 2, 2, 512), 260, (3, 3), (1, 1), "SAME"),  # The gradient of the kernel is computed in slices.
    ((20, 3, 5, 6), 40, (2, 4), (1, 3), ((0, 1), (2, 1))),
]
TILED = [  # At least one gradient uses Winograd tiles, whose errors are larger.
    ((12, 16, 16, 32), 12, (3, 3), (1, 1), "SAME"),
    ((30, 7, 10, 37), 51, (3, 3), (1, 1), ((2, 1), (0, 3))),  # Tiles partly outside, an incomplete block and group.
    ((3, 13, 6, 64), 70, (3, 3), (1, 1), ((-1, 2), (1, -2))),
    ((2, 12, 16, 40), 32, (5, 5), (1, 1), "SAME"),  # Four kernels of 3x3.
    ((2, 12, 13, 64), 64, (7, 7), (1, 1), "SAME"),
    ((4, 11, 16, 33), 33, (3, 6), (1, 1), "VALID"),
    ((2, 40, 40, 48), 64, (3, 3), (1, 1), "SAME"),  # Several tasks and chunks.
]


def both_ways(convolution, x, kernel, strides, padding):
    """The convolution and its two gradients."""
    y, back = jax.vjp(lambda x, kernel: convolution(x, kernel, strides, padding, dimension_numbers=LAYOUT), x, kernel)
    return y, *back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def drawn(shape, outputs, window, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    made = rng.normal(size=shape), rng.normal(size=(*window, shape[-1], outputs))
    return [jnp.asarray(x, dtype) for x in made]


@pytest.mark.parametrize(("shape", "outputs", "window", "strides", "padding"), FORMS + TILED)
def test_convolutions_equal_xla(shape, outputs, window, strides, padding):
    x, kernel = drawn(shape, outputs, window)
    error = 2e-5 if (shape, outputs, window, strides, padding) in TILED else 4e-6
    ours = jax.jit(lambda *xs: both_ways(ops.conv_general_dilated, *xs, strides, padding))
    assert str(ours.trace(x, kernel).jaxpr).count("ffi_call[") == 3
    theirs = jax.jit(lambda *xs: both_ways(jax.lax.conv_general_dilated, *xs, strides, padding))(x, kernel)
    for found, expected in zip(ours(x, kernel), theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=error * float(jnp.abs(expected).max()))


def dense(product, x, w):
    """The product and its two gradients."""
    y, back = jax.vjp(lambda x, w: product(x, w, MATRICES), x, w)
    return y, *back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def drawn_dense(rows, inputs, outputs):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, inputs), (inputs, outputs))]


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (16, 64, 64),
        (17, 65, 66),
        (70, 97, 129),  # One more than six tiles, six blocks and two panels.
        (128, 130, 1000),
        (33, 1030, 65),  # A panel in three pieces.
        (4096, 64, 72),
        (19, 9, 600),
        (130, 500, 10),
    ],
)
def test_products_equal_xla(rows, inputs, outputs):
    x, w = drawn_dense(rows, inputs, outputs)
    ours = jax.jit(functools.partial(dense, ops.dot_general))
    assert str(ours.trace(x, w).jaxpr).count("ffi_call[") == (3 if outputs >= 64 else 2)
    for found, expected in zip(ours(x, w), jax.jit(functools.partial(dense, jax.lax.dot_general))(x, w), strict=True):
        np.testing.assert_allclose(found, expected, atol=4e-6 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(15, 64, 64), (4097, 64, 64), (16, 63, 65), (16, 700, 7)])
def test_small_and_long_products_use_xla(rows, inputs, outputs):
    found = jax.make_jaxpr(functools.partial(dense, ops.dot_general))(*drawn_dense(rows, inputs, outputs))
    assert "ffi_call" not in str(found)


@pytest.mark.parametrize("asked", [{"precision": "highest"}, {"preferred_element_type": jnp.bfloat16}])
def test_a_product_of_another_precision_uses_xla(asked):
    found = jax.make_jaxpr(lambda x, w: ops.dot_general(x, w, MATRICES, **asked))(*drawn_dense(64, 64, 64))
    assert "ffi_call" not in str(found)


def test_a_training_step_copies_no_weights_and_takes_no_gradient_of_the_images():
    images, first = drawn_dense(16, 80, 64)
    second = first[:64]

    def step(weights, images):
        def loss(weights):
            h = images
            for w in weights:
                h = jnp.tanh(ops.dot_general(h, w, MATRICES))
            return h.sum()

        return jax.tree.map(lambda w, g: w - g, weights, jax.grad(loss)(weights))

    compiled = jax.jit(step, donate_argnums=0).lower((first, second), images).compile().as_text()
    calls = [
        compiled.count(f'"nutshell_{name}"') for name in ("product", "product_gradient", "product_kernel_gradient")
    ]
    assert calls == [2, 1, 2]
    assert not [line for line in compiled.splitlines() if " copy(" in line and ",64]" in line.split(" copy(")[0]]


def test_operands_of_mismatched_shapes_are_refused():
    """The kernels would read out of bounds."""
    x, kernel = drawn((2, 5, 5, 4), 6, (3, 3))
    with pytest.raises(ValueError, match="feature"):
        ops.conv_general_dilated(x[..., :3], kernel, (1, 1), "SAME")
    rows, w = drawn_dense(16, 64, 64)
    with pytest.raises(TypeError, match="contracting"):
        ops.dot_general(rows[:, :63], w, MATRICES)


def test_other_dtypes_use_xla():
    def step(*xs):
        return both_ways(ops.conv_general_dilated, *xs, (1, 1), "SAME")

    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
            assert "ffi_call" not in str(jax.make_jaxpr(step)(*drawn((2, 5, 5, 3), 4, (3, 3), dtype)))


def test_empty_operands_and_outputs():
    for shape, window in (((0, 5, 5, 3), (3, 3)), ((2, 2, 2, 3), (3, 3))):
        found = both_ways(ops.conv_general_dilated, *drawn(shape, 4, window), (1, 1), "VALID")
        assert found[0].size == 0 and not found[2].any()


def test_vmap_over_kernels():
    """With a different kernel for each image."""
    x, _ = drawn((3, 2, 6, 6, 4), 5, (3, 3))
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4, 5)), jnp.float32)
    found = jax.vmap(lambda x, k: ops.conv_general_dilated(x, k, (1, 1), "SAME"))(x, kernel)
    each = [ops.conv_general_dilated(x[i], kernel[i], (1, 1), "SAME") for i in range(3)]
    np.testing.assert_array_equal(found, np.stack(each))
    rows, w = drawn_dense(32, 64, 64)
    back = jax.vjp(lambda x, w: ops.dot_general(x, w, MATRICES), rows, w)[1]
    gradients = jnp.stack([rows, w[:32]])
    for found, expected in zip(jax.vmap(back)(gradients), zip(*map(back, gradients), strict=True), strict=True):
        np.testing.assert_array_equal(found, np.stack(expected))


def test_shard_map_with_check_vma():
    x, kernel = drawn((8, 6, 6, 4), 5, (3, 3))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def loss(x, kernel):
        return jnp.sin(ops.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)))).sum()

    def loss_of_dense(x, w):
        return jnp.sin(ops.dot_general(x, w, MATRICES) / 8).sum()

    for function, operands in ((loss, (x, kernel)), (loss_of_dense, drawn_dense(64, 64, 70))):

        def of_a_device(x, kernel, function=function):
            kernel = jax.lax.pcast(kernel, "data", to="varying")
            return jax.lax.psum(jax.grad(function, 1)(x, kernel), "data")

        sharded = jax.shard_map(of_a_device, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(), check_vma=True)
        whole = jax.grad(function, 1)(*operands)
        np.testing.assert_allclose(jax.jit(sharded)(*operands), whole, atol=4e-6 * float(jnp.abs(whole).max()))


BITS = """
import os, sys
from experiments.cli import compilation_cache
compilation_cache.start_cache()
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import hashlib, jax, numpy as np
from tests.test_cpu_kernels import both_ways, dense, drawn, drawn_dense, ops
for x, window in (((9, 33, 31, 20), (3, 3)), ((5, 6, 6, 130), (5, 5)), ((5, 6, 6, 130), (2, 2))):
    found = jax.jit(lambda *xs: both_ways(ops.conv_general_dilated, *xs, (1, 1), "SAME"))(*drawn(x, 150, window))
    print(*(hashlib.sha256(np.asarray(y).tobytes()).hexdigest() for y in found))
found = jax.jit(lambda *xs: dense(ops.dot_general, *xs))(*drawn_dense(70, 700, 300))
print(*(hashlib.sha256(np.asarray(y).tobytes()).hexdigest() for y in found))
"""


def test_results_do_not_depend_on_the_number_of_threads(start):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    runs = [start(BITS, n) for n in (1, 2)]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout.split()) == 12


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Replaces the kernels by a library with one function."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "cpu/answer.c")
    (tmp_path / "cache").mkdir(mode=0o700)
    return tmp_path / "cache"


def test_leftovers_of_a_killed_compilation_are_removed(small):
    old, fresh = small / ".kernelsold", small / ".kernelsnew"
    for path in (old, fresh):
        (path / "cache").mkdir(parents=True)
    os.utime(old, (0, 0))
    assert build.load_from(small).answer() == 42
    assert not old.exists() and fresh.exists()


@pytest.mark.parametrize("size", [1000, -1])
def test_a_truncated_library_is_compiled_again(small, size):
    build.load_from(small)
    (path,) = small.iterdir()
    whole = path.read_bytes()
    assert len(whole) > size
    path.unlink()  # The loaded library keeps its pages.
    path.write_bytes(whole[:size])
    assert build.load_from(small).answer() == 42
    (again,) = small.iterdir()
    assert again.stem.endswith(build._digest(again.read_bytes())) and again.stat().st_size == len(whole)
    build.load_from(small)
    assert list(small.iterdir()) == [again]


@pytest.fixture
def cache_at():
    """cache_at(FOLDER) sets the folder of JAX's compilation cache."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_missing_cache_folder_is_created(small, cache_at, capsys):
    cache_at(small / "new/compiled")
    assert build.load().answer() == 42
    assert (small / "new/compiled").stat().st_mode & 0o777 == 0o700
    (path,) = (small / "new/compiled").iterdir()
    before = path.stat().st_mtime_ns
    assert build.load().answer() == 42 and path.stat().st_mtime_ns == before
    assert capsys.readouterr().err == "compiling the CPU kernels for this processor, once; takes a few seconds\n"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_in_which_others_can_write_is_not_used(small, cache_at, mode):
    build.load_from(small)
    (path,) = small.iterdir()
    small.chmod(mode)
    cache_at(small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.ctypes, "CDLL", os.path.realpath)  # The path of the library instead of the library.
        assert build.load() != str(path) and list(small.iterdir()) == [path]
        small.chmod(0o700)
        assert build.load() == str(path)
        patch.setattr(build.os, "geteuid", lambda: small.stat().st_uid + 1)
        assert not build._is_private(small)


@pytest.mark.parametrize("place", ["/dev/null/compiled", "/proc/compiled", "gs://bucket/compiled"])
def test_an_unusable_cache_folder_is_ignored(small, cache_at, place, monkeypatch, capsys):
    monkeypatch.chdir(small)
    cache_at(place)
    assert build.load().answer() == 42 and list(small.iterdir()) == []
    assert " for this process, because no usable compilation cache is set; " in capsys.readouterr().err


def test_a_damaged_library_that_another_process_removes_first(small, monkeypatch):
    build.load_from(small)
    (path,) = small.iterdir()
    path.unlink()
    path.write_bytes(b"damaged")
    original = build._digest

    def removed_after(content):
        if content == b"damaged":
            path.unlink()
        return original(content)

    monkeypatch.setattr(build, "_digest", removed_after)
    assert build.load_from(small).answer() == 42 and list(small.iterdir()) == [path]


def test_without_a_compiler_xla_is_used(monkeypatch, tmp_path, capsys):
    (tmp_path / "broken.c").write_text("#error no such processor\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "broken.c")
    # With a separate cache, because a process registers the kernels only once.
    monkeypatch.setattr(ffi, "available", functools.cache(ffi.available.__wrapped__))
    assert not ffi.available() and not ffi.available()
    first, line = capsys.readouterr().err.splitlines(keepends=True)
    assert first.startswith("compiling the CPU kernels for this processor")
    assert re.fullmatch(r"CPU kernels unavailable \(.*no such processor.*\); falling back to XLA\n", line)
    step = jax.make_jaxpr(lambda *xs: both_ways(ops.conv_general_dilated, *xs, (1, 1), "SAME"))
    assert "ffi_call" not in str(step(*drawn((2, 5, 5, 3), 4, (3, 3))))
