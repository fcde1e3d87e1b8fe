"""Compares logits with those of torchvision's networks in evaluation mode, for weights and images that
benchmarks/parity.py draws (salt "parity-1"). Values reveal misplaced padding or strides, which shapes do not."""

import pytest

from benchmarks import parity

GOLDEN = {
    "alexnet_owt": {
        "logits_first8": [
            [4.325346, -2.593677, -2.735015, -0.5007317, -6.133398, -2.177141, -15.18795, -3.87048],
            [5.35365, -3.406744, -2.221006, 0.8790168, -6.48698, -2.58725, -13.23315, -3.963999],
        ],
        "logits_mean": [-0.3762175, -0.3402401],
        "logits_std": [5.596882, 5.571191],
    },
    "resnet18": {
        "logits_first8": [
            [42.25828, 169.1771, 18.67146, -33.91844, -101.6597, 133.5396, -26.36493, -123.308],
            [39.35048, 171.2579, 22.0593, -36.68286, -101.1875, 131.664, -24.65704, -125.005],
        ],
        "logits_mean": [-3.614349, -3.572958],
        "logits_std": [104.9773, 105.2589],
    },
}


@pytest.mark.parametrize("name", ["resnet18", pytest.param("alexnet_owt", marks=pytest.mark.slow)])
def test_logits_equal_torchvisions(name):
    assert parity.relative_error(parity.logits(name, "parity-1"), GOLDEN[name]) < 1e-5
