"""The DCGAN step in PyTorch, for benchmarks.gan, which starts it with a Python that has torch.

    PYTHON benchmarks/dcgan_in_torch.py --model=dcgan32 --batch_size=64 --layout=channels_last --threads=2 --steps=5

A step is the same as in PyTorch's dcgan example: an Adam update of the discriminator on a real and a generated batch,
then an Adam update of the generator against the updated discriminator. Prints one line of JSON: {"parameters",
"median_ms"}.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional


def generator(size: int, channels: int) -> nn.Sequential:
    widths = [64 * 2**i for i in reversed(range(size.bit_length() - 3))]
    layers = [nn.ConvTranspose2d(100, widths[0], 4, 1, 0, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(True)]
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(size: int, channels: int) -> nn.Sequential:
    widths = [64 * 2**i for i in range(size.bit_length() - 3)]
    layers = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False), nn.Flatten(0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["dcgan32", "dcgan64"])
    parser.add_argument("--layout", choices=["nchw", "channels_last"])
    parser.add_argument("--compile", action="store_true")
    for name in ("batch_size", "threads", "steps"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size, channels = (32, 1) if options.model == "dcgan32" else (64, 3)
    form = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    makes, judges = (make(size, channels).to(memory_format=form) for make in (generator, discriminator))
    by_generator, by_discriminator = (
        torch.optim.Adam(network.parameters(), lr=0.0002, betas=(0.5, 0.999)) for network in (makes, judges)
    )
    real = torch.rand(options.batch_size, channels, size, size).contiguous(memory_format=form)
    run_makes, run_judges = (torch.compile(f) if options.compile else f for f in (makes, judges))

    def step() -> None:
        by_discriminator.zero_grad()
        on_real = run_judges(real)
        fake = run_makes(torch.randn(options.batch_size, 100, 1, 1))
        on_fake = run_judges(fake.detach())
        (functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()).backward()
        by_discriminator.step()
        by_generator.zero_grad()
        functional.softplus(-run_judges(fake)).mean().backward()
        by_generator.step()

    times = []
    for _ in range(options.steps + 2):  # The first two steps compile and warm up.
        began = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - began))
    count = sum(p.numel() for network in (makes, judges) for p in network.parameters())
    print(json.dumps({"parameters": count, "median_ms": statistics.median(times[2:])}))


if __name__ == "__main__":
    main()
