"""The registry of networks: `create("mlp", 10, hidden=(300,))` gives a Linen module, images [B, H, W, C] -> logits."""

import dataclasses
import difflib

import flax.linen as nn

from models import cuda_convnet, dcnn
from models.cifar_resnet import CifarResNet
from models.cnn import CNN
from models.cuda_convnet import CudaConvNet
from models.dcnn import DCNN
from models.densenet import DenseNet
from models.lenet import LeNet
from models.linear import Logistic, Perceptron
from models.mlp import MLP

# The module of each name, and the options that the name stands for.
REGISTRY: dict[str, tuple[type[nn.Module], dict]] = {
    "cnn": (CNN, {}),
    "cuda_convnet": (CudaConvNet, {}),
    "dcnn": (DCNN, {}),
    "dcnn_wide": (DCNN, {"widths": (64, 256, 256)}),
    "densenet": (DenseNet, {}),
    "lenet": (LeNet, {}),
    "logistic": (Logistic, {}),
    "mlp": (MLP, {}),
    "perceptron": (Perceptron, {}),
    **{f"cifar_resnet{depth}": (CifarResNet, {"depth": depth}) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{depth}": (CifarResNet, {"depth": depth, "residual": False}) for depth in (20, 32, 44, 56)},
}


# The rates and decays by leaf of a network's author, for --parameter_groups=author.
AUTHOR_GROUPS = {"cuda_convnet": cuda_convnet.AUTHOR_GROUPS}

# (batch statistics, normalised images [B, H, W, C]) -> batch statistics, where these hold filters made from images.
FIT = dict.fromkeys(("dcnn", "dcnn_wide"), dcnn.fit)

# (parameters, batch statistics) -> filters [h, w, C, F], where the first layer's are not a convolution's kernel.
FIRST_FILTERS = dict.fromkeys(FIT, dcnn.first_filters)


def options(name: str) -> set[str]:
    """The names of the options that the network `name` takes beside the number of classes. ValueError if unknown."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(REGISTRY))}{hint}")
    module, fixed = REGISTRY[name]
    return {field.name for field in dataclasses.fields(module)} - {"parent", "name", "num_classes", *fixed}


def create(name: str, num_classes: int, **values) -> nn.Module:
    """The network `name` for `num_classes` classes.

    Raises ValueError for an unknown network (naming the known ones and the nearest) or an option that it does not take.
    """
    known = options(name)
    for option in values:
        if option not in known:
            raise ValueError(f"model {name} takes no option {option!r}; it takes: {', '.join(sorted(known)) or 'none'}")
    module, fixed = REGISTRY[name]
    return module(num_classes=num_classes, **fixed, **values)
