"""The network for CIFAR-10 with 11 % error of Krizhevsky's cuda-convnet (its file layers-cifar10-11pct.cfg).

conv 5x5x64 - pool 3/2 - LRN - conv 5x5x64 - LRN - pool 3/2 - local 3x3x64 - local 3x3x32 - dense. "Local" layers are
convolutions whose weights are not shared between positions. Pooling windows overlap and may be partly outside the image
(24 - 12 - 6 pixels). The input is a crop of 24x24 pixels.
"""

import functools

import flax.linen as nn

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
    """Images [B, H, W, 3] -> logits [B, num_classes]; 2,112,970 parameters for 24x24 pixels and ten classes.

    Weights are initialized as in the source, from N(0, std^2) with std 0.0001, 0.01, 0.04, 0.04, 0.01; biases are zero.
    """

    num_classes: int
    guided: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        del train
        act = functools.partial(relu, guided=self.guided)
        lrn = functools.partial(local_response_norm, size=9, alpha=0.001, beta=0.75)
        pool = functools.partial(max_pool, window=3, stride=2, ceil=True)
        x = PIXEL_STD * x
        x = act(Conv(64, (5, 5), padding=((2, 2), (2, 2)), kernel_init=normal(0.0001), name="conv1")(x))
        x = lrn(pool(x))
        x = act(Conv(64, (5, 5), padding=((2, 2), (2, 2)), kernel_init=normal(0.01), name="conv2")(x))
        x = pool(lrn(x))
        for name, width in (("local3", 64), ("local4", 32)):
            local = nn.ConvLocal(width, (3, 3), padding=((1, 1), (1, 1)), kernel_init=normal(0.04), name=name)
            x = act(local(x))
        return Dense(self.num_classes, kernel_init=normal(0.01), name="logits")(x.reshape(x.shape[0], -1))


SPECS = {"cuda_convnet": ModelSpec(module=CudaConvNet, image_shape=(32, 32, 3), author_groups=AUTHOR_GROUPS)}
