"""Removes environment variables of users and launchers that affect the tests. Must be imported before jax."""

import os

for name in list(os.environ):
    launched = name.startswith(("JAX_", "SLURM_", "TPU_")) or name in ("XLA_FLAGS", "JOB_COMPLETION_INDEX")
    if launched or name == "PYTHONWARNINGS" or name.lower().endswith("_proxy"):
        del os.environ[name]
