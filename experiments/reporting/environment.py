"""The environment that affects a run's results: packages, processor, CPU kernels, variables and source code."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FACTS = ("processor", "devices", "cpu_kernels", "commit", "dirty", "diff_sha256")
GROUPS = {"versions": "", "packages": "", "environment": "variable ", "data_digests": "data of split "}


def processor() -> str:
    """The processor's name and number of cores."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _git(folder: pathlib.Path, *arguments: str) -> bytes | None:
    """The output of a git command in a folder, or None if it fails or git is not installed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=own, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def source(file: pathlib.Path = pathlib.Path(__file__)) -> dict[str, Any]:
    """The commit of the git checkout that tracks `file`, whether tracked files differ from it, and the SHA-256 of the
    diff; None values if no checkout tracks the file, such as an installed copy inside another project's checkout."""
    tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    commit = _git(file.parent, "rev-parse", "HEAD") if tracked else None
    diff = _git(file.parent, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") if commit else None
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": None if diff is None else bool(diff),
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }


def describe() -> dict[str, Any]:
    """The whole environment, for run.json."""
    from models.cpu_kernels.ops import use_cpu_kernels

    texts = [found.metadata for found in importlib.metadata.distributions()]  # Parsed on access.
    packages = {text["Name"]: text["Version"] for text in texts if text["Name"]}
    return {
        "versions": {"python": platform.python_version(), **{name: packages.get(name) for name in VERSIONS}},
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "processor": processor(),
        "cpu_kernels": use_cpu_kernels(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("XLA_", "JAX_"))},
        **source(),
    }


def differences(run: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Lines that describe how the run.json `here` differs from that of `run` in environment, devices and data. Entries
    that either file lacks, or that are damaged, are skipped."""

    def facts(record: dict[str, Any], key: str) -> dict[str, Any]:
        value = record[key]
        return {f"{GROUPS[key]}{name}": fact for name, fact in value.items()} if key in GROUPS else {key: value}

    def recorded(record: dict[str, Any], key: str) -> bool:
        return key in record and (key not in GROUPS or isinstance(record[key], dict))

    pairs: dict[str, tuple[Any, Any]] = {}
    for key in (key for key in (*FACTS, *GROUPS) if recorded(run, key) and recorded(here, key)):
        before, now = facts(run, key), facts(here, key)
        pairs |= {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
    shown = {None: "none", True: "yes", False: "no"}
    return [
        f"{name}: {shown.get(before, before)} (run), {shown.get(now, now)} (here)"
        for name, (before, now) in pairs.items()
        if before != now
    ]
