"""Errors raised by models and by stored weights."""


class ModelError(ValueError):
    """An unknown model, an option or value that the model does not support, or images that are too small for it."""


class StateDictError(ValueError):
    """Weights that do not match the model: entries are missing, unexpected, of the wrong shape or have invalid
    values."""
