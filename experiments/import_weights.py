"""Imports published weights: python -m experiments.import_weights --model=resnet18 --weights=FILE --workdir=W"""

import dataclasses
import json

from experiments.cli import app
from experiments.cli.app import UsageError, require
from experiments.cli.config import ClassifyConfig
from experiments.cli.options import option, override


@dataclasses.dataclass(frozen=True)
class ImportWeightsConfig:
    """Published weights"""

    workdir: str = option(None, "Folder of the new run with these weights.", needed="the folder of the run", path=True)
    model: str = option("cnn", "Network: alexnet_owt, vggN, vggN_bn, resnetN or densenetN.")
    v1_5: bool | None = override(ClassifyConfig, "v1_5", None)
    dataset: str = override(ClassifyConfig, "dataset", "folder")
    data_dir: str | None = override(ClassifyConfig, "data_dir", None)
    image_size: int | None = override(ClassifyConfig, "image_size", 224)
    dtype: str = override(ClassifyConfig, "dtype", "float32")
    weights: str = option(
        None, "File with the weights: .safetensors, or PyTorch's .pth.", needed="the file with the weights", path=True
    )


# Mean and standard deviation from torchvision's documentation, scaled to 0 to 255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def main(config: ImportWeightsConfig) -> int:
    v1_5 = "--nov1_5: torchvision's weights are for v1.5, which has the stride in the 3x3 convolution"
    require(config.v1_5 is not False, v1_5)
    size = config.image_size
    if size is None:
        raise UsageError("--image_size must be given")
    import jax
    import numpy as np

    import models
    from data import weights
    from data.dataset import DataError, Dataset
    from experiments.cli.compilation_cache import start_cache
    from experiments.reporting import run_record
    from experiments.setup import classification, evaluation_data
    from experiments.setup.experiment import ClassificationInfo
    from models import torchvision
    from train.checkpoint import Checkpoints
    from train.workdir import Workdir, WorkdirError

    start_cache()
    entries = weights.read(config.weights)
    try:
        model, variables = models.from_torchvision(config.model, entries, image_size=size)
    except torchvision.StateDictError as error:
        raise DataError(f"{config.weights} does not fit --model={config.model}: {error}") from None
    names = evaluation_data.unnamed(model.num_classes)
    bottlenecks = "v1_5" in models.options(config.model)
    require(bottlenecks or not config.v1_5, f"--v1_5 is not supported by --model={config.model}")
    run_config = of_classify(config, v1_5=True if bottlenecks else None)
    if config.data_dir:
        names = classification.load_dataset(run_config).class_names
        if len(names) != model.num_classes:
            both = f"has {len(names)} classes, but the weights have {model.num_classes}"
            raise DataError(f"--data_dir={config.data_dir} {both}")

    # --- The state at step 0 with these weights.
    info = ClassificationInfo((size, size, 3), MEAN, STD, tuple(names))
    experiment = classification.create_experiment(run_config, info, devices=1, steps=1, checked=False)
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
    optimizer = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state)
    state = shapes._replace(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer,
        step=np.int32(0),
        key=jax.random.key(run_config.seed),
    )
    workdir = Workdir(config.workdir)
    if workdir.read_json("run.json") is not None:
        raise WorkdirError(f"{workdir.path} already contains a run; choose a new --workdir")
    checkpoints = Checkpoints(workdir.path, constants=dataclasses.asdict(info))
    if checkpoints.steps():
        raise WorkdirError(f"{workdir.path} already contains checkpoints; choose a new --workdir")
    checkpoints.save(0, state, record={})
    checkpoints.wait()
    dataset = Dataset("folder", {}, tuple(names))
    run_record.write_start(
        workdir, run_config, experiment, dataset, state, split=None, steps=1, devices="none: imported"
    )
    found = {"model": config.model, "classes": len(names), "v1_5": bool(run_config.v1_5), "workdir": str(workdir.path)}
    print(json.dumps(found | {"parameters": run_record.parameter_count(state.params)}))
    return 0


def of_classify(config: ImportWeightsConfig, **changed) -> ClassifyConfig:
    """The config of the imported network as a run of classify. Its momentum is 0, because there is no optimizer state
    to store."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del values["weights"]
    return ClassifyConfig(**(values | {"momentum": 0.0} | changed))


if __name__ == "__main__":
    app.run(main, ImportWeightsConfig)
