"""Configures JAX for the tests (eight simulated CPU devices, no rank promotion) and defines their fixtures."""

import fcntl
import functools
import itertools
import os
import signal
import sys

import browser
import clean_environment  # noqa: F401
import commands
import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# LLVM's optimizations took half of the suite's time, for programs that run once. Results do not depend on them.
jax.config.update("jax_disable_most_optimizations", True)
flags.FLAGS(sys.argv[:1], known_only=True)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # A background job, whose subprocesses would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def optimized_programs():
    """Programs are compiled with optimizations, for tests that train for many steps."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def mnist5k():
    import data

    return data.load("mnist5k")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder shared by all pytest-xdist workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def environment(shared_folder):
    """The environment variables of commands, with a new cache folder shared by the whole suite."""
    names = os.environ | {"XDG_CACHE_HOME": str(shared_folder / "cache"), "PYTHONPATH": str(commands.ROOT)}
    names[commands.OPTIMIZATION] = "1"
    names["ZIG_GLOBAL_CACHE_DIR"] = str(shared_folder / "zig")  # The compiler's own libraries, compiled once.
    names |= {"HOME": str(shared_folder / "home"), "MPLCONFIGDIR": str(shared_folder / "matplotlib")}
    return names


@pytest.fixture(scope="session")
def without_torch(environment, tmp_path_factory):
    """An environment for commands in which importing torch fails, whether or not it is installed."""
    place = tmp_path_factory.mktemp("without_torch")
    (place / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    return environment | {"PYTHONPATH": os.pathsep.join((str(place), environment["PYTHONPATH"]))}


@pytest.fixture(scope="session", autouse=True)
def library(environment, shared_folder):
    """Compiles the C kernels once, for all processes of the suite."""
    from experiments.cli import compilation_cache
    from models.cpu_kernels import ffi

    os.environ |= {
        name: environment[name] for name in ("HOME", "XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR", "MPLCONFIGDIR")
    }
    compilation_cache.start_cache()
    with open(shared_folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ffi.available(), "the tests need the CPU kernels; is --basetemp or /tmp mounted without exec?"


@pytest.fixture(scope="session")
def launch(environment, tmp_path_factory):
    """launch(NAME, *arguments) starts experiments.NAME as a user does, in a temporary folder, and returns the running
    Command. NAME may also be the source of a program. `file_limit` is the maximum size in bytes of a file that the
    command writes; `signal_at` is a commands.SignalAt."""
    folder, outputs = tmp_path_factory.mktemp("somewhere"), tmp_path_factory.mktemp("outputs")
    numbers = itertools.count()
    commands.start_server(environment)

    def run(name, *arguments, package="experiments", folder=folder, environment=environment, **options):
        output = outputs / str(next(numbers))
        output.mkdir()
        module = name if "\n" in name else f"{package}.{name}"
        return commands.Command(module, *arguments, folder=folder, environment=environment, output=output, **options)

    return run


@pytest.fixture(scope="session")
def start(launch):
    """start(NAME, *arguments) runs experiments.NAME to completion and returns a commands.Done."""
    return lambda *arguments, **options: launch(*arguments, **options).wait()


@pytest.fixture(scope="session")
def chromium():
    with browser.started() as driver:
        yield driver


@pytest.fixture
def open_page(chromium, tmp_path):
    """open_page(HTML, width=, height=, dark=) opens the page in headless Chromium and returns the selenium driver. At
    the end of the test, the page must have logged no errors."""
    yield functools.partial(browser.open_page, chromium, tmp_path)
    browser.check_console(chromium)
