"""The errors of networks and of stored weights."""


class ModelError(ValueError):
    """An unknown network, an option or a number that it does not support, or images that are too small for it."""


class StateDictError(ValueError):
    """Weights that do not fit the network: entries are missing, unexpected, of another shape or no valid numbers."""
