"""The layers that all models are built from: convolution, pooling, normalization, activations, dropout.

Images are [B, H, W, C]. `axis_name` is the name of the mesh axis of the surrounding shard_map; None on one device.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels.ops import Composite as Composite
from models.cpu_kernels.ops import batch_norm as batch_norm
from models.cpu_kernels.ops import conv_general_dilated, conv_transpose, dot_general, leaky_relu, use_cpu_kernels
from models.cpu_kernels.ops import dense_block as dense_block
from models.cpu_kernels.ops import max_pool as max_pool_kernel
from models.cpu_kernels.ops import repeated as repeated
from models.errors import ModelError
from models.initializers import fan_in_uniform, glorot_uniform, kaiming_normal, uniform

Conv = functools.partial(nn.Conv, kernel_init=kaiming_normal, conv_general_dilated=conv_general_dilated)
Dense = functools.partial(nn.Dense, kernel_init=glorot_uniform, dot_general=dot_general)

# PyTorch's defaults. PyTorch's momentum of 0.1 is the weight of the new batch; Flax's momentum of 0.9 is the weight of
# the running statistics.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def _relu(x):
    return leaky_relu(x, 0.0)


@jax.custom_vjp
def _guided_relu(x):
    return _relu(x)


@jax.custom_vjp
def _guided_gelu(x):
    return jax.nn.gelu(x)


def _guided_backward(x, gradient):
    return (jnp.where(x > 0, jax.nn.relu(gradient), 0.0),)


_guided_relu.defvjp(lambda x: (_relu(x), x), _guided_backward)
_guided_gelu.defvjp(lambda x: (jax.nn.gelu(x), x), _guided_backward)


def relu(x, *, guided: bool = False):
    """max(0, x), elementwise.

    With `guided`, only positive gradients at positive inputs are propagated: guided backpropagation (Springenberg,
    Dosovitskiy, Brox & Riedmiller 2015, "Striving for simplicity", the section on deconvolution). `guided` is a field
    of the models, but not a command-line flag.
    """
    return _guided_relu(x) if guided else _relu(x)


def norm_relu(norm, x, *, use_running_average: bool | None = None, shortcut=None, guided: bool = False):
    """relu(norm(x) + shortcut); `guided` as in `relu`."""
    norm_of = functools.partial(batch_norm, norm, x, use_running_average=use_running_average, shortcut=shortcut)
    return relu(norm_of(), guided=True) if guided else norm_of(slope=0.0)


def gelu(x, *, guided: bool = False):
    """x times the standard normal cumulative distribution function at x, in the tanh approximation (Hendrycks & Gimpel
    2016, "Gaussian error linear units"). With `guided`, the gradient of a guided ReLU is used instead."""
    return _guided_gelu(x) if guided else jax.nn.gelu(x)


def rectified_tanh(x, *, guided: bool = False):
    """max(0, tanh x), elementwise: the rectified sigmoidal unit of the lecture (docs/lecture.md)."""
    return relu(jnp.tanh(x), guided=guided)


ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": relu,
    "rectified_tanh": rectified_tanh,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": gelu,
}
GUIDED = ("relu", "rectified_tanh", "gelu")  # The activations with an argument `guided`.


def activation(name: str, *, slope: float = 0.01, guided: bool = False) -> Callable:
    """Returns the elementwise function `name`; `slope` is the negative slope of leaky_relu, `guided` is as in `relu`
    and applies only to the activations in GUIDED.

    Raises ModelError for an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")
    if name == "leaky_relu":
        return functools.partial(jax.nn.leaky_relu, negative_slope=slope)
    if guided and name in GUIDED:
        return functools.partial(ACTIVATIONS[name], guided=True)
    return ACTIVATIONS[name]


def max_pool(x, window: int, *, stride: int | None = None, padding: int = 0, ceil: bool = False):
    """Max pooling, [B, H, W, C] -> [B, h, w, C].

    The gradient goes to the first maximum of a window, in row-major order, on every platform. It is written with
    strided slices because XLA's gradient of max pooling (select-and-scatter) is several times slower on a CPU and not
    deterministic on a GPU. On CPUs, a C kernel computes overlapping windows; it does not support forward-mode
    differentiation (jax.jvp).

    Args:
      x: Images.
      window: Side of the window in pixels.
      stride: Stride in pixels; None means `window`.
      padding: Pixels of minus infinity on each side.
      ceil: Keep windows that extend beyond the right and bottom edges, instead of dropping the remaining pixels.
    """
    stride = stride or window
    more = [-(size + 2 * padding - window) % stride if ceil else 0 for size in x.shape[1:3]]
    size = tuple((n + 2 * padding + extra - window) // stride + 1 for n, extra in zip(x.shape[1:3], more, strict=True))

    def by_views(x):
        edges = [(padding, padding + extra, 0) for extra in more]
        x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
        height, width = ((n - 1) * stride + 1 for n in size)
        sides, places = (height, width), [(i, j) for i in range(window) for j in range(window)]
        views = [strided_slice(x, place, stride, sides) for place in places]
        return functools.reduce(lambda best, view: jnp.where(_is_larger(view, best), view, best), views)

    if stride < window and use_cpu_kernels(x) and min(*x.shape, *size) > 0:  # Windows that overlap.
        return max_pool_kernel(x, size, window, stride, padding, by_views)
    return by_views(x)


def crop(x, size: tuple[int, int]):
    """The top left pixels, x[:, : size[0], : size[1]], of images [B, H, W, C]; see `strided_slice`."""
    return strided_slice(x, (0, 0), 1, size)


def strided_slice(x, start: tuple[int, int], stride: int, sides: tuple[int, int] | None = None):
    """x[:, top :: stride, left :: stride] of images [B, H, W, C] for `start` = (top, left), up to `sides` rows and
    columns further. For a symbolic batch size, as in an export, NumPy's notation would become a gather."""
    ends = x.shape[1:3] if sides is None else [a + side for a, side in zip(start, sides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))


def _is_larger(x, best):
    """True where x is larger than best or NaN: NaN propagates through the maximum, so that divergence is visible."""
    return (x > best) | jnp.isnan(x)


def max_pool_with_indices(x_BHWC, window: int = 2):
    """Max pooling with stride `window` that also returns the positions of the maxima (Badrinarayanan, Kendall & Cipolla
    2015, "SegNet", section 3).

    Windows may extend beyond the right and bottom edges: h = ceil(H / window).

    Returns:
      (maxima, indices), both [B, h, w, C]. An index, uint8, is the position of the window's first maximum in row-major
      order.
    """
    more = [-size % window for size in x_BHWC.shape[1:3]]
    low = jnp.asarray(-jnp.inf, x_BHWC.dtype)
    x_BHWC = lax.pad(x_BHWC, low, ((0, 0, 0), *((0, extra, 0) for extra in more), (0, 0, 0)))
    best = strided_slice(x_BHWC, (0, 0), window)
    indices = jnp.zeros(best.shape, jnp.uint8)
    for place in range(1, window**2):
        view = strided_slice(x_BHWC, divmod(place, window), window)
        better = _is_larger(view, best)
        best, indices = jnp.where(better, view, best), jnp.where(better, jnp.uint8(place), indices)
    return best, indices


def unpool(x_BhwC, indices_BhwC, size: tuple[int, int], window: int = 2):
    """Max unpooling, [B, h, w, C] -> [B, *size, C]: puts each value at the position that `max_pool_with_indices` found,
    and zeros elsewhere.

    It is written with comparisons because XLA's scatter is slow on a CPU and not deterministic on a GPU.
    """
    batch, height, width, channels = x_BhwC.shape
    places = jnp.arange(window**2, dtype=indices_BhwC.dtype).reshape(1, 1, window, 1, window, 1)
    here = indices_BhwC[:, :, None, :, None] == places
    unpooled = jnp.where(here, x_BhwC[:, :, None, :, None], jnp.zeros((), x_BhwC.dtype))
    return crop(unpooled.reshape(batch, height * window, width * window, channels), size)


def avg_pool(x, window: int):
    """Average pooling of [B, H, W, C] with stride `window`; remaining pixels at the right and bottom are dropped."""
    return nn.avg_pool(x, (window, window), strides=(window, window))


def local_response_norm(x, *, size: int, alpha: float, beta: float, k: float = 1.0):
    """Local response normalization of [..., C]: x / (k + alpha / size * sum of x^2 over `size` adjacent channels)^beta
    (Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification", section 3.3; alpha is divided by `size` as in
    cuda-convnet and Caffe)."""
    before = size // 2
    padded = jnp.pad(x * x, ((0, 0),) * (x.ndim - 1) + ((before, size - 1 - before),))
    total = lax.reduce_window(padded, 0.0, lax.add, (1,) * (x.ndim - 1) + (size,), (1,) * x.ndim, "VALID")
    return x * (k + alpha / size * total) ** -beta


class FanInDense(nn.Dense):
    """A dense layer [B, M] -> [B, features] with weights and biases initialized from U(-1 / sqrt(M), 1 / sqrt(M))."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", fan_in_uniform, (inputs.shape[-1], self.features))
        product = dot_general(inputs, kernel, (((1,), (0,)), ((), ())))
        return product + self.param("bias", uniform(inputs.shape[-1] ** -0.5), (self.features,))[None]


class ConvTranspose(nn.Module):
    """Transposed convolution without bias, [B, h, w, C] -> [B, h * stride, w * stride, features].

    It is the gradient of a convolution that divides the size by `stride`, with `padding` pixels above and to the left.
    An output pixel is a sum of C * (window / stride)^2 products, stride^2 times fewer than the fan-in with which
    `kaiming_normal` scales the kernel, so by default the initial output is smaller than that of a convolution.
    """

    features: int
    window: int = 4
    stride: int = 2
    padding: int = 1
    kernel_init: Callable = kaiming_normal

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.window, self.window, x.shape[-1], self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        size = (x.shape[1] * self.stride, x.shape[2] * self.stride)
        return conv_transpose(x, kernel, (self.stride,) * 2, ((self.padding,) * 2,) * 2, size)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014, "Dropout", section 10): x * mask / (1 - rate) in training, x in
    evaluation.

    An example's mask depends only on the key and on the example's index in the global batch, so the result is the same
    on any number of devices. A step that processes the batch in parts passes the indices of its rows as a variable (see
    `batch_rows`); otherwise they follow from the device's index on `axis_name`.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        if not train or self.rate == 0.0:
            return x
        assert self.scope is not None
        keep, root = 1.0 - self.rate, self.scope.root
        given = root.has_variable("batch", "rows")
        rows = root.get_variable("batch", "rows") if given else global_rows(x.shape[0], self.axis_name)
        keys = row_keys(self.make_rng("dropout"), rows)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (x[0].size,)))(keys).reshape(x.shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))


def batch_rows(rows) -> dict:
    """Returns the variables for `apply` that give `Dropout` the indices [B] of the rows in the global batch."""
    return {"batch": {"rows": rows}}


def global_rows(count: int, axis_name: str | None):
    """Returns the indices in the global batch of this device's `count` rows; `axis_name` is the mesh axis."""
    return (lax.axis_index(axis_name) * count if axis_name else 0) + jnp.arange(count)


def row_keys(key, rows):
    """Returns keys [B]: `key` folded with each row's index in the global batch; `rows` [B] are the indices."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
