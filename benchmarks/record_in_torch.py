"""The recipe of a CIFAR-10 speed record in PyTorch, for benchmarks.record, which starts it with a Python with torch.

    PYTHON benchmarks/record_in_torch.py --data=FILE.npz --seed=0 --epochs=9.9 --threads=2

The network and its training are those of Jordan 2024, "94% on CIFAR-10 in 3.29 seconds" (airbench94), in float32.
FILE.npz has train_images and test_images, uint8 [N, H, W, C], and train_labels and test_labels, [N]. Prints a line for
each epoch on standard error and one line of JSON: {"accuracy", "accuracy_one_view", "seconds", "parameters", "steps"}.
"""

import argparse
import json
import math
import signal
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTHS = (64, 256, 256)
BATCH_SIZE, MOMENTUM, LABEL_SMOOTHING = 1024, 0.85, 0.2
# The source divides its rates by the step length of Nesterov's momentum for constant gradients, 1 + 1 / (1 - momentum),
# and states them per 1,024 examples of a summed loss. Weight decay is stated independently of the learning rate.
STEP_LENGTH = 1024 * (1 + 1 / (1 - MOMENTUM))
LEARNING_RATE = 11.5 / STEP_LENGTH
DECAY_PER_STEP = 0.0153 * BATCH_SIZE / STEP_LENGTH
BIAS_FACTOR = 64.0  # Learning rate of the batch norm biases relative to the other parameters.
WHITENING_EPSILON, WHITENING_IMAGES, WHITENING_BIAS_EPOCHS = 5e-4, 5000, 3
SHIFT = 2
LOOKAHEAD_EVERY = 5


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding="same", bias=False)
        for conv in (self.conv1, self.conv2):  # The other filters keep PyTorch's initialization.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])
        # PyTorch's momentum is 1 - the source's momentum of 0.6. The scales are not trained.
        self.norm1, self.norm2 = (nn.BatchNorm2d(after, eps=1e-12, momentum=0.4) for _ in range(2))
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad = False

    def forward(self, x):
        x = functional.gelu(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        return functional.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    """Normalized images [B, C, H, W] -> logits [B, classes]; the whitening filters are `whitening`, [8 C, C, 2, 2]."""

    def __init__(self, whitening: torch.Tensor, classes: int) -> None:
        super().__init__()
        filters, channels = whitening.shape[:2]
        self.whiten = nn.Conv2d(channels, filters, 2)
        self.whiten.weight = nn.Parameter(whitening, requires_grad=False)
        nn.init.zeros_(self.whiten.bias)
        widths = (filters, *WIDTHS)
        self.blocks = nn.Sequential(*(Block(*pair) for pair in zip(widths, widths[1:], strict=False)))
        self.head = nn.Linear(WIDTHS[-1], classes, bias=False)

    def forward(self, x):
        x = self.blocks(functional.gelu(self.whiten(x)))
        return self.head(x.amax((2, 3))) / 9  # The source's 3x3 pooling is global for its images of 32 pixels.


def whitening_filters(images: torch.Tensor) -> torch.Tensor:
    """Principal components of 2x2 patches of normalized images, scaled to unit variance, and their negatives."""
    channels = images.shape[1]
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * channels)
    variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (components / torch.sqrt(variances + WHITENING_EPSILON)).T.flip(0).reshape(-1, channels, 2, 2)
    return torch.cat([filters, -filters]).contiguous()


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image shifted at random by up to SHIFT pixels, with reflection padding."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (SHIFT,) * 4, "reflect")
    offsets, result = torch.randint(0, 2 * SHIFT + 1, (count, 2)), torch.empty_like(images)
    for top in range(2 * SHIFT + 1):
        for left in range(2 * SHIFT + 1):
            rows = (offsets == torch.tensor([top, left])).all(1)
            result[rows] = padded[rows, :, top : top + height, left : left + width]
    return result


def learning_rate_factor(step: int, steps: int) -> float:
    """Rises linearly from 0.2 to 1 in the first 23 % of the steps, then falls linearly to 0.07."""
    warmup = int(0.23 * steps)
    if step < warmup:
        return 0.2 + 0.8 * step / warmup
    return 1 - 0.93 * (step - warmup) / (steps - warmup)


def optimizer_of(network: Network) -> torch.optim.Optimizer:
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    biases = [value for name, value in trained.items() if "norm" in name]
    others = [value for name, value in trained.items() if "norm" not in name]
    groups = [
        {"params": values, "lr": rate, "weight_decay": DECAY_PER_STEP / rate}
        for values, rate in ((biases, BIAS_FACTOR * LEARNING_RATE), (others, LEARNING_RATE))
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


@torch.no_grad()
def look_ahead(average: dict[str, torch.Tensor], network: Network, decay: float) -> None:
    """Moves the average towards the network by 1 - decay, and the network to the average; batch statistics, too."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
            value.copy_(average[name])


@torch.no_grad()
def accuracy(network: Network, images: torch.Tensor, labels: torch.Tensor, *, views: bool) -> float:
    """With `views`, averages the logits of six views: the image, and the image shifted by one pixel up and left or down
    and right, each also mirrored. The unshifted ones have half of the weight."""
    network.eval()
    correct = 0
    for batch, truth in zip(images.split(1000), labels.split(1000), strict=True):
        if views:
            height, width = batch.shape[2:]
            padded = functional.pad(batch, (1,) * 4, "reflect")
            weighted = [(0.5, batch)] + [(0.25, padded[:, :, i : i + height, i : i + width]) for i in (0, 2)]
            logits = sum(weight * (network(view) + network(view.flip(-1))) / 2 for weight, view in weighted)
        else:
            logits = network(batch)
        correct += int((logits.argmax(1) == truth).sum())
    network.train()
    return correct / len(labels)


def train(data: dict[str, torch.Tensor], *, epochs: float) -> dict[str, float]:
    images, labels = data["train_images"], data["train_labels"]
    steps_per_epoch = len(labels) // BATCH_SIZE
    steps = math.ceil(epochs * steps_per_epoch)
    network = Network(whitening_filters(images[:WHITENING_IMAGES]), int(labels.max()) + 1)
    network = network.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(network)
    rates = [group["lr"] for group in optimizer.param_groups]
    average = {name: value.clone() for name, value in network.state_dict().items()}
    mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    began, step = time.perf_counter(), 0
    for epoch in range(math.ceil(epochs)):
        network.whiten.bias.requires_grad = epoch < WHITENING_BIAS_EPOCHS
        # All images are mirrored in every other epoch, so that two epochs show both forms of each image.
        seen = shifted(images).flip(-1) if epoch % 2 else shifted(images)
        for rows in torch.randperm(len(labels)).split(BATCH_SIZE)[:steps_per_epoch]:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate_factor(step, steps)
            batch = seen[rows].contiguous(memory_format=torch.channels_last)
            logits = network(batch)
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING, reduction="sum")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            if step % LOOKAHEAD_EVERY == 0:
                look_ahead(average, network, 0.95**5 * (step / steps) ** 3)
            if step == steps:
                look_ahead(average, network, 1.0)
                break
        seconds = time.perf_counter() - began
        line = f"epoch {epoch + 1}  step {step}/{steps}  loss {loss.item() / len(rows):.3f}  {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)
    tests = data["test_images"], data["test_labels"]
    return {
        "accuracy": accuracy(network, *tests, views=True),
        "accuracy_one_view": accuracy(network, *tests, views=False),
        "seconds": round(time.perf_counter() - began, 1),
        "parameters": sum(value.numel() for value in network.parameters()),
        "steps": steps,
    }


def load(path: str) -> dict[str, torch.Tensor]:
    """Images are normalized with the mean and standard deviation of the training images' channels."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    mean, std = (getattr(arrays["train_images"], kind)((0, 1, 2)) for kind in ("mean", "std"))
    std = np.where(std > 0, std, 1)
    found = {}
    for split in ("train", "test"):
        images = ((arrays[f"{split}_images"] - mean) / std).astype(np.float32)
        found[f"{split}_images"] = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        found[f"{split}_labels"] = torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--epochs", type=float)
    for name in ("seed", "threads"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # benchmarks.record reports the interruption.
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    print(json.dumps(train(load(options.data), epochs=options.epochs)))


if __name__ == "__main__":
    main()
