"""The registry of networks: `create("mlp", 10, hidden=(300,))` gives a Linen module, images [B, H, W, C] -> logits."""

import dataclasses
import difflib
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from models import alexnet, cuda_convnet, dcnn, densenet, resnet, segnet, summary, torchvision, vgg
from models.alexnet import AlexNetOWT
from models.cnn import CNN
from models.cuda_convnet import CudaConvNet
from models.dcgan import DCGAN
from models.dcnn import DCNN
from models.densenet import DenseNet, ImageNetDenseNet
from models.lenet import LeNet
from models.linear import Logistic, Perceptron
from models.mlp import MLP
from models.resnet import ResNet
from models.resnet_cifar import CifarResNet
from models.segnet import SegNet, SegNetBasic, SegNetSmall
from models.torchvision import Peer
from models.vgg import VGG

# The module of each name, and the options that the name stands for.
REGISTRY: dict[str, tuple[type[nn.Module], dict]] = {
    "alexnet_owt": (AlexNetOWT, {}),
    "cnn": (CNN, {}),
    "cuda_convnet": (CudaConvNet, {}),
    "dcgan": (DCGAN, {}),
    "dcnn": (DCNN, {}),
    "dcnn_wide": (DCNN, {"widths": (64, 128, 256)}),
    "densenet": (DenseNet, {}),
    "lenet": (LeNet, {}),
    "logistic": (Logistic, {}),
    "mlp": (MLP, {}),
    "perceptron": (Perceptron, {}),
    "segnet": (SegNet, {}),
    "segnet_basic": (SegNetBasic, {}),
    "segnet_small": (SegNetSmall, {}),
    **{f"cifar_resnet{depth}": (CifarResNet, {"depth": depth}) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{depth}": (CifarResNet, {"depth": depth, "residual": False}) for depth in (20, 32, 44, 56)},
    **{f"vgg{depth}": (VGG, {"depth": depth, "batch_norm": False}) for depth in vgg.DEPTHS},
    **{f"vgg{depth}_bn": (VGG, {"depth": depth, "batch_norm": True}) for depth in vgg.DEPTHS},
    **{f"plain{depth}": (ResNet, {"depth": depth, "residual": False, "v1_5": False}) for depth in (18, 34)},
    **{f"resnet{depth}": (ResNet, {"depth": depth, "residual": True, "v1_5": False}) for depth in (18, 34)},
    **{f"resnet{depth}": (ResNet, {"depth": depth, "residual": True}) for depth in (50, 101, 152)},
    **{f"densenet{depth}": (ImageNetDenseNet, {"depth": depth}) for depth in densenet.DEPTHS},
}

# How the layers of a network are called where torch's users publish weights.
PEERS = {
    "alexnet_owt": Peer(alexnet.PEER_NAMES, alexnet.FLATTENED),
    **{
        f"vgg{depth}{'_bn' * batch_norm}": Peer(
            vgg.peer_names(depth=depth, batch_norm=batch_norm), vgg.FLATTENED, vgg.ALIASES
        )
        for depth in vgg.DEPTHS
        for batch_norm in (False, True)
    },
    **{f"resnet{depth}": Peer(resnet.peer_names(depth=depth)) for depth in resnet.DEPTHS},
    **{f"densenet{depth}": Peer(densenet.peer_names(depth=depth)) for depth in densenet.DEPTHS},
}


# The rates and decays by leaf of a network's author, for --parameter_groups=author.
AUTHOR_GROUPS = {
    "cuda_convnet": cuda_convnet.AUTHOR_GROUPS,
    "alexnet_owt": alexnet.AUTHOR_GROUPS,
    "segnet_basic": segnet.AUTHOR_GROUPS,
    "segnet": segnet.AUTHOR_GROUPS,
}

# (batch statistics, normalised images [B, H, W, C]) -> batch statistics, where these hold filters made from images.
FIT = dict.fromkeys(("dcnn", "dcnn_wide"), dcnn.fit)

# (parameters, batch statistics) -> filters [h, w, C, F], where the first layer's are not a convolution's kernel.
FIRST_FILTERS = dict.fromkeys(FIT, dcnn.first_filters)


# Networks made for colour pictures of 32 pixels.
CIFAR = ("cuda_convnet", "dcnn", "dcnn_wide", "densenet", *(name for name in REGISTRY if name.startswith("cifar_")))

# Networks of segment, not of classify; and those that see pixels of 0 to 255, not normalised images.
SEGMENTERS = ("segnet_small", "segnet_basic", "segnet")
RAW_PIXELS = ("segnet_basic",)

# Of generate.
GENERATORS = ("dcgan",)

# Whose first layers, by the beginnings of their names, a network's encoder may start from.
ENCODERS = {"segnet": {"vgg16": ("conv",), "vgg16_bn": ("conv", "bn")}}


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


def from_peer(name: str, entries: Mapping[str, np.ndarray], *, image_size: int = 224) -> tuple[nn.Module, dict]:
    """The network `name` and its variables from the entries of a peer's file (torchvision's or timm's names).

    The peers' bottlenecks have their stride in the 3x3 convolution: they become v1.5 here. Raises ValueError for a
    network without such a peer, or entries that do not fit, which it lists.
    """
    if name not in PEERS:
        raise ValueError(f"--model={name} has no known peer; accepted are {', '.join(sorted(PEERS))}")
    values = {"v1_5": True} if "v1_5" in options(name) else {}
    model = create(name, torchvision.classes(entries, PEERS[name]), **values)
    shapes = summary.variables(model, (image_size, image_size, 3))
    return model, torchvision.variables(entries, shapes, peer=PEERS[name])
