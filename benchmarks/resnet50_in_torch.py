"""The training step of ResNet-50 in PyTorch on a GPU, for benchmarks/accelerator.sh:

    PYTHON benchmarks/resnet50_in_torch.py [--batch_size=512] [--steps=30] [--device=cuda]

PYTHON has torch and torchvision. Measures torchvision's network without compilation, in memory format channels_last, on
noise images, with SGD with momentum: in bfloat16 (autocast) and in float32 with TensorFloat-32, as in accelerator.py.
Prints one JSON object for each dtype: {"model", "dtype", "batch_size", "images_per_second", "step_ms"}.
"""

import argparse
import contextlib
import json
import statistics
import time

import torch
import torchvision
from torch.nn import functional

ROUNDS = 3


def measure(dtype: str, options: argparse.Namespace) -> dict:
    network = torchvision.models.resnet50().to(options.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(options.batch_size, 3, options.side, options.side, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch_size, device=options.device) % 1000
    lower = torch.autocast(options.device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with lower:
                loss = functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()  # Waits for the device.
        return (time.perf_counter() - began) / steps

    run(3)
    seconds = statistics.median(run(options.steps) for _ in range(ROUNDS))
    row = {"model": "resnet50 (PyTorch)", "dtype": dtype, "batch_size": options.batch_size}
    return row | {"images_per_second": round(options.batch_size / seconds, 1), "step_ms": round(1e3 * seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    for dtype in ("bfloat16", "float32"):
        print(json.dumps(measure(dtype, options)), flush=True)


if __name__ == "__main__":
    main()
