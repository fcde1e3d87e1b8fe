"""Krizhevsky's cuda-convnet network for CIFAR-10 with 11 % error (layers-cifar10-11pct.cfg)."""

import functools

import flax.linen as nn

from models.errors import ModelError
from models.initializers import normal
from models.layers import Conv, Dense, local_response_norm, max_pool, relu
from models.model_spec import ModelSpec

# The author's inputs are pixels 0 to 255 minus the mean, with standard deviation 64 on CIFAR-10. His initialization and
# learning rates depend on that scale; the inputs here have standard deviation one.
PIXEL_STD = 64.0

# The author's (parameter path, learning-rate multiplier, weight-decay multiplier), from layer-params-cifar10-11pct.cfg:
# weight decay is 0.004 for the local layers, 0.01 for the dense layer, and 0 elsewhere.
AUTHOR_GROUPS = ((r"bias$", 2.0, 0.0), (r"^conv", 1.0, 0.0), (r"^local", 1.0, 1.0), (r"^logits", 1.0, 2.5))


class CudaConvNet(nn.Module):
    """Images [B, H, W, 3] -> logits [B, num_classes] (cuda-convnet's layers-cifar10-11pct.cfg).

    | layer  | output for 24x24 pixels | window                                               |
    |--------|-------------------------|------------------------------------------------------|
    | conv1  | 12x12x64                | 5x5; max pooling 3, stride 2; local response norm    |
    | conv2  | 6x6x64                  | 5x5; local response norm; max pooling 3, stride 2    |
    | local3 | 6x6x64                  | 3x3, weights not shared between positions            |
    | local4 | 6x6x32                  | 3x3, weights not shared between positions            |
    | logits | num_classes             | dense                                                |

    ReLU follows each layer except the last. Pooling windows overlap and may extend beyond the image. For the source's
    crops of 24x24 pixels and ten classes there are 2,112,970 parameters and 19,512,576 multiply-adds. Weights
    are initialized as in the source, from N(0, std^2) with std 0.0001, 0.01, 0.04, 0.04, 0.01; biases are zero.
    Difference from the source: inputs have standard deviation one and are multiplied by `PIXEL_STD`. Raises
    ModelError for images of less than 4x4 pixels.

    Attributes:
      num_classes: Number of classes.
      guided: As in layers.relu.
    """

    num_classes: int
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        if min(x.shape[1:3]) < 4:
            raise ModelError(f"cuda_convnet needs images of at least 4x4 pixels, not {x.shape[1]}x{x.shape[2]}")
        conv = functools.partial(Conv, 64, (5, 5), padding=2)
        local = functools.partial(nn.ConvLocal, kernel_size=(3, 3), padding=((1, 1), (1, 1)), kernel_init=normal(0.04))
        norm = functools.partial(local_response_norm, size=9, alpha=0.001, beta=0.75)
        pool = functools.partial(max_pool, window=3, stride=2, ceil=True)
        act = functools.partial(relu, guided=self.guided)

        x = norm(pool(act(conv(kernel_init=normal(0.0001), name="conv1")(PIXEL_STD * x))))
        x = pool(norm(act(conv(kernel_init=normal(0.01), name="conv2")(x))))
        x = act(local(64, name="local3")(x))
        x = act(local(32, name="local4")(x))
        return Dense(self.num_classes, kernel_init=normal(0.01), name="logits")(x.reshape(x.shape[0], -1))


SPECS = {"cuda_convnet": ModelSpec(module=CudaConvNet, image_shape=(32, 32, 3), author_groups=AUTHOR_GROUPS)}
