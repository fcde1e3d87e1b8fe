"""Runs driver.c, the tests of the C kernels, under sanitizers and on other instruction sets: make kernels-check

Each configuration compiles the driver with the kernels, runs it and prints one line. The compilers are gcc, whose
sanitizers find out-of-bounds accesses, leaks, undefined behavior and data races, and zig, which also compiles the
kernels for training. With --quick, only the first configuration runs, on fewer shapes.
"""

import argparse
import concurrent.futures
import functools
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax

from models.cpu_kernels import build

HERE = pathlib.Path(__file__).parent
COMMON = ("-std=gnu11", "-ffp-contract=fast", "-pthread", "-I", str(build.SOURCE.parent), "-I", jax.ffi.include_dir())
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter")
WARNINGS += ("-Wno-missing-field-initializers",)
# KEPT=0: no memory is kept between calls, so each call gets exactly the size it requested and an overrun of one byte is
# detected.
ADDRESS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DKEPT=0")
THREAD = ("-O1", "-g", "-fsanitize=thread", "-DSPIN_NANOSECONDS=0")  # Every wait sleeps.
ZIG = (sys.executable, "-P", "-m", "ziglang", "cc")
NATIVE = "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"
EMULATOR = "" if platform.machine() in ("aarch64", "arm64") else "qemu-aarch64"


class Configuration(NamedTuple):
    name: str
    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    cases: int  # Number of random shapes per kernel.
    emulator: str = ""


CONFIGURATIONS = (
    Configuration("gcc, this processor, address and undefined", ("gcc",), (*WARNINGS, *ADDRESS, NATIVE), 600),
    Configuration(  # Early, because zig first compiles its own libraries for this target.
        "zig, aarch64",
        ZIG,
        ("-target", "aarch64-linux-musl", "-static", "-O2", "-fsanitize=undefined"),
        200,
        EMULATOR,
    ),
    Configuration("gcc, this processor, threads", ("gcc",), (*WARNINGS, *THREAD, NATIVE), 200),
    Configuration("gcc, AVX2, address and undefined", ("gcc",), (*WARNINGS, *ADDRESS, "-march=haswell"), 600),
    Configuration("gcc, AVX2, threads", ("gcc",), (*WARNINGS, *THREAD, "-march=haswell"), 200),
    Configuration("zig, this processor, as compiled for training", ZIG, ("-O3", NATIVE), 600),
)


def _lacks_libraries(one: Configuration) -> bool:
    """Whether the linker does not find the libraries of the configuration's flags. Other errors are failures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*one.compiler, *one.flags, "-x", "c", "-", "-o", os.path.join(folder, "empty")]
        done = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True)
        return done.returncode != 0 and b"cannot find" in done.stderr


@functools.cache
def _fixed_addresses() -> list[str]:
    """The start of a command that runs a program without address randomization; [] if that is not allowed, as in some
    containers."""
    start = ["setarch", "-R"]
    allowed = shutil.which("setarch") and subprocess.run([*start, "true"], capture_output=True).returncode == 0
    return start if allowed else []


def _missing(one: Configuration) -> str:
    """Returns why a configuration can't run on this machine; "" if it can."""
    if not shutil.which(one.compiler[0]):
        return f"no {one.compiler[0]}"
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if any(flag.startswith("-fsanitize") for flag in one.flags) and _lacks_libraries(one):
        return f"{one.compiler[0]} has no libraries for the sanitizers"
    if "-march=haswell" in one.flags and not (cpuinfo.exists() and " avx2 " in cpuinfo.read_text()):
        return "this processor has no AVX2"
    return ""


def run(one: Configuration, cases: int) -> tuple[str, str]:
    """Returns (outcome, details); the outcome is "passed", "failed" or "skipped"."""
    if reason := _missing(one):
        return "skipped", reason
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "driver")
        command = [*one.compiler, *COMMON, *one.flags, str(HERE / "driver.c"), "-o", program, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            return "failed", f"compilation failed\n{done.stderr[-4000:]}"
        if one.emulator and not shutil.which(one.emulator):
            return "skipped", f"compiled, but running it needs {one.emulator} (Debian: apt install qemu-user)"
        # The thread sanitizer of gcc 12 fails if address randomization has more than 28 bits; setarch -R disables it.
        before = [one.emulator] if one.emulator else _fixed_addresses()
        command = [*before, program, str(cases)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or done.stderr:
        return "failed", f"exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
    return "passed", f"{done.stdout.strip()}, {time.monotonic() - begin:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the first configuration, on fewer shapes")
    quick = parser.parse_args().quick
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        chosen = CONFIGURATIONS[: 1 if quick else None]
        outcomes = pool.map(lambda one: run(one, 40 if quick else one.cases), chosen)
        for one, (outcome, text) in zip(chosen, outcomes, strict=True):
            print(f"{one.name}: {outcome}: {text}", flush=True)
            failed += outcome == "failed"
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
