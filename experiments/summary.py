"""The layers of a network: python -m experiments.summary --model=cnn --image_size=28 [--json]"""

import json

from absl import flags as absl_flags

from experiments import flags

flags.define_model_flags()
IMAGE_SIZE = absl_flags.DEFINE_integer("image_size", 28, "Height and width of the input in pixels.")
CHANNELS = absl_flags.DEFINE_integer("channels", 1, "Channels of the input: 1 or 3.")
CLASSES = absl_flags.DEFINE_integer("num_classes", None, "Classes; default 10, or 2 for logistic.")
JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; summary takes flags alone")
    from experiments import build
    from models import table

    config = flags.values()
    classes = CLASSES.value if CLASSES.value is not None else 2 if config["model"] == "logistic" else 10
    for name, value in (("image_size", IMAGE_SIZE.value), ("channels", CHANNELS.value), ("num_classes", classes)):
        flags.require(value > 0, f"--{name}={value}: must be more than 0")
    try:
        model = build.network(config, classes, None)
        layers = table.layers(model, (IMAGE_SIZE.value, IMAGE_SIZE.value, CHANNELS.value))
    except ValueError as error:
        raise flags.UsageError(str(error)) from None
    total = {"parameters": sum(x.parameters for x in layers), "multiply_adds": sum(x.multiply_adds for x in layers)}
    if JSON.value:
        print(json.dumps(total | {"layers": [x._asdict() for x in layers]}))
        return 0
    print(f"{'layer':<28} {'output':>16} {'parameters':>14} {'multiply-adds':>16}")
    for layer in layers:
        shape = "x".join(map(str, layer.shape))
        print(f"{layer.name:<28} {shape:>16} {layer.parameters:>14,} {layer.multiply_adds:>16,}")
    print(f"{'total':<28} {'':>16} {total['parameters']:>14,} {total['multiply_adds']:>16,}")
    return 0


if __name__ == "__main__":
    flags.run(main)
