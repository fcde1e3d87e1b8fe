"""The layers of a feed-forward network as a plain list, which perceptron, mlp and lenet publish: what the written-out
backpropagation works through. Names are those of the parameters."""

from typing import NamedTuple


class Padding(NamedTuple):
    """Zeros around a picture: ((top, bottom), (left, right)) pixels."""

    edges: tuple[tuple[int, int], tuple[int, int]]


class Convolution(NamedTuple):
    """A valid cross-correlation with one bias a map, every `stride` pixels."""

    name: str
    stride: int = 1


class Dense(NamedTuple):
    """A matrix and a bias a unit; of a picture [H, W, C] it sees all numbers in a row."""

    name: str


class MaxPooling(NamedTuple):
    """The largest number of each window, every `stride` pixels; a remainder at the right or bottom is dropped."""

    window: int
    stride: int


class AveragePooling(NamedTuple):
    """The mean of windows that do not overlap; a remainder is dropped."""

    window: int


class Activation(NamedTuple):
    """The elementwise function `name` of models.layers; `slope` is that of leaky_relu for x < 0."""

    name: str
    slope: float = 0.01


Layer = Padding | Convolution | Dense | MaxPooling | AveragePooling | Activation
