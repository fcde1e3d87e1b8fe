"""Descriptions of the layers of a feed-forward network, for train/backpropagation.py.

A model with a method `layer_specs(input_shape)` can be trained with this explicit backpropagation. The method returns
the layers in the order of the forward pass. `name` is the name of the layer's parameters, with the leaves "kernel" and
"bias".
"""

from typing import NamedTuple


class Padding(NamedTuple):
    """Zero padding of images, ((top, bottom), (left, right)) in pixels."""

    edges: tuple[tuple[int, int], tuple[int, int]]


class Convolution(NamedTuple):
    """A cross-correlation without padding, with one bias per output channel and the stride in pixels."""

    name: str
    stride: int = 1


class Dense(NamedTuple):
    """A fully connected layer with bias. Inputs [B, H, W, C] are flattened."""

    name: str


class MaxPooling(NamedTuple):
    """Max pooling. Remaining pixels at the right and bottom are dropped."""

    window: int
    stride: int


class AveragePooling(NamedTuple):
    """Average pooling with stride `window`. Remaining pixels at the right and bottom are dropped."""

    window: int


class Activation(NamedTuple):
    """The elementwise function `name` of models.layers.ACTIVATIONS; `slope` is the negative slope of leaky_relu."""

    name: str
    slope: float = 0.01


Layer = Padding | Convolution | Dense | MaxPooling | AveragePooling | Activation
