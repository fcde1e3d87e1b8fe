"""A workdir from published weights: python -m experiments.import_weights --model=resnet18 --weights=FILE --workdir=W"""

import json

from absl import flags as absl_flags

from experiments.cli import flags

flags.define_run_flags()
absl_flags.FLAGS.set_default("dataset", "folder")
absl_flags.FLAGS.set_default("image_size", 224)
absl_flags.FLAGS.set_default("momentum", 0.0)  # No momentum has been gathered: none is stored.
WEIGHTS = absl_flags.DEFINE_string("weights", None, "File with the weights: .safetensors, or torch's .pth.")
# The constants that the peers' networks were trained with (torchvision's documentation), on the scale 0 to 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def main(argv) -> int:
    if len(argv) > 1:
        raise flags.UsageError(f"unexpected argument {argv[1]!r}; import_weights takes flags alone")
    config = flags.values()
    if not config["workdir"] or not WEIGHTS.value:
        raise flags.UsageError("--workdir=FOLDER and --weights=FILE are needed")
    if config["v1_5"] is False:
        raise flags.UsageError("--nov1_5: the peers' weights are for v1.5, with the stride in the 3x3 convolution")
    import jax
    import numpy as np

    import models
    from data import weights
    from data.dataset import DataError, Dataset
    from experiments.reporting import run_record
    from experiments.setup import classification, preprocessing
    from train import checkpoint, workdir

    size = config["image_size"]
    flags.require(size is not None and size > 0, f"--image_size={size}: must be more than 0")
    flags.start_cache()
    entries = weights.read(WEIGHTS.value)
    try:
        model, variables = models.from_torchvision(config["model"], entries, image_size=size)
    except ValueError as error:
        if config["model"] not in models.MODELS or models.spec(config["model"]).torchvision is None:
            raise flags.UsageError(str(error)) from None
        raise DataError(f"{WEIGHTS.value} does not fit --model={config['model']}: {error}") from None
    config["v1_5"] = True if getattr(model, "v1_5", False) else None
    names = tuple(preprocessing.unnamed(model.num_classes))
    if config["data_dir"]:
        names = classification.load_dataset(config).class_names
        if len(names) != model.num_classes:
            raise DataError(
                f"--data_dir={config['data_dir']} has {len(names)} classes, the weights {model.num_classes}"
            )

    # --- The state before a first step, with these weights in it.
    about = classification.About((size, size, 3), MEAN, STD, names)
    setup = classification.setup(config, about, devices=1, steps=1)
    shapes = jax.eval_shape(setup.task.init, jax.random.key(0))
    optimizer = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    state = shapes._replace(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer,
        step=np.int32(0),
        key=jax.random.key(config["seed"]),
    )
    home = workdir.Workdir(config["workdir"])
    if home.read_json("run.json") is not None:
        raise workdir.WorkdirError(f"{home.path} holds a run already; choose a new --workdir")
    checkpoints = checkpoint.Checkpoints(home.path, best=setup.task.best, report=run_record.print_line, about=about)
    checkpoints.save(0, state, record={})
    checkpoints.wait()
    run_record.write_start(
        home, config, setup, dataset=Dataset("folder", {}, names), state=state, steps=1, devices="none: imported"
    )
    found = {"model": config["model"], "classes": len(names), "v1_5": bool(config["v1_5"]), "workdir": str(home.path)}
    print(json.dumps(found | {"parameters": run_record.parameter_count(state.params)}))
    return 0


if __name__ == "__main__":
    flags.run(main)
