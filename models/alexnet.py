"""AlexNet for one GPU (Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks")."""

import functools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn

from models.errors import ModelError
from models.initializers import fan_in_uniform, normal, uniform
from models.layers import Conv, Dense, Dropout, FanInDense, local_response_norm, max_pool, relu
from models.model_spec import ModelSpec
from models.torchvision import TorchvisionLayout

# The author's (parameter path, learning-rate multiplier, weight-decay multiplier).
AUTHOR_GROUPS = ((r"bias$", 2.0, 0.0), (r"kernel$", 1.0, 1.0))
# Layer name -> torchvision's layer name.
TORCHVISION_NAMES = {f"conv{i}": f"features.{at}" for i, at in enumerate((0, 3, 6, 8, 10), 1)} | {
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "logits": "classifier.6",
}
# (window, stride, padding) of the five convolutions, in pixels.
WINDOWS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
# The author's initialization: (standard deviation of the normal distribution, bias).
AUTHOR_WEIGHTS = {
    **{"conv1": (0.01, 0), "conv2": (0.01, 1), "conv3": (0.03, 0), "conv4": (0.03, 1), "conv5": (0.03, 1)},
    **{"fc6": (0.01, 1), "fc7": (0.01, 1), "logits": (0.01, -7)},
}


class AlexNetOWT(nn.Module):
    """Images [B, H, W, 3] of at least 63x63 pixels -> logits [B, num_classes] (Krizhevsky 2014).

    | layer  | output for 224x224 pixels | window, stride, padding    |
    |--------|---------------------------|----------------------------|
    | conv1  | 55x55x64                  | 11, 4, 2; then max pooling 3, 2 |
    | conv2  | 27x27x192                 | 5, 1, 2; then max pooling 3, 2  |
    | conv3  | 13x13x384                 | 3, 1, 1                    |
    | conv4  | 13x13x256                 | 3, 1, 1                    |
    | conv5  | 13x13x256                 | 3, 1, 1; then max pooling 3, 2  |
    | fc6    | 4096                      | dense, on 9216 inputs      |
    | fc7    | 4096                      | dense                      |
    | logits | num_classes               | dense                      |

    ReLU follows each layer except the last. For 1,000 classes there are 61,100,840 parameters and 714,188,480
    multiply-adds. The paper's footnote gives 384 channels for the fourth convolution; the author's layer file has 256,
    which also agrees with the "0.2 % more parameters" of the text. Differences from the author's network, all taken
    from torchvision: padding 2 in conv1, no local response normalization, dropout before fc6 and fc7, and the
    initialization. The options below restore the author's choices, except for the padding. The loss is not part of the
    network: the author trained 1,000 logistic units, for which a logits bias of -7 makes each class improbable at
    first; with softmax, a constant bias has no effect. Raises ModelError for smaller images.

    Attributes:
      num_classes: Number of classes.
      dropout: Dropout rate of the inputs of fc6 and fc7.
      dropout_after: Apply dropout to the outputs of fc6 and fc7 instead, as the author's network does.
      local_response_norm: Add the author's normalizations: conv1 - norm - pool - ReLU and conv2 - ReLU - norm - pool.
      author_weights: Initialize as the author did, from normal distributions and constants. Otherwise weights and
        biases are drawn from U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), as in torchvision (published error 43.4 %).
      axis_name: Mesh axis for dropout's keys.
      widths: Output channels of the convolutions.
      units: Units of fc6 and fc7.
      guided: As in layers.relu.
    """

    CLASSIFIER: ClassVar = ("fc6", "fc7", "logits")

    num_classes: int
    dropout: float = 0.5
    dropout_after: bool = False
    local_response_norm: bool = False
    author_weights: bool = False
    axis_name: str | None = None
    widths: Sequence[int] = (64, 192, 384, 256, 256)
    units: int = 4096
    guided: bool = False

    def setup(self):
        def author(name: str) -> dict:
            std, bias = AUTHOR_WEIGHTS[name]
            return {"kernel_init": normal(std), "bias_init": nn.initializers.constant(bias)}

        def dense(name: str, units: int) -> nn.Module:
            return Dense(units, **author(name)) if self.author_weights else FanInDense(units)

        geometry = zip(WINDOWS, (3, *self.widths), self.widths, strict=False)
        for i, ((window, stride, padding), inputs, width) in enumerate(geometry, 1):
            start = {"kernel_init": fan_in_uniform, "bias_init": uniform((window * window * inputs) ** -0.5)}
            start = author(f"conv{i}") if self.author_weights else start
            setattr(self, f"conv{i}", Conv(width, (window, window), strides=stride, padding=padding, **start))
        self.fc6, self.fc7 = dense("fc6", self.units), dense("fc7", self.units)
        self.logits = dense("logits", self.num_classes)
        self.act = functools.partial(relu, guided=self.guided)
        self.drop = Dropout(self.dropout, self.axis_name)

    def features(self, x, train: bool = False):
        """The convolutional part, [B, H, W, 3] -> [B, F]; F is 9,216 for 224x224 pixels."""
        del train
        if min(x.shape[1:3]) < 63:
            raise ModelError(f"alexnet_owt needs images of at least 63x63 pixels, not {x.shape[1]}x{x.shape[2]}")
        pool = functools.partial(max_pool, window=3, stride=2)
        norm = functools.partial(local_response_norm, size=5, alpha=1e-4, beta=0.75, k=2.0)
        if self.local_response_norm:
            x = self.act(pool(norm(self.conv1(x))))
            x = pool(norm(self.act(self.conv2(x))))
        else:
            x = pool(self.act(self.conv1(x)))
            x = pool(self.act(self.conv2(x)))
        x = self.act(self.conv4(self.act(self.conv3(x))))
        x = pool(self.act(self.conv5(x)))
        return x.reshape(x.shape[0], -1)

    def classifier(self, x, train: bool = False):
        """The dense layers, [B, F] -> logits [B, num_classes]."""
        for layer in (self.fc6, self.fc7):
            x = x if self.dropout_after else self.drop(x, train)
            x = self.act(layer(x))
            x = self.drop(x, train) if self.dropout_after else x
        return self.logits(x)

    def __call__(self, x, train: bool = False):
        return self.classifier(self.features(x, train), train)


TinyAlexNet = functools.partial(AlexNetOWT, widths=(4, 8, 8, 8, 8), units=14)  # For tests.

SPECS = {
    "alexnet_owt": ModelSpec(
        module=AlexNetOWT,
        image_shape=(224, 224, 3),
        num_classes=1000,
        author_groups=AUTHOR_GROUPS,
        torchvision=TorchvisionLayout(TORCHVISION_NAMES, flattened={"fc6": 256}),
    )
}
