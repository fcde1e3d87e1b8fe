"""Tests of the benchmarks profile_step, checkouts and scaling, with tiny sizes."""

import functools
import json

import commands
import pytest

import models
from benchmarks import operations
from models import summary


@pytest.fixture
def measure(start, tmp_path):
    """measure(NAME, *arguments) runs benchmarks.NAME to completion."""
    return functools.partial(start, package="benchmarks", folder=tmp_path)


PROGRAM = """HloModule jit_step, is_scheduled=true
FileNames
1 "layers.py"
FunctionNames
1 "max_pool.<locals>.<lambda>"
2 "relu"
FileLocations
1 {file_name_id=1 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%sums (p.1: f32[8,4]) -> f32[4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %reduce.1 = f32[4]{0} reduce(%p.1, %zero), dimensions={0}, to_apply=%add
}

%moves (p.2: f32[8,4]) -> f32[4,8] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  ROOT %transpose.1 = f32[4,8]{1,0} transpose(%p.2), dimensions={1,0}
}

%larger (p.3: f32[8,4]) -> f32[8,4] {
  %p.3 = f32[8,4]{1,0} parameter(0)
  ROOT %maximum.1 = f32[8,4]{1,0} maximum(%p.3, %p.3)
}

%body (p.4: (f32[8,4], s32[])) -> (f32[8,4], s32[]) {
  %p.4 = (f32[8,4]{1,0}, s32[]) parameter(0)
  %looped = f32[8,4]{1,0} fusion(%p.4), kind=kLoop, calls=%larger, metadata={op_name="a" stack_frame_id=1}
}

ENTRY %main (x: f32[8,4]) -> f32[4] {
  %x = f32[8,4]{1,0} parameter(0)
  %while.1 = (f32[8,4]{1,0}, s32[]) while(%tuple), condition=%less, body=%body
  %pooled = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%larger, metadata={op_name="a" stack_frame_id=2}
  %turned = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%moves
  %ynn = f32[4]{0} fusion(%x), kind=kCustom, calls=%sums
  %dot.1 = f32[8,8]{1,0} dot(%x, %turned), lhs_contracting_dims={1}
  %scatter.1 = f32[8,4]{1,0} scatter(%x, %i, %u), to_apply=%add
  %ffi.1 = (f32[8,4]{1,0}, f32[]) custom-call(%x, %w), custom_call_target="nutshell_kernel_gradient", \
operand_layout_constraints={f32[8,4]{1,0}, f32[3,3,2,4]{3,2,1,0}}, api_version=API_VERSION_TYPED_FFI
  %ffi.2 = f32[4]{0} custom-call(%x), custom_call_target="nutshell_affine", \
operand_layout_constraints={f32[8,4]{1,0}}, api_version=API_VERSION_TYPED_FFI
}
"""


def test_the_kinds_of_a_programs_operations():
    found = operations.parse(PROGRAM)
    kinds = {name: operation.kind for name, operation in found.items() if name not in ("p.4", "x")}
    assert kinds == {
        "looped": "elementwise", "pooled": "pooling", "turned": "copies", "ynn": "reductions", "dot.1": "products",
        "scatter.1": "other", "ffi.1": "kernel gradient", "ffi.2": "batch norm",
    }  # fmt: skip
    assert found["ffi.1"][1:] == ("kernel_gradient", ((8, 4), (3, 3, 2, 4), (8, 4), ()))
    assert set(kinds.values()) < set(operations.KINDS)


def test_concurrent_operations_share_the_time():
    found = [(0, 10, "a"), (4, 8, "b"), (20, 21, "a"), (30, 33, "c"), (31, 33, "a"), (31, 32, "b")]
    # Three operations run from 31 to 32, two from 32 to 33, none from 10 to 20 and from 21 to 30.
    expected = {"a": 8 + 1 + 1 / 3 + 1 / 2, "b": 2 + 1 / 3, "c": 1 + 1 / 3 + 1 / 2}
    assert operations.shares(found) == pytest.approx(expected)
    assert sum(expected.values()) == pytest.approx(10 + 1 + 3)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_kinds_add_up_to_the_traced_step(measure, tmp_path):
    options = ["--models=mlp", "--batch=16", "--seconds=0.01", "--json", f"--figure={tmp_path / 'kinds.png'}"]
    done = measure("profile_step", *options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    kinds = row["kinds"]
    assert (row["model"], row["batch_size"], row["steps"], list(kinds)) == ("mlp", 16, 5, list(operations.KINDS))
    assert sum(kinds.values()) == pytest.approx(row["traced_ms"]) and min(kinds.values()) >= 0
    assert kinds["products"] >= row["kernels_ms"] > 0 and kinds["elementwise"] > 0 and kinds["convolution"] == 0
    others = row["traced_ms"] - kinds["no operation"] - row["kernels_ms"]
    assert row["between_ms"] == pytest.approx(row["wall_ms"] - others - row["alone_ms"]) and row["alone_ms"] > 0
    assert done.stdout.splitlines()[0].split() == ["ms", "per", "step", "mlp"] and is_png(tmp_path / "kinds.png")
    assert f"products        {kinds['products']:>15.2f}" in done.stdout.splitlines()


@pytest.mark.slow
def test_measurements_of_two_checkouts_alternate(measure):
    options = ["--models=mlp", "--batch=8", "--seconds=0.001", "--turns=3", "--json"]
    done = measure("checkouts", f"--before={commands.ROOT}", *options)
    assert done.returncode == 0, done.stderr
    lines, found = done.stdout.splitlines(), json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == found["this"] == str(commands.ROOT)
    assert lines[:2] == [f"before: {commands.ROOT}", f"this:   {commands.ROOT}"]
    (row,) = found["rows"]
    ratios = sorted(this / before for before, this in row["turns"])
    assert len(ratios) == 3 and ratios[0] > 0 and row["ratio"] == ratios[1]
    assert row["quartiles"] == pytest.approx([(ratios[0] + ratios[1]) / 2, (ratios[1] + ratios[2]) / 2])
    assert lines[3].split()[:4] == ["mlp", f"{row['before_ms']:.2f}", f"{row['this_ms']:.2f}", f"{row['ratio']:.3f}"]


@pytest.mark.slow
def test_a_checkout_that_does_not_start_is_a_one_line_error(measure, tmp_path):
    package = tmp_path / "other" / "benchmarks"
    package.mkdir(parents=True)
    done = measure("checkouts", f"--before={tmp_path / 'other'}")
    line = f"error: --before={tmp_path / 'other'}: not a checkout, because benchmarks/classifiers.py is missing\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    (package / "__init__.py").touch()
    (package / "classifiers.py").write_text('raise ImportError("too old")\n')
    done = measure("checkouts", f"--before={tmp_path / 'other'}")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'other'}: ImportError: too old\n")


@pytest.mark.slow
def test_growth_is_the_increase_of_time_per_work(measure, tmp_path):
    options = ["--quick", "--curves=width,loader", "--seconds=0.01", "--json", f"--figure={tmp_path / 'curves.png'}"]
    done = measure("scaling", *options)
    assert done.returncode == 0, done.stderr
    width, loader = json.loads(done.stdout.splitlines()[-1])["curves"]
    assert (width["curve"], width["title"], loader["curve"]) == ("width", "mlp, three layers, batch 8", "loader")
    for row, units in zip(width["rows"], (16, 32), strict=True):
        layers = summary.layers(models.create("mlp", 10, hidden=(units,) * 3), (16, 16, 3))
        assert (row["x"], row["work"]) == (units, 8 * sum(layer.multiply_adds for layer in layers))
        assert row["images_per_second"] == pytest.approx(8e3 / row["ms"]) and row["compile_s"] > 0
        assert row["peak_mb"] >= row["steps_mb"] > 50
    assert [row["work"] for row in loader["rows"]] == [64] * len(loader["rows"])
    for curve in (width, loader):
        first = curve["rows"][0]
        for row in curve["rows"]:
            expected = row["ms"] / first["ms"] * first["work"] / row["work"]
            assert row["growth"] == pytest.approx(expected)
    assert done.stdout.startswith("width: mlp, three layers, batch 8\n") and is_png(tmp_path / "curves.png")


def test_unknown_curves_and_flags_without_effect_are_refused(measure):
    for module, flag, line in (
        ("scaling", "--curves=length", "--curves=length: must be one of depth, width, "),
        ("scaling", "--batch=3", "--batch has no effect in this benchmark"),
        ("profile_step", "--peer=peer.py", "--peer has no effect in this benchmark"),
        ("profile_step", "--models=vgg", "--models=vgg: must be one of mlp, "),
        ("checkouts", "--models=mlp", "--before is required: "),
    ):
        done = measure(module, flag)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith(f"error: {line}")
