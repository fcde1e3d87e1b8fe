"""Preprocessing of images for training and evaluation."""

import functools

import numpy as np

from data import augment, stream
from experiments.cli.app import require
from experiments.cli.config import ClassifyConfig


def sample_for_report(images, labels):
    """The test images in which the report searches for errors, their labels and their rows: all of them, or a fixed
    sample of a stream."""
    if not isinstance(images, stream.Stream):
        return images, labels, np.arange(len(images))
    rows = stream.sample(len(images), stream.SAMPLE)
    return images[rows], labels[rows], rows


def make_prepare(config: ClassifyConfig, info):
    """Returns (train, eval, input shape): train(images, keys) and eval(images) map uint8 images to network inputs."""
    normalize = functools.partial(augment.normalize, mean=info.mean, std=info.std)
    height, width, channels = info.image_shape
    kind, views = config.augment, config.tta
    for name, value in (("shift", config.shift), ("cutout", config.cutout)) if kind == "flip_shift" else ():
        most = min(height, width) - 1
        require(value <= most, f"--{name}={value}: must be between 0 and {most} pixels")
    crop = {"crop24": 24, "crop": config.image_size or stream.SIZE}.get(kind)
    if crop:
        require(
            min(height, width) >= crop,
            f"--augment={kind} needs images of at least {crop}x{crop} pixels, not {height}x{width}",
        )
        crop_fn = functools.partial(augment.ten_views if views == "ten_view" else augment.center_crop, size=crop)
    else:
        require(
            views != "ten_view",
            "--tta=ten_view is supported only with --augment=crop24, and for images of more than 64 pixels a side with "
            "--augment=crop or in evaluate",
        )
        crop_fn = None

    noise = config.colour_noise
    require(
        not noise or (channels == 3 and kind != "digits"),
        "--colour_noise needs color images and an --augment other than digits",
    )

    def train(images, keys):
        if kind == "digits":
            return normalize(augment.digits(images, keys))
        images = normalize(images)
        if noise:
            images = augment.colour_noise(images, keys, covariance=info.covariance, std=info.std, scale=noise)
        # Normalize before shifts and cutout, so that the zeros they fill in are the mean.
        if kind == "flip_shift":
            reflect, flip = config.shift_mode == "reflect", not config.alternate_flip
            return augment.flip_shift(
                images, keys, shift=config.shift, reflect=reflect, cutout=config.cutout, flip=flip
            )
        if kind == "resized_crop":  # The stream has already cropped and resized.
            return augment.flip_shift(images, keys, shift=0)
        return augment.flip_crop(images, keys, size=crop) if crop else images

    def evaluation(images):
        images = crop_fn(normalize(images)) if crop_fn else normalize(images)
        return {"flip": augment.flip_views, "flip_shift": augment.flip_shift_views}.get(views, lambda x: x)(images)

    return train, evaluation, (crop, crop, channels) if crop else info.image_shape


def make_mix(config: ClassifyConfig):
    """Returns the function that mixes pairs of training images and their labels, or None."""
    if not config.mixup and not config.cutmix:
        return None
    return functools.partial(augment.mix, mixup=config.mixup, cutmix=config.cutmix)


def check_early(config: ClassifyConfig, input_shape, early_steps: int) -> None:
    """Raises UsageError if --early_size and --early_share have no effect."""
    size, shortest = config.early_size, min(input_shape[:2])
    require(size != shortest, f"--early_size={size} has no effect on images of {shortest} pixels")
    share = config.early_share
    require(size is None or early_steps > 0, f"--early_share={share} has no effect: it is less than half a step")


def early_resize(config: ClassifyConfig, input_shape, steps: int) -> tuple[int, tuple[int, int] | None]:
    """Returns (steps, (height, width)) of the initial steps on downscaled images, or (0, None) without --early_size."""
    size, shortest = config.early_size, min(input_shape[:2])
    if size is None:
        return 0, None
    require(size <= shortest, f"--early_size={size}: must be between 1 and {shortest} pixels")
    height, width = (round(side * size / shortest) for side in input_shape[:2])
    return round(config.early_share * steps), (height, width)
