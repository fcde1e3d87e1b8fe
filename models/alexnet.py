"""AlexNet in one column (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks").

Five convolutions of 64, 192, 384, 256 and 256 maps and two dense layers of 4,096 units before the classes. The paper's
footnote has 384 maps in the fourth layer, its author's own layer file and the "0.2 % more parameters" of its text 256.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn

from models.layers import Conv, Dense, Dropout, gather_columns, local_response_norm, max_pool, relu

# The author's rates and decays: biases learn twice as fast and do not decay.
AUTHOR_GROUPS = ((r"bias$", 2.0, 0.0), (r"kernel$", 1.0, 1.0))
# The peer's name (torchvision) of each layer, and the channels behind each dense layer that reads a flattened image.
PEER_NAMES = {f"conv{i}": f"features.{at}" for i, at in enumerate((0, 3, 6, 8, 10), 1)} | {
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "logits": "classifier.6",
}
FLATTENED = {"fc6": 256}


class AlexNetOWT(nn.Module):
    """[B, H, W, 3] of 63 pixels or more a side (224 in the paper) -> logits [B, num_classes].

    Dropout of one half comes before fc6 and fc7, or with `dropout_after` behind them, as the author has it.
    `local_response_norm` adds the author's two layers: conv1 - norm - pool - ReLU, and conv2 - ReLU - norm - pool.

    With `shards` K the dense layers hold one K-th of their columns, filled up to a multiple, on each device of
    `axis_name`; the logits are this device's.
    """

    SHARDED: ClassVar = ("fc6", "fc7", "logits")

    num_classes: int
    dropout: float = 0.5
    dropout_after: bool = False
    local_response_norm: bool = False
    axis_name: str | None = None
    widths: Sequence[int] = (64, 192, 384, 256, 256)
    units: int = 4096
    shards: int = 1

    def setup(self):
        self.conv1 = Conv(self.widths[0], (11, 11), strides=4, padding=((2, 2), (2, 2)))
        self.conv2 = Conv(self.widths[1], (5, 5), padding=((2, 2), (2, 2)))
        self.conv3, self.conv4, self.conv5 = (Conv(w, (3, 3), padding=((1, 1), (1, 1))) for w in self.widths[2:])
        self.fc6, self.fc7, self.logits = (
            Dense(-(-columns // self.shards)) for columns in (self.units, self.units, self.num_classes)
        )
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
