"""Tests of the bytes communicated per step: a hand count of an HLO text, and formulas against compiled programs."""

import json

import pytest

import models
from experiments.cli.app import UsageError
from experiments.setup import communication as communication_setup
from models.alexnet import AlexNetOWT
from models.layers import relu
from train.parallel import communication

PROGRAM = """HloModule step

%body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  ROOT %ag.2 = f32[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

ENTRY %main.9 (p: f32[2,4]) -> f32[8,4] {
  %r = (f32[10]{0}, s32[]) all-reduce(%p, %q), channel_id=2, to_apply=%add
  %w = (s32[], f32[8,4]) while(%t), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %rs = f32[2,4]{1,0} reduce-scatter(%y), channel_id=3, dimensions={0}, to_apply=%add
}
"""


def test_bytes_of_a_program_against_a_hand_count():
    gather, reduced, scattered = 3 * 3 / 4 * 128, 2 * 3 / 4 * 44, 3 / 4 * 4 * 32
    assert communication.compiled_bytes(PROGRAM, 4) == pytest.approx(gather + reduced + scattered)
    started = PROGRAM.replace("= f32[8,4]{1,0} all-gather(", "= (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(")
    started = started.replace("all-reduce(", "all-reduce-start(")  # Its result is the output only.
    assert communication.compiled_bytes(started, 4) == pytest.approx(gather + reduced + scattered)
    with pytest.raises(ValueError, match="a loop with collectives has an unknown trip count"):
        communication.compiled_bytes(PROGRAM.replace("known_trip_count", "something"), 4)
    with pytest.raises(ValueError, match="no formula for all-to-all"):
        communication.compiled_bytes(PROGRAM.replace("all-gather(", "all-to-all("), 4)


class Tiny(AlexNetOWT):
    def features(self, x, train: bool = False):
        del train
        return relu(self.conv1(x)).reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    "devices", [4, pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_the_formulas_equal_the_compiled_programs(devices):
    model, shape = Tiny(10, widths=(4, 8, 8, 8, 8), units=14), (15, 15, 3)
    counts = communication_setup.Counts(model, shape)
    for hybrid, formula in ((False, counts.data(devices)), (True, counts.hybrid(devices, 16))):
        found = communication_setup.counted(model, shape, devices=devices, batch_size=16, hybrid_parallel=hybrid)
        assert found == formula["communication_bytes_per_device"]


def test_alexnet_on_eight_devices_stays_within_the_papers_budget():
    counts = communication_setup.Counts(AlexNetOWT(1000), (224, 224, 3))
    assert counts.hybrid(8, 1024)["communication_bytes_per_device"] <= 142.2e6
    assert counts.data(8)["communication_bytes_per_device"] == pytest.approx(427.7e6, rel=1e-3)
    assert counts.data(8)["state_bytes_per_device"] == 8 * 61_100_840
    dense = 61_100_840 - 2_469_696
    assert counts.hybrid(8, 1024)["state_bytes_per_device"] == 8 * (2_469_696 + dense // 8)

    def sent(kind, devices):
        numbers = counts.data(devices) if kind == "data" else counts.hybrid(devices, 128 * devices)
        return numbers["communication_bytes_per_device"]

    crossing = next(k for k in range(2, 64) if sent("hybrid", k) > sent("data", k))
    assert 24 <= crossing <= 28
    hosts = counts.hybrid(8, 4096, hosts=4)["communication_bytes_per_device"]
    assert sent("hybrid", 8) < hosts < sent("hybrid", 32)


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"figure": "x.pdf"}, "--figure=x.pdf: must be a .png file name"),
        ({"figure": "x.png", "mesh": "2x2"}, "--figure=x.png is supported only for a single host, without --mesh"),
        ({"mesh": "2x3"}, "--devices=4 does not match --mesh=2x3"),
        ({"mesh": "4"}, "--mesh=4: must be HOSTSxLOCAL"),
        ({"devices": 1}, "--devices=1: must be 2 or more with --parallelism"),
        ({"batch_size": 10}, "--batch_size=10: must be given, and divisible by 4 devices"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, named):
    asked = {"devices": 4, "batch_size": 16, "mesh": None, "figure": None} | wrong
    with pytest.raises(UsageError, match=named):
        communication_setup.start(Tiny(10, widths=(4, 8, 8, 8, 8), units=14), hybrid=True, **asked)


@pytest.mark.slow
def test_the_summary_command(start):
    done = start("summary", "--model=cifar_resnet20", "--json")  # By default for color images of 32x32 pixels.
    assert json.loads(done.stdout)["parameters"] == 269_722, done.stderr
    done = start("summary", "--model=segnet_small", "--json")  # By default for images of digit_scenes.
    assert json.loads(done.stdout)["layers"][-1]["shape"] == [64, 64, 11], done.stderr
    done = start("summary", "--model=mlp", "--parallelism=data", "--devices=2", "--batch_size=8", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    done = start("summary", "--model=mlp", "--devices=2")
    assert done.returncode == 2 and "--devices=2 needs --parallelism=data or hybrid" in done.stderr
    counts = communication_setup.Counts(models.create("mlp", 10), (28, 28, 1)).data(2)
    assert found["data"] == counts and found["parameters"] == 235_146
