"""Removes environment variables of users, launchers and git hooks that affect the tests, and selects the CPU. Must be
imported before jax."""

import os

for name in list(os.environ):
    launched = name.startswith(("GIT_", "JAX_", "SLURM_", "TPU_")) or name in ("XLA_FLAGS", "JOB_COMPLETION_INDEX")
    if launched or name == "PYTHONWARNINGS" or name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ["JAX_PLATFORMS"] = "cpu"  # Also on a machine with a GPU.
