"""AlexNet in one column (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks").

Five convolutions of 64, 192, 384, 256 and 256 maps and two dense layers of 4,096 units before the classes. The paper's
footnote has 384 maps in the fourth layer, its author's own layer file and the "0.2 % more parameters" of its text 256.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn

from models.cpu_kernels.ops import dot_general
from models.initializers import fan_in_uniform, normal, uniform
from models.layers import Conv, Dense, Dropout, gather_columns, local_response_norm, max_pool, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# The author's rates and decays: biases learn twice as fast and do not decay.
AUTHOR_GROUPS = ((r"bias$", 2.0, 0.0), (r"kernel$", 1.0, 1.0))
# torchvision's name of each layer.
TORCHVISION_NAMES = {f"conv{i}": f"features.{at}" for i, at in enumerate((0, 3, 6, 8, 10), 1)} | {
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "logits": "classifier.6",
}
# Side, stride and padding of the five convolutions.
WINDOWS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
# The author's initial weights: the normal distribution's standard deviation, and the bias.
AUTHOR_WEIGHTS = {
    **{"conv1": (0.01, 0), "conv2": (0.01, 1), "conv3": (0.03, 0), "conv4": (0.03, 1), "conv5": (0.03, 1)},
    **{"fc6": (0.01, 1), "fc7": (0.01, 1), "logits": (0.01, -7)},
}


class FanInDense(nn.Dense):
    """A dense layer [B, M] -> [B, features] whose weights and biases both start from U(+-1 / sqrt(M))."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", fan_in_uniform, (inputs.shape[-1], self.features))
        product = dot_general(inputs, kernel, (((1,), (0,)), ((), ())))
        return product + self.param("bias", uniform(inputs.shape[-1] ** -0.5), (self.features,))[None]


class AlexNetOWT(nn.Module):
    """[B, H, W, 3] of 63 pixels or more a side (224 in the paper) -> logits [B, num_classes].

    Dropout of one half comes before fc6 and fc7, or with `dropout_after` behind them, as the author has it.
    `local_response_norm` adds the author's two layers: conv1 - norm - pool - ReLU, and conv2 - ReLU - norm - pool.
    Weights and biases start from U(+-1 / sqrt(fan_in)), as for the published 43.4 % (torchvision), or with
    `author_weights` from the author's normal distributions and constants.

    With `shards` K the dense layers hold one K-th of their columns, filled up to a multiple, on each device of
    `axis_name`; the logits are this device's.
    """

    SHARDED: ClassVar = ("fc6", "fc7", "logits")

    num_classes: int
    dropout: float = 0.5
    dropout_after: bool = False
    local_response_norm: bool = False
    author_weights: bool = False
    axis_name: str | None = None
    widths: Sequence[int] = (64, 192, 384, 256, 256)
    units: int = 4096
    shards: int = 1

    def setup(self):
        def author(name):
            std, bias = AUTHOR_WEIGHTS[name]
            return {"kernel_init": normal(std), "bias_init": nn.initializers.constant(bias)}

        geometry = zip(WINDOWS, (3, *self.widths), self.widths, strict=False)
        for i, ((side, stride, edge), inputs, width) in enumerate(geometry, 1):
            start = {"kernel_init": fan_in_uniform, "bias_init": uniform((side * side * inputs) ** -0.5)}
            start = author(f"conv{i}") if self.author_weights else start
            layer = Conv(width, (side, side), strides=stride, padding=((edge, edge), (edge, edge)), **start)
            setattr(self, f"conv{i}", layer)
        for name, columns in (("fc6", self.units), ("fc7", self.units), ("logits", self.num_classes)):
            own = -(-columns // self.shards)
            setattr(self, name, Dense(own, **author(name)) if self.author_weights else FanInDense(own))
        self.drop = Dropout(self.dropout, self.axis_name)

    def features(self, x, train: bool = False):
        """The convolutions: [B, H, W, 3] -> [B, 9216] for 224 pixels."""
        del train
        if min(x.shape[1:3]) < 63:
            raise ValueError(f"alexnet_owt needs images of at least 63x63 pixels, not {x.shape[1]}x{x.shape[2]}")
        pool = functools.partial(max_pool, window=3, stride=2)
        norm = functools.partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0)
        if self.local_response_norm:
            x = relu(pool(norm(self.conv1(x))))
            x = pool(norm(relu(self.conv2(x))))
        else:
            x = pool(relu(self.conv1(x)))
            x = pool(relu(self.conv2(x)))
        x = relu(self.conv4(relu(self.conv3(x))))
        x = pool(relu(self.conv5(x)))
        return x.reshape(x.shape[0], -1)

    def classifier(self, x, train: bool = False):
        """The dense layers: [B, F] -> logits [B, num_classes]."""
        axis = self.axis_name if self.shards > 1 else None
        for layer in (self.fc6, self.fc7):
            x = x if self.dropout_after else self.drop(x, train)
            x = gather_columns(relu(layer(x)), self.units, axis)
            x = self.drop(x, train) if self.dropout_after else x
        return self.logits(x)

    def __call__(self, x, train: bool = False):
        return self.classifier(self.features(x, train), train)


SPECS = {
    "alexnet_owt": ModelSpec(
        module=AlexNetOWT,
        image_shape=(224, 224, 3),
        num_classes=1000,
        author_groups=AUTHOR_GROUPS,
        torchvision=TorchvisionLayout(TORCHVISION_NAMES, flattened={"fc6": 256}),
    )
}
