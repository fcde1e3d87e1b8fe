"""The error of a network that can't be made, or can't see the images."""


class ModelError(ValueError):
    """An unknown network, an option or a number that it does not support, or images that are too small for it."""
