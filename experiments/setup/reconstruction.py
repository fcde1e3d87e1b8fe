"""Creates the data set, network and task of a reconstruct config."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

import data
import models
from data import generated, image_files
from data.dataset import Dataset, hold_out, pixel_statistics
from experiments.cli.config import ReconstructConfig
from experiments.setup import classification, evaluation_data
from experiments.setup.experiment import (
    DatasetInfo,
    Experiment,
    generated_split,
    held_out_fractions,
    network_dtype,
    schedule_and_optimizer,
    train_split,
)
from experiments.setup.saved_run import SavedRun
from train.parallel.devices import axis_of
from train.tasks import reconstruction


def load_dataset(config: ReconstructConfig, *, shape: tuple[int, int, int] | None = None) -> Dataset:
    """Loads the data set into memory; image files are resized to `shape` if given. Raises DataError if images are too
    large or differ in size."""
    if config.dry_run_data:
        return hold_out(generated.load(None, other=generated_split(config)), *held_out_fractions(config))
    needed = f"reconstruct takes images of one size, of up to {image_files.LARGEST} pixels a side"
    try:
        dataset = data.load(
            config.dataset, config.data_dir, skip_corrupt=config.skip_corrupt, shape=shape, least_classes=1
        )
    except data.SizesDiffer as error:
        raise data.DataError(f"{str(error).partition(';')[0]}; {needed}") from None
    if not all(isinstance(images, np.ndarray) for images, _ in dataset.splits.values()):
        raise data.DataError(f"--dataset={config.dataset} has larger images; {needed}")
    return hold_out(dataset, *held_out_fractions(config))


def dataset_info(dataset: Dataset) -> DatasetInfo:
    """Computes a data set's metadata from its training split."""
    images, _ = train_split(dataset)
    return DatasetInfo(tuple(images.shape[1:]), *pixel_statistics(images), dataset.class_names)


def noise(config: ReconstructConfig) -> Callable | None:
    """Returns a function from uint8 images [B, H, W, C] and keys [B] to the masked or binarized uint8 images that are
    the network's input, or None if its input is the images themselves."""
    if config.model not in ("denoising", "variational"):
        return None

    def seen(images, keys):
        images = reconstruction.pixels(images)
        if config.model == "denoising":
            found = reconstruction.masked(images, keys, rate=config.noise)
        else:
            found = reconstruction.binarized(images, keys)
        return jnp.round(255 * found).astype(jnp.uint8)

    return seen


def loss_and_terms(config: ReconstructConfig) -> tuple[Callable, tuple[str, ...]]:
    """Returns (loss function, names of its terms) for the config's network."""
    if config.model == "variational":
        return reconstruction.variational_loss, ("reconstruction", "kl")
    if config.model == "sparse":
        loss = functools.partial(reconstruction.sparse_loss, penalty=config.penalty)
        return loss, ("squared_error", "psnr", "active")
    if config.model == "denoising":
        return functools.partial(reconstruction.denoising_loss, rate=config.noise), ("squared_error", "psnr")
    return reconstruction.squared_loss, ("squared_error", "psnr")


def create_experiment(config: ReconstructConfig, info: DatasetInfo, *, devices: int, steps: int) -> Experiment:
    """Creates the network and its task for a run on `devices`."""
    learning_rate, optimizer = schedule_and_optimizer(config, steps, model=config.model)
    given = classification.given_options(config)
    model = models.create(config.model, len(info.class_names), shape=info.image_shape, **given)
    loss, terms = loss_and_terms(config)
    task = reconstruction.create(
        model=model,
        optimizer=optimizer,
        image_shape=info.image_shape,
        loss=loss,
        terms=terms,
        axis=axis_of(devices),
        dtype=network_dtype(config),
    )
    return Experiment(info, info.image_shape, model, task, learning_rate)


def for_evaluation(run: SavedRun, *, dataset: str | None, data_dir: str | None) -> tuple[SavedRun, Dataset]:
    """Returns (the run, adapted for evaluation on the given data, the data set); None keeps the run's own data. Classes
    may differ from the run's."""
    config = evaluation_data.on_data(run.config, dataset=dataset, data_dir=data_dir)
    own = (config.dataset, config.data_dir) == (run.config.dataset, run.config.data_dir)
    load = functools.partial(load_dataset, shape=None if own else run.info.image_shape)
    found = evaluation_data.load(run, config, load)
    info = dataclasses.replace(run.info, class_names=found.class_names)
    return run._replace(config=config, info=info), found
