"""The model registry: `create("mlp", 10, hidden=(300,))` returns a Linen module, images [B, H, W, C] -> logits.

Each model file lists its models as `SPECS`, a dictionary from names to `ModelSpec`. `MODELS` combines them.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import numpy as np

from models import (
    alexnet,
    attention,
    autoencoder,
    cnn,
    cuda_convnet,
    dcgan,
    dcnn,
    densenet,
    lenet,
    linear,
    mlp,
    recurrent,
    resnet,
    resnet_cifar,
    segnet,
    summary,
    torchvision,
    vgg,
)
from models.errors import ModelError, StateDictError
from models.model_spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    **linear.SPECS,
    **mlp.SPECS,
    **cnn.SPECS,
    **lenet.SPECS,
    **cuda_convnet.SPECS,
    **dcnn.SPECS,
    **resnet_cifar.SPECS,
    **densenet.SPECS,
    **alexnet.SPECS,
    **vgg.SPECS,
    **resnet.SPECS,
    **recurrent.SPECS,
    **attention.SPECS,
    **segnet.SPECS,
    **dcgan.SPECS,
    **autoencoder.SPECS,
}

# Options without effect on the outputs in evaluation mode.
NOT_IN_EVALUATION = {"axis_name", "sync_bn", "author_weights", "dropout", "dropout_after"}


def spec(name: str, *, listed: Callable[[ModelSpec], Any] = lambda entry: True) -> ModelSpec:
    """Returns the entry of model `name`. Raises ModelError, with the known names that are `listed` and the closest
    match among them, if it is unknown."""
    if name not in MODELS:
        known = sorted(other for other, entry in MODELS.items() if listed(entry))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ModelError(f"unknown model {name!r}; {hint}known: {', '.join(known)}")
    return MODELS[name]


def options(name: str) -> set[str]:
    """Returns the names of the options of model `name`, without `num_classes`. Raises ModelError if it is unknown."""
    return spec(name).options


def create(name: str, num_classes: int, **values) -> nn.Module:
    """Returns model `name` with the options `values`. Models for reconstruction ignore `num_classes`.

    Raises ModelError for an unknown model or an option that the model does not have.
    """
    entry, known = spec(name), options(name)
    for option in values:
        if option not in known:
            raise ModelError(f"model {name} takes no option {option!r}; it takes: {', '.join(sorted(known)) or 'none'}")
    classes = {} if entry.task == "reconstruction" else {"num_classes": num_classes}
    return entry.module(**classes, **values)


def from_torchvision(name: str, entries: Mapping[str, np.ndarray], *, image_size: int = 224) -> tuple[nn.Module, dict]:
    """Converts a state dict with torchvision's or timm's entry names.

    torchvision's bottleneck blocks have the stride in the 3x3 convolution, so such models are created as v1.5.

    Args:
      name: Name of the model.
      entries: State dict, entry name -> array in torch's layout.
      image_size: Side of the images in pixels; dense layers that read a flattened image depend on it.

    Returns:
      (module, variables): the Linen module, with the number of classes of the weights, and its variables.

    Raises:
      ModelError: The model is unknown or has no torchvision counterpart.
      StateDictError: The entries do not match the model; the message lists them.
    """
    layout = _torchvision_layout(name)
    values = {"v1_5": True} if "v1_5" in options(name) else {}
    model = create(name, torchvision.num_classes(entries, layout), **values)
    shapes = summary.variables(model, (image_size, image_size, 3))
    return model, torchvision.variables(entries, shapes, layout=layout)


def to_torchvision(name: str, model: nn.Module, variables: dict, *, batches: int = 0) -> dict[str, np.ndarray]:
    """Converts variables of `model`, created as model `name`, to a state dict that torchvision's model of the same name
    and number of classes loads; the inverse of `from_torchvision`. Its entries num_batches_tracked are `batches`.

    Raises:
      ModelError: The model is unknown, or torchvision has no such network.
      StateDictError: torchvision's arrays have other shapes, because it is built for color images of 224 pixels.
    """
    layout, module = _torchvision_layout(name), cast(Any, model)
    theirs = create(name, module.num_classes, **({"v1_5": True} if "v1_5" in options(name) else {}))
    for option in sorted(options(name) - NOT_IN_EVALUATION):
        own, other = getattr(module, option), getattr(theirs, option)
        if own != other:
            raise ModelError(f"torchvision's {name} has {option} {other}, this network has {own}")
    found = torchvision.entries(variables, layout=layout, batches=batches)
    for key, array in torchvision.entry_shapes(summary.variables(theirs, (224, 224, 3)), layout).items():
        if found[key].shape != array:
            both = f"{key} is {list(found[key].shape)}, in torchvision's {name} {list(array)}"
            raise StateDictError(f"{both}, for color images of 224 pixels")
    return found


def _torchvision_layout(name: str) -> torchvision.TorchvisionLayout:
    """The layer names of torchvision's model `name`. Raises ModelError if there is none."""
    layout = spec(name, listed=lambda entry: entry.torchvision).torchvision
    if layout is None:
        known = ", ".join(sorted(other for other, entry in MODELS.items() if entry.torchvision))
        raise ModelError(f"torchvision weights are not supported by --model={name}; supported by: {known}")
    return layout
