"""Prints a network's layers: python -m experiments.summary --model=cnn --image_size=28 [--json]

With --parallelism=hybrid --devices=8 --batch_size=1024 it also prints the bytes each device sends per step and stores.
"""

import dataclasses
import json
import re

from experiments.cli import app, validation
from experiments.cli.app import require
from experiments.cli.config import NetworkConfig
from experiments.cli.options import option


@dataclasses.dataclass(frozen=True)
class SummaryConfig(NetworkConfig):
    """Summary"""

    image_size: str | None = option(
        None, "Image size in pixels, SIDE or HEIGHTxWIDTH; default: the network's native size."
    )
    channels: int | None = option(None, "Image channels; default: the network's native number.", "[1, inf)")
    num_classes: int | None = option(None, "Number of classes; default: the network's native number.", "[1, inf)")
    json: bool = option(False, "Print one JSON object instead of a table.")
    parallelism: str | None = option(
        None,
        "Also print the bytes that a device sends per step and stores; hybrid: with both kinds of parallelism.",
        choices=("data", "hybrid"),
    )
    devices: int | None = option(None, "parallelism: number of devices, 2 or more.")
    batch_size: int | None = option(None, "parallelism: global batch size.")
    mesh: str | None = option(None, "hybrid: HOSTSxLOCAL, such as 4x8; the dense layers are sharded within each host.")
    figure: str | None = option(None, "hybrid: PNG file for a plot of the bytes over the number of devices.", path=True)


def main(config: SummaryConfig) -> int:
    validation.check_summary(config)
    import models
    from experiments.cli.compilation_cache import start_cache
    from experiments.setup import classification, communication
    from models import dcgan, summary

    start_cache()  # Tracing compiles kernels.
    spec = models.spec(config.model)
    height, width, channels = spec.image_shape
    channels, classes = config.channels or channels, config.num_classes or spec.num_classes
    size = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", config.image_size or f"{height}x{width}")
    if size is None:
        accepted = "SIDE, such as 224, or HEIGHTxWIDTH, up to 99999"
        raise app.UsageError(f"--image_size={config.image_size}: must be {accepted}")
    image_shape = (int(size[1]), int(size[2] or size[1]), channels)
    given = {name: getattr(config, name) for name in ("devices", "batch_size", "mesh", "figure")}
    for name, value in given.items():
        require(value is None or bool(config.parallelism), f"--{name}={value} needs --parallelism=data or hybrid")
    unused = f"--num_classes={config.num_classes} has no effect with --model={config.model}, which uses no classes"
    require(config.num_classes is None or spec.task not in ("generation", "reconstruction"), unused)
    if spec.task == "reconstruction":
        model = models.create(config.model, classes, shape=image_shape, **classification.given_options(config))
    elif spec.task == "generation":
        square = image_shape[0] == image_shape[1] and image_shape[0] in dcgan.SIZES
        require(square, f"--image_size={config.image_size}: must be 32 or 64")
        classification.given_options(config)  # Rejects any network option, because the model has none.
        model = models.create(config.model, classes, size=image_shape[0], channels=channels)
    else:
        model = classification.network(config, classes)
    plan = None
    if config.parallelism:
        plan = communication.start(model, hybrid=config.parallelism == "hybrid", **given)
    layers = summary.layers(model, image_shape)
    total = {name: sum(getattr(x, name) for x in layers) for name in ("parameters", "multiply_adds", "units")}
    bytes_of = communication.report(model, image_shape, plan) if plan else {}
    if config.json:
        print(json.dumps(total | bytes_of | {"layers": [x._asdict() for x in layers]}))
        return 0
    print(f"{'layer':<28} {'output':>16} {'units':>12} {'parameters':>14} {'multiply-adds':>16}")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        numbers = f"{layer.units:>12,} {layer.parameters:>14,} {layer.multiply_adds:>16,}"
        print(f"{layer.name:<28} {shape:>16} {numbers}")
    numbers = f"{total['units']:>12,} {total['parameters']:>14,} {total['multiply_adds']:>16,}"
    print(f"{'total':<28} {'':>16} {numbers}")
    for kind, bytes_by in bytes_of.items():
        for what, value in bytes_by.items():
            named = what.replace("_bytes", "").replace("_", " ")
            print(f"{kind} parallelism, {named}: {value / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    app.run(main, SummaryConfig)
