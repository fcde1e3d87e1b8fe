"""Training steps beside a peer's: python -m benchmarks.classifiers --peer=torch_step.py --peer_python=PYTHON

The whole update (forward, backward, SGD with momentum, batch-norm statistics) in float32 on an idle machine's CPU,
against the peer's twin of each network: same layers, batch size and count of parameters. Both take turns in one run,
never at the same time. The peer first tries every setting twice (memory layout, threads, compiled or not); those
near the fastest take turns, and the best median is its figure. The input path is the step with the project's batches,
flipped and shifted on the device, over the step with one fixed batch; without --peer only ours is measured.
"""

import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags as absl_flags

import models
from data import augment, batches
from experiments import flags
from models import initializers, layers
from train import classification, loop, optimizers, parallel
from train.state import parameter_count

PEER = absl_flags.DEFINE_string("peer", "", "The peer's script; without it our steps alone are measured.")
PEER_PYTHON = absl_flags.DEFINE_string("peer_python", sys.executable, "Python that runs the peer.")
MODELS = absl_flags.DEFINE_list("models", ["mlp", "vgg_like", "resnet20", "densenet40"], "Networks to measure.")
ROUNDS = absl_flags.DEFINE_integer("rounds", 5, "Turns of each program; medians are over them.", lower_bound=1)
SECONDS = absl_flags.DEFINE_float("seconds", 4.0, "Length of one turn, of five steps at least.", 0.001, 3600.0)
JSON = absl_flags.DEFINE_bool("json", False, "End with one line of JSON: the ratios ours / peer by network.")
IMAGE_SHAPE, CLASSES, EXAMPLES, MEAN, STD = (32, 32, 3), 10, 50_000, (127.5,), (74.0,)  # As CIFAR-10, of noise.
NEAR = 1.3  # A setting slower than this many times the fastest stays out of the turns.


class PeerError(OSError):
    """No comparison with the peer is possible: one line, exit status 1."""


class VGGLike(nn.Module):
    """Three pairs of 3x3 convolutions with max pooling and a hidden layer of 256, [B, H, W, C] -> logits [B, 10]."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        for width in (64, 128, 256):
            for _ in range(2):
                x = layers.relu(layers.Conv(width, (3, 3), padding=((1, 1), (1, 1)))(x))
            x = layers.max_pool(x, 2)
        x = layers.relu(layers.Dense(256, kernel_init=initializers.kaiming_normal)(x.reshape(x.shape[0], -1)))
        return layers.Dense(CLASSES)(x)


NETWORKS: dict[str, tuple[nn.Module, int]] = {  # The peer's name: (our network, batch size).
    "mlp": (models.create("mlp", CLASSES, hidden=(1024, 1024, 1024)), 128),
    "vgg_like": (VGGLike(), 128),
    "resnet20": (models.create("cifar_resnet20", CLASSES), 128),
    "densenet40": (models.create("densenet", CLASSES), 64),
}


def settings(cores: int) -> list[str]:
    """The peer's flags to try; half the cores too, where each is counted twice."""
    forms = itertools.product(("nchw", "channels_last"), sorted({1, max(1, cores // 2), cores}), ("", " --compile"))
    return [f"--layout={layout} --threads={threads}{compiled}" for layout, threads, compiled in forms]


def run_peer(name: str, options: str) -> tuple[int, float]:
    """(parameters, median milliseconds a step) as the peer prints them. Raises PeerError."""
    command = [PEER_PYTHON.value, PEER.value, f"--model={name}", f"--batch_size={NETWORKS[name][1]}", *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if "No module named 'torch'" in last:
        raise PeerError(f"{PEER_PYTHON.value} has no torch: give --peer_python=PYTHON with one that has it")
    if done.returncode:
        raise PeerError(f"the peer failed: {last}: {' '.join(command)}")
    try:
        found = json.loads(done.stdout.splitlines()[-1])
        return int(found["parameters"]), float(found["median_ms"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise PeerError(f"the peer printed no JSON with parameters and median_ms: {' '.join(command)}") from None


def near_fastest(name: str) -> list[str]:
    """The peer's settings that may be its best. Raises PeerError where its network has another parameter count."""
    shapes = jax.eval_shape(NETWORKS[name][0].init, jax.random.key(0), np.zeros((1, *IMAGE_SHAPE), np.float32))
    ours, times = parameter_count(shapes["params"]), dict[str, float]()
    for setting in 2 * settings(os.cpu_count() or 1):  # Twice: what disturbs one must not keep the best one out.
        try:
            parameters, ms = run_peer(name, f"{setting} --steps=3")
        except PeerError as error:
            if "--compile" not in setting:
                raise
            loop.say(f"{name}: without {setting}: {error}")  # It needs a C++ compiler, which not everyone has.
            continue
        if parameters != ours:
            raise PeerError(f"{name} has {ours:,} parameters here and {parameters:,} in the peer")
        times[setting] = min(ms, times.get(setting, ms))
        loop.say(f"{name}: peer {ms:.1f} ms, {setting}")
    return [setting for setting, ms in times.items() if ms <= NEAR * min(times.values())]


def prepare(images, keys):
    """The input path's augmentation of uint8 images; float32 is the network's input already."""
    return augment.flip_shift(augment.normalize(images, MEAN, STD), keys) if images.dtype == np.uint8 else images


def timer(module: nn.Module) -> Callable[[Iterable, int], float]:
    """(batches, steps) -> median milliseconds of the project's jitted step, from the same first state in each call."""
    optimizer = optimizers.create("sgd", lambda step: 0.01, momentum=0.9, nesterov=False, weight_decay=0.0)
    task = classification.create(
        model=module,
        optimizer=optimizer,
        image_shape=IMAGE_SHAPE,
        class_names=tuple("0123456789"),
        train_prepare=prepare,
        eval_prepare=None,
        axis=None,
    )
    first, step = jax.jit(task.init)(jax.random.key(0)), parallel.parallelize(task.train_step, 1, donate=True)

    def ms(source: Iterable, steps: int) -> float:
        state, total, marks, pending = jax.tree.map(jnp.copy, first), None, [], None  # The step's own, to donate.
        for batch in itertools.islice(source, steps + 2):  # The clock starts after two: compiled, pipeline full.
            state, sums = step(state, batch)
            if pending is not None:  # The sums are fetched one behind the dispatch, as train.loop does.
                total = loop.add(total, pending)
                marks.append(time.perf_counter())
            pending = sums
        jax.block_until_ready(state)
        return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(marks))

    return ms


def measure(name: str, chosen: list[str], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Every turn: milliseconds a step of ours and of the peer by setting, and the input path's ratios."""
    ms, batch_size = timer(NETWORKS[name][0]), NETWORKS[name][1]
    images = np.random.default_rng(0).integers(0, 256, (EXAMPLES, *IMAGE_SHAPE), np.uint8)
    source = batches.train_batches(images, np.arange(EXAMPLES, dtype=np.int32) % CLASSES, batch_size=batch_size, seed=0)
    raw = jax.device_put(next(source))
    fixed = itertools.repeat(raw | {"image": augment.normalize(raw["image"], MEAN, STD)})
    steps = max(5, math.ceil(1e3 * seconds / ms(fixed, 3)))
    turns: dict[str, Any] = {"steps": steps, "ours": [], "peer": {}, "input_path": [], "augmentation": []}
    for i in range(rounds):
        for setting in chosen:
            turns["ours"].append(ms(fixed, steps))
            turns["peer"].setdefault(setting, []).append(run_peer(name, f"{setting} --steps={steps}")[1])
        turns["ours"].append(ms(fixed, steps))
        turns["input_path"].append(ms(source, steps) / turns["ours"][-1])
        turns["augmentation"].append(ms(itertools.repeat(raw), steps) / turns["ours"][-1])
        loop.say(f"{name}: round {i + 1} of {rounds}")
    return turns


def summarise(name: str, turns: dict[str, Any]) -> dict[str, Any]:
    """Medians over the turns; the peer's is that of its best setting."""
    ours, path, extra = (statistics.median(turns[key]) for key in ("ours", "input_path", "augmentation"))
    row = {"model": name, "batch_size": NETWORKS[name][1], "ours_ms": ours, "input_path": path, "augmentation": extra}
    if turns["peer"]:
        peer, best = min((statistics.median(found), setting) for setting, found in turns["peer"].items())
        row |= {"peer_ms": peer, "setting": best, "ratio": ours / peer}
    return {key: round(x, 4) if isinstance(x, float) else x for key, x in row.items()} | {"turns": turns}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The lines to print, in ms a step; a ratio below 1 means that ours is faster."""
    lines = [f"{'model':<12} {'batch':>5} {'ours ms':>9} {'peer ms':>9} {'ratio':>6}  peer's best setting"]
    for row in rows:
        peer = "{peer_ms:>9.1f} {ratio:>6.2f}  {setting}" if "ratio" in row else f"{'-':>9} {'-':>6}  -"
        lines.append(("{model:<12} {batch_size:>5} {ours_ms:>9.1f} " + peer).format(**row))
    path = "input path {model}: {input_path:.3f} times the step on one fixed batch (augmentation: {augmentation:.3f})"
    return lines + [path.format(**row) for row in rows]


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; classifiers takes flags alone")
    for name in MODELS.value or [""]:
        if name not in NETWORKS:
            raise flags.UsageError(f"--models={name}: accepted are {', '.join(NETWORKS)}")
    if PEER.value and not pathlib.Path(PEER.value).is_file():
        raise PeerError(f"--peer={PEER.value}: no such file")
    jax.config.update("jax_platforms", "cpu")
    flags.start_cache()
    chosen = {name: near_fastest(name) if PEER.value else [] for name in MODELS.value}
    rows = []
    for name in chosen:
        rows.append(summarise(name, measure(name, chosen[name], rounds=ROUNDS.value, seconds=SECONDS.value)))
        loop.say(json.dumps(rows[-1]))  # Every turn, after each network: a long run that is cut short has shown it.
    print(*table(rows), sep="\n")
    if JSON.value:
        print(json.dumps({"ratios": {row["model"]: row["ratio"] for row in rows if "ratio" in row}}))
    return 0


if __name__ == "__main__":
    flags.run(main)
