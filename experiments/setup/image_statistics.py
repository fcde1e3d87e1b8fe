"""Compares an image with the training images by its mean brightness, to warn of images unlike them."""

import numpy as np

from experiments.setup.experiment import DatasetInfo

# Largest difference of the mean brightness from the training pixels' mean, in units of their standard deviation.
# Measured: at most 0.57 for the images of mnist5k, at least 1.8 for inverted ones; 0.4 % of CIFAR-10's test images
# exceed 1.5.
LIMIT = 1.5


def deviation(brightness: float, info: DatasetInfo) -> float:
    """The difference from the mean of the training pixels in units of their standard deviation, both averaged over the
    channels."""
    return abs(brightness - float(np.mean(info.mean))) / max(float(np.mean(info.std)), 1e-6)


def warning(image: np.ndarray, info: DatasetInfo, *, inverted: bool = False) -> str | None:
    """A warning if the brightness of a uint8 image [H, W, C] is unlike that of the training images, else None;
    `inverted`: whether --invert was given."""
    brightness = float(image.mean())
    if deviation(brightness, info) <= LIMIT:
        return None
    mean, std = np.mean(info.mean), np.mean(info.std)
    text = f"mean brightness {brightness:.0f}, the training images have {mean:.0f} (standard deviation {std:.0f})"
    if deviation(255 - brightness, info) <= LIMIT:
        how = "without --invert" if inverted else "with --invert"
        return f"{text}; the prediction may be wrong ({how}, the brightness would be {255 - brightness:.0f})"
    return f"{text}; the prediction may be wrong"
