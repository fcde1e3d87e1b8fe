"""Compares this project's input path for large JPEGs with PyTorch's DataLoader and torchvision's transforms, in images
per second:

    python -m benchmarks.loader --peer_python=PYTHON [--pictures=512] [--rounds=3]

PYTHON has torch and torchvision. Both loaders read the same files, JPEGs of ImageNet's usual size that the benchmark
generates, take random resized crops of 224 pixels, mirror them at random, and produce batches of 64 that are ready for
the step: this project's batches are uint8 and normalized later on the device; the peer's are normalized float32. The
loaders alternate; the peer's result is the one with the best number of workers. Prints one JSON object on standard
output.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags as absl_flags

from benchmarks import peer_python, pictures
from data.stream import usable_cores
from experiments.cli import app

PEER_PYTHON = absl_flags.DEFINE_string("peer_python", None, "Python with torch and torchvision.")
PICTURES = absl_flags.DEFINE_integer("pictures", 512, "Number of images to generate.")
ROUNDS = absl_flags.DEFINE_integer("rounds", 3, "Number of measurements of each side.")
PEER = """
import sys, time, torch, torchvision
from torchvision import transforms
folder, batch, side, workers = sys.argv[1], *map(int, sys.argv[2:])
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
chain = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
data = torchvision.datasets.ImageFolder(folder, transforms.Compose([*chain, transforms.Normalize(mean, std)]))
loader = torch.utils.data.DataLoader(
    data, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=workers > 0
)
for timed in (False, True):
    began = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    seconds = time.perf_counter() - began
print(count / seconds)
"""


def peer(root: pathlib.Path, workers: int) -> float:
    arguments = [PEER_PYTHON.value, "-c", PEER, root / "train", pictures.BATCH, pictures.SIDE, workers]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise ChildProcessError(f"the peer failed: {peer_python.last_line(done)}")
    return float(done.stdout)


def main(argv) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; loader takes no positional arguments")
    app.require(PICTURES.value >= pictures.BATCH, f"--pictures={PICTURES.value}: must be {pictures.BATCH} or more")
    if PEER_PYTHON.value:
        peer_python.check(PEER_PYTHON.value, "torch", "torchvision")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        root = pathlib.Path(place)
        pictures.make(root, PICTURES.value)
        size = sum(path.stat().st_size for path in root.rglob("*.jpg")) / PICTURES.value / 1000
        print(f"{PICTURES.value} JPEGs of {size:.0f} kB", file=sys.stderr)
        for _ in range(ROUNDS.value):
            found.setdefault("ours", []).append(pictures.rate(root, PICTURES.value))
            for workers in sorted({0, 1, 2, 4, usable_cores()}) if PEER_PYTHON.value else ():
                found.setdefault(f"peer_{workers}_workers", []).append(peer(root, workers))
    medians = {name: round(float(np.median(values)), 1) for name, values in found.items()}
    best = max((value for name, value in medians.items() if name != "ours"), default=None)
    print(json.dumps(medians | ({"ratio": round(medians["ours"] / best, 3)} if best else {})))
    return 0


if __name__ == "__main__":
    app.run(main)
