"""Eight simulated CPU devices, and rank promotion raises."""

import sys

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS(sys.argv[:1], known_only=True)


@pytest.fixture(scope="session")
def mnist5k():
    import data

    return data.load("mnist5k")
