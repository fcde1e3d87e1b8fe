"""Creates the data set, network and task of a classify config, for training, evaluation and prediction."""

import functools
from typing import Any

import flax.linen as nn

import data
import models
from data import augment, cifar10, convert, generated, stream
from data.dataset import Dataset, binary_task, hold_out, pixel_covariance, pixel_statistics
from experiments.cli import options
from experiments.cli.app import UsageError, require
from experiments.cli.config import ClassifyConfig, NetworkConfig, ReconstructConfig
from experiments.setup import fine_tuning, preprocessing, saved_run
from experiments.setup.experiment import (
    ClassificationInfo,
    DatasetInfo,
    Experiment,
    check_batch_norm,
    generated_split,
    held_out_fractions,
    network_dtype,
    schedule_and_optimizer,
    train_split,
)
from models import summary
from models.errors import ModelError
from train import backpropagation
from train.parallel import hybrid
from train.parallel.devices import axis_of
from train.tasks import classification

# Number of training pixels used by data-dependent initialization: 512 images of CIFAR-10.
PATCH_PIXELS = 524_288


def load_dataset(
    config: ClassifyConfig,
    *,
    shape: tuple[int, int, int] | None = None,
    channels: int | None = None,
    least_classes: int = 2,
    default_size: int | None = None,
) -> Dataset:
    """Loads the data set, as a binary task if --positive is given. Images are converted to `shape` or to `channels`, if
    given, and `default_size` is the default of --image_size, as in data.load."""
    data.find(config.dataset)
    size, augmentation = config.image_size, config.augment
    if config.dry_run_data:
        view = stream.view(size, augmentation, config.fit) if size else None
        depth = (shape[2] if shape else channels) or 3
        dataset = convert.fit(generated.load(view, other=generated_split(config), channels=depth), shape=shape)
    else:
        dataset = data.load(
            config.dataset,
            config.data_dir,
            skip_corrupt=config.skip_corrupt,
            image_size=size,
            augment=augmentation,
            fit=config.fit,
            shape=shape,
            channels=channels,
            least_classes=least_classes,
            default_size=default_size,
        )
    streamed = any(isinstance(images, stream.Stream) for images, _ in dataset.splits.values())
    supported = "is supported by --dataset=folder and tfds:NAME"
    require(streamed or size is None, f"--image_size={size} {supported}, not by {config.dataset}")
    large = f"{supported} with images of more than 64 pixels a side, or with --image_size"
    if shape:  # The images in memory were resized to those of --init_from.
        height, width = shape[:2]
        large = f"is not supported here: images are resized to {height}x{width} pixels, the size in --init_from"
    require(streamed or config.fit == "crop", f"--fit={config.fit} {large}")
    require(
        streamed or augmentation not in ("crop", "resized_crop"),
        f"--augment={augmentation} {large}",
    )
    require(not (config.alternate_flip and streamed), "--alternate_flip is supported only for images held in memory")
    if config.train_batches:
        dataset = cifar10.train_on(dataset, config.train_batches)
    dataset = hold_out(dataset, *held_out_fractions(config))
    return binary_task(dataset, config.positive, config.negative) if config.positive else dataset


def dataset_info(config: ClassifyConfig, dataset: Dataset) -> ClassificationInfo:
    """Computes a data set's metadata from its training split; --colour_noise also needs a sample's covariance. With
    --init_from, the mean and standard deviation are those that its weights were trained with."""
    images, _ = train_split(dataset)
    streamed = isinstance(images, stream.Stream)
    constants = fine_tuning.constants(config)
    mean, std = constants or (images.pixel_statistics() if streamed else pixel_statistics(images))
    covariance = pixel_covariance(images[stream.sample(len(images), stream.SAMPLE)]) if config.colour_noise else ()
    return ClassificationInfo(tuple(images.shape[1:]), mean, std, dataset.class_names, covariance)


def check_model(name: str) -> None:
    """Raises ModelError if the network `name` is unknown, and UsageError if it is not for classification."""
    task = models.spec(name, listed=lambda entry: entry.task == "classification").task
    command = saved_run.COMMANDS[task]
    require(command == "classify", f"--model={name} is a model for {task}, not classification; use {command}")


def network(
    config: NetworkConfig, classes: int, *, axis: str | None = None, sync_bn: bool = True, author: bool = False
) -> nn.Module:
    """Creates the Linen module `config.model` with the given options. Raises ModelError for an unknown network and
    UsageError for an option that it does not support."""
    known, given = models.options(config.model), given_options(config)
    settings = {"axis_name": axis, "sync_bn": sync_bn, "author_weights": author}
    return models.create(config.model, classes, **given, **{k: v for k, v in settings.items() if k in known})


def given_options(config: NetworkConfig | ReconstructConfig) -> dict[str, Any]:
    """The given network flags by name. Raises ModelError for an unknown network and UsageError for an option that it
    does not support."""
    known = models.options(config.model)
    flags = [name for name, spec in options.specs(type(config)).items() if spec.network]
    given = {name: getattr(config, name) for name in flags if getattr(config, name) is not None}
    for name in given:
        supported = ", ".join(f"--{flag}" for flag in flags if flag in known) or "none of these flags"
        require(name in known, f"--{name} is not supported by --model={config.model}, which has {supported}")
    return given


def create_experiment(
    config: ClassifyConfig, info: ClassificationInfo, *, devices: int, steps: int, checked: bool = True
) -> Experiment:
    """Creates the network and its task for a run on `devices`. With `checked=False`, for stored runs, skips the checks
    that the network supports the images and the batch."""
    check_model(config.model)
    axis = axis_of(devices)
    author = config.parameter_groups == "author"
    model = network(config, len(info.class_names), axis=axis, sync_bn=config.sync_bn, author=author)
    train_prepare, eval_prepare, input_shape = preprocessing.make_prepare(config, info)
    backbone = fine_tuning.backbone(config, model, input_shape)
    learning_rate, optimizer = schedule_and_optimizer(config, steps, model=config.model, groups=backbone.groups)
    early_steps, early_size = preprocessing.early_resize(config, input_shape, steps)
    if config.parallelism == "hybrid":
        require(hasattr(model, "CLASSIFIER"), f"--parallelism=hybrid is not supported by --model={config.model}")
    lacking = [name for name in ("axis_name", "sync_bn") if name not in models.options(config.model)]
    if axis and lacking and "batch_stats" in summary.variables(model, input_shape):
        raise ValueError(
            f"{config.model} has batch norm, but no field {lacking[0]} for its statistics on several devices"
        )
    if checked:
        batch_norm = config.sync_bn or "batch_stats" in summary.variables(model, input_shape)
        require(batch_norm, f"--nosync_bn has no effect with --model={config.model}, which has no batch norm")
        preprocessing.check_early(config, input_shape, early_steps)
        check_shapes(config, model, input_shape, early_size)
        for shape in filter(None, (input_shape[:2], early_size)):
            check_batch_norm(config, model, (*shape, input_shape[2]), devices)
    task = classification.create(
        model=backbone.module(model),
        optimizer=backbone.optimizer(optimizer),
        image_shape=input_shape,
        class_names=info.class_names,
        train_prepare=train_prepare,
        eval_prepare=eval_prepare,
        axis=axis,
        smoothing=config.label_smoothing,
        mix=preprocessing.make_mix(config),
        ema=config.ema,
        early=(early_steps, early_size),
        dtype=network_dtype(config),
        accumulate=config.accumulate,
        remat=config.remat,
        gradients=manual_gradients(config, model, input_shape, train_prepare, axis),
    )
    if config.parallelism == "hybrid":
        task = hybrid.parallelized(
            task,
            model=model,
            optimizer=optimizer,
            prepare=train_prepare,
            smoothing=config.label_smoothing,
            axis=axis,
            devices=devices,
            passes=config.fc_passes,
            update=config.fc_update,
            ema=config.ema,
            dtype=network_dtype(config),
        )
    return Experiment(info, input_shape, model, backbone.task(task), learning_rate)


def manual_gradients(config: ClassifyConfig, model, input_shape, prepare, axis: str | None):
    """The gradient function for --gradients=backpropagation, or None for autodiff."""
    if config.gradients == "autodiff":
        return None
    supported = "perceptron, mlp and lenet"
    require(hasattr(model, "layer_specs"), f"--gradients=backpropagation supports {supported}, not {config.model}")
    try:
        layers = model.layer_specs(input_shape)
    except ModelError as error:
        raise UsageError(f"--gradients=backpropagation: {error}") from None
    return functools.partial(backpropagation.gradients, layers=layers, prepare=prepare, axis=axis)


def check_shapes(config: ClassifyConfig, model, input_shape, early_size: tuple[int, int] | None) -> None:
    """Raises ModelError if the network does not support the image size, and UsageError if its weights do not fit the
    smaller images of --early_size."""
    weights = [layer.parameters for layer in summary.layers(model, input_shape)]
    if early_size is None:
        return
    flag = f"--early_size={config.early_size}: "
    try:
        early_layers = summary.layers(model, (*early_size, input_shape[2]))
    except ModelError as error:
        raise UsageError(f"{flag}{error}") from None
    same = weights == [layer.parameters for layer in early_layers]
    require(same, f"{flag}the weights of --model={config.model} depend on the image size")


def data_dependent_init(config: ClassifyConfig, state, images, info: DatasetInfo):
    """Returns the state after data-dependent initialization on a fixed sample of the training images, if the network
    has one; otherwise the unchanged state."""
    init = models.spec(config.model).data_dependent_init
    if init is None or config.init_from:
        return state
    height, width = images.shape[1:3]
    count = max(1, PATCH_PIXELS // (height * width))
    sample = images[stream.sample(len(images), count)]
    batch_stats = init(state.batch_stats, augment.normalize(sample, info.mean, info.std))
    return state._replace(batch_stats=batch_stats)
