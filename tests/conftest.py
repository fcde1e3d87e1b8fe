"""Eight simulated CPU devices, and rank promotion raises."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parent.parent
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Half of the suite's time was LLVM polishing programs that run once; the numbers do not depend on it.
jax.config.update("jax_disable_most_optimizations", True)
flags.FLAGS(sys.argv[:1], known_only=True)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # As in a shell's background, where no child could be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def mnist5k():
    import data

    return data.load("mnist5k")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    names = os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    names["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    names.pop("XLA_FLAGS", None)
    return names


@pytest.fixture(scope="session", autouse=True)
def library(environment):
    """The C kernels are compiled once, for this process and for those that tests start; XLA's programs always."""
    from experiments import compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
        compiled.start_cache()
    jax.config.update("jax_enable_compilation_cache", False)
    return jax.config.jax_compilation_cache_dir


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("somewhere")

    def run(name, *arguments, limit=None):
        """experiments.NAME as a user starts it; `limit` in KiB on the files that it writes."""
        command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
        if limit:
            command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "-", *command]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    return run
