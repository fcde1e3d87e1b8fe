"""The layers of a network: python -m experiments.summary --model=cnn --image_size=28 [--json]

With --parallelism=hybrid --devices=8 --batch_size=1024 also the bytes that a device sends and holds in a step.
"""

import json
import re

from absl import flags as absl_flags

from experiments.cli import flags

flags.define_model_flags()
IMAGE_SIZE = absl_flags.DEFINE_string(
    "image_size", None, "Pixels, SIDE or HEIGHTxWIDTH; default those of the pictures that the network is meant for."
)
CHANNELS = absl_flags.DEFINE_integer("channels", None, "Channels; default those of the same pictures.")
CLASSES = absl_flags.DEFINE_integer("num_classes", None, "Classes; default those of the same pictures.")
JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")
PARALLELISM = absl_flags.DEFINE_enum(
    "parallelism", None, ["data", "hybrid"], "Add what a device sends and holds, for data parallelism or for both."
)
DEVICES = absl_flags.DEFINE_integer("devices", None, "parallelism: devices, 2 or more.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", None, "parallelism: images a step, over all devices.")
MESH = absl_flags.DEFINE_string("mesh", None, "hybrid: HOSTSxLOCAL, dense layers divided inside each host, as 4x8.")
FIGURE = absl_flags.DEFINE_string("figure", None, "hybrid: PNG file for a figure of the bytes against the devices.")


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; summary takes flags alone")
    import models
    from experiments.setup import classification, communication
    from models import dcgan, summary

    config = flags.values()
    flags.start_cache()  # The kernels that tracing needs are kept there.
    try:
        spec = models.spec(config["model"])
    except ValueError as error:
        raise flags.UsageError(str(error)) from None
    height, width, channels = spec.image_shape
    channels = CHANNELS.value if CHANNELS.value is not None else channels
    classes = CLASSES.value if CLASSES.value is not None else spec.num_classes
    for name, value in (("channels", channels), ("num_classes", classes)):
        flags.require(value > 0, f"--{name}={value}: must be more than 0")
    size = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", IMAGE_SIZE.value or f"{height}x{width}")
    if size is None:
        raise flags.UsageError(f"--image_size={IMAGE_SIZE.value}: accepted are SIDE, as 224, and HEIGHTxWIDTH")
    image_shape = (int(size[1]), int(size[2] or size[1]), channels)
    asked = {"devices": DEVICES.value, "batch_size": BATCH_SIZE.value, "mesh": MESH.value, "figure": FIGURE.value}
    for option, given in asked.items():
        flags.require(
            given is None or bool(PARALLELISM.value), f"--{option}={given} needs --parallelism=data or hybrid"
        )
    plan = None
    try:
        if spec.task == "generation":
            square = image_shape[0] == image_shape[1] and image_shape[0] in dcgan.SIZES
            flags.require(square, f"--image_size={IMAGE_SIZE.value}: accepted are 32 and 64")
            model = models.create(config["model"], classes, size=image_shape[0], channels=channels)
        else:
            model = classification.network(config, classes, None)
        if PARALLELISM.value:
            plan = communication.start(model, hybrid=PARALLELISM.value == "hybrid", **asked)
        layers = summary.layers(model, image_shape)
    except ValueError as error:
        raise flags.UsageError(str(error)) from None
    total = {name: sum(getattr(x, name) for x in layers) for name in ("parameters", "multiply_adds", "units")}
    bytes_of = communication.report(model, image_shape, plan) if plan else {}
    if JSON.value:
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
            print(f"{kind} {what.replace('_', ' ')}: {value / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    flags.run(main)
