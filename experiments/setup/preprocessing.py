"""What a network sees of an image: in training, in an evaluation, of a file."""

import dataclasses
import functools
from typing import Any

import numpy as np

from data import augment, decode, image_files, stream
from experiments.cli.app import require
from experiments.cli.config import ClassifyConfig
from experiments.setup.saved_run import SavedRun


def in_memory(run: SavedRun) -> bool:
    """Whether the run held its images in memory, as they are."""
    return run.config.image_size is None and max(run.info.image_shape[:2]) <= image_files.LARGEST


def read_image(file: str, run: SavedRun) -> np.ndarray:
    """The image file as the run's network saw the test images, uint8 [H, W, C]: the middle square of streamed images,
    the whole of others, resized. Raises DataError."""
    height, width, channels = run.info.image_shape
    if run.task == "segmentation" or in_memory(run):
        return decode.read_image(file, channels=channels, crop=decode.whole((height, width)))
    view = stream.view(run.config.image_size, run.config.augment)
    return decode.read_image(file, channels=channels, crop=stream.middle(view))


def on_own_data(run: SavedRun, *, dataset: str | None, data_dir: str | None) -> Any:
    """The run's config with another folder of its data set. Raises UsageError for another data set."""
    own = run.config.dataset
    require(dataset in (None, own), f"--dataset={dataset}: must be the run's own, {own}")
    return on_data(run.config, dataset=dataset, data_dir=data_dir)


def on_data(config: Any, *, dataset: str | None, data_dir: str | None) -> Any:
    """The config with another data set or folder, where these are not None; one's folder is not another's."""
    if dataset not in (None, config.dataset):
        config = dataclasses.replace(config, dataset=dataset, data_dir=None)
    return config if data_dir is None else dataclasses.replace(config, data_dir=data_dir)


def for_evaluation(
    run: SavedRun, *, dataset: str | None, data_dir: str | None, tta: str | None
) -> tuple[SavedRun, tuple[int, int, int] | None]:
    """(the run of classify with its config and image shape changed to evaluate it on the data and with the views
    given, the shape [h, w, channels] that image files are resized to, or None). What is None is the run's own."""
    old, shape = run.config, run.info.image_shape
    config = dataclasses.replace(old, tta=tta or old.tta)
    if config.tta == "ten_view" and not in_memory(run):  # The views are cut out of a larger square.
        side = stream.view(old.image_size, "crop").side
        config = dataclasses.replace(config, augment="crop")
        run = run._replace(info=dataclasses.replace(run.info, image_shape=(side, side, shape[2])))
    config = on_data(config, dataset=dataset, data_dir=data_dir)
    if config.dataset != old.dataset:
        config = dataclasses.replace(config, train_batches=None)
    if (config.dataset, config.data_dir) == (old.dataset, old.data_dir):
        return run._replace(config=config), None
    if in_memory(run):
        return run._replace(config=config), run.info.image_shape
    return run._replace(config=dataclasses.replace(config, image_size=old.image_size or stream.SIZE)), None


def unnamed(classes: int) -> tuple[str, ...]:
    """What the classes are called where no folder of images gives their names."""
    return tuple(f"{i:04d}" for i in range(classes))


def sample_for_report(images, labels):
    """The test images that the report looks for mistakes among: all, or of a stream as many as fit in memory."""
    if not isinstance(images, stream.Stream):
        return images, labels
    rows = stream.sample(len(images), stream.SAMPLE)
    return images[rows], labels[rows]


def prepare(config: ClassifyConfig, info):
    """(train, eval, input shape): train(images, keys) and eval(images) make the network's input from uint8 images."""
    normalize = functools.partial(augment.normalize, mean=info.mean, std=info.std)
    height, width, channels = info.image_shape
    kind, views = config.augment, config.tta
    for name, value in (("shift", config.shift), ("cutout", config.cutout)) if kind == "flip_shift" else ():
        most = min(height, width) - 1
        require(value <= most, f"--{name}={value}: must be between 0 and {most} pixels")
    crop = {"crop24": 24, "crop": config.image_size or stream.SIZE}.get(kind)
    if crop:
        require(min(height, width) >= crop, f"--augment={kind} needs {crop}x{crop} pixels, not {height}x{width}")
        crop_fn = functools.partial(augment.ten_views if views == "ten_view" else augment.center_crop, size=crop)
    else:
        require(
            views != "ten_view",
            "--tta=ten_view is supported by runs with --augment=crop24, and for images of more than 64 pixels a side "
            "with --augment=crop, or in evaluate",
        )
        crop_fn = None

    noise = config.colour_noise
    require(not noise or (channels == 3 and kind != "digits"), "--colour_noise needs colour images")

    def train(images, keys):
        if kind == "digits":
            return normalize(augment.digits(images, keys))
        images = normalize(images)
        if noise:
            images = augment.colour_noise(images, keys, covariance=info.covariance, std=info.std, scale=noise)
        # Normalised before shifts and cutout: the zeros that they bring in are the mean.
        if kind == "flip_shift":
            reflect, flip = config.shift_mode == "reflect", not config.alternate_flip
            return augment.flip_shift(
                images, keys, shift=config.shift, reflect=reflect, cutout=config.cutout, flip=flip
            )
        if kind == "resized_crop":  # The stream has cut and resized: the mirror image is left.
            return augment.flip_shift(images, keys, shift=0)
        return augment.flip_crop(images, keys, size=crop) if crop else images

    def evaluation(images):
        images = crop_fn(normalize(images)) if crop_fn else normalize(images)
        return augment.flip_views(images) if views == "flip" else images

    return train, evaluation, (crop, crop, channels) if crop else info.image_shape


def early_resize(config: ClassifyConfig, input_shape, steps: int) -> tuple[int, tuple[int, int] | None]:
    """(steps, (height, width)) of the smaller images that a run begins with; (0, None) without."""
    size, shortest = config.early_size, min(input_shape[:2])
    if size is None:
        return 0, None
    require(size <= shortest, f"--early_size={size}: must be between 1 and {shortest} pixels")
    height, width = (round(side * size / shortest) for side in input_shape[:2])
    return round(config.early_share * steps), (height, width)
