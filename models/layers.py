"""Building blocks of every network: the one place where convolution, pooling, batch norm and dropout are chosen.

Images are NHWC. `axis_name` is the device axis of the surrounding pmap or shard_map, None on one device.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from models.cpu_kernels.ops import conv_general_dilated, conv_transpose, dot_general
from models.initializers import glorot_uniform, kaiming_normal

Conv = functools.partial(nn.Conv, kernel_init=kaiming_normal, conv_general_dilated=conv_general_dilated)
Dense = functools.partial(nn.Dense, kernel_init=glorot_uniform, dot_general=dot_general)

# Decay 0.9 of the running statistics (torch's momentum 0.1) and epsilon 1e-5, the defaults of both peers.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


_GUIDED = contextvars.ContextVar("guided", default=False)
_ROWS = contextvars.ContextVar("rows", default=None)


@contextlib.contextmanager
def rows_of_batch(places):
    """Inside it, `row_keys` takes `places` [rows] for its rows' places in the global batch: for a step that works on
    parts of the batch. It acts when a function is traced."""
    token = _ROWS.set(places)
    try:
        yield
    finally:
        _ROWS.reset(token)


@contextlib.contextmanager
def guided_backprop():
    """Inside it, `relu` and `gelu` pass back only positive gradients through positive inputs: guided backpropagation
    (Springenberg, Dosovitskiy, Brox & Riedmiller 2015, "Striving for simplicity", the section on deconvolution).

    It acts when a function is traced, not when it runs: open it inside the function that is compiled.
    """
    token = _GUIDED.set(True)
    try:
        yield
    finally:
        _GUIDED.reset(token)


@jax.custom_vjp
def _guided_relu(x):
    return jax.nn.relu(x)


@jax.custom_vjp
def _guided_gelu(x):
    return jax.nn.gelu(x)


def _guided_backward(x, gradient):
    return (jnp.where(x > 0, jax.nn.relu(gradient), 0.0),)


_guided_relu.defvjp(lambda x: (jax.nn.relu(x), x), _guided_backward)
_guided_gelu.defvjp(lambda x: (jax.nn.gelu(x), x), _guided_backward)


def relu(x):
    """max(0, x), elementwise; the one ReLU of every network, so that `guided_backprop` reaches it."""
    return _guided_relu(x) if _GUIDED.get() else jax.nn.relu(x)


def gelu(x):
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016), in the approximation by tanh. Guided
    backpropagation treats it as the ReLU that it smooths."""
    return _guided_gelu(x) if _GUIDED.get() else jax.nn.gelu(x)


def rectified_tanh(x):
    """max(0, tanh x), the lecture's rectified sigmoidal unit."""
    return relu(jnp.tanh(x))


ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": relu,
    "rectified_tanh": rectified_tanh,
    "leaky_relu": jax.nn.leaky_relu,
}


def activation(name: str, *, slope: float = 0.01) -> Callable:
    """The elementwise function called `name`; `slope` is that of leaky_relu for x < 0.

    Raises ValueError for an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(sorted(ACTIVATIONS))}")
    if name == "leaky_relu":
        return functools.partial(jax.nn.leaky_relu, negative_slope=slope)
    return ACTIVATIONS[name]


def max_pool(x, window: int, *, stride: int | None = None, padding: int = 0, ceil: bool = False):
    """Max pooling of [B, H, W, C] by window x window every `stride` pixels (the window's side if None), with `padding`
    pixels of minus infinity on each side; a remainder at the right or bottom is dropped, or with `ceil` a window that
    lies partly inside.

    The gradient goes to the first maximum of a window, in row order, on every platform. Written with strided slices:
    XLA's own gradient (select-and-scatter) is several times slower on a CPU and not deterministic on a GPU.
    """
    stride = stride or window
    more = [-(size + 2 * padding - window) % stride if ceil else 0 for size in x.shape[1:3]]
    if padding or any(more):
        edges = [(padding, padding + extra, 0) for extra in more]
        x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    height, width = ((size - window) // stride * stride + 1 for size in x.shape[1:3])
    views = [x[:, i : i + height : stride, j : j + width : stride] for i in range(window) for j in range(window)]
    return functools.reduce(lambda best, view: jnp.where(view > best, view, best), views)


def max_pool_with_indices(x_BHWC, window: int = 2):
    """(maxima, indices), both [B, h, w, C], of windows of `window` pixels a side that do not overlap; the last ones may
    lie partly inside: h = ceil(H / window).

    An index, uint8, is the place of the first maximum in its window, in row order: two bits for a window of two
    (Badrinarayanan, Kendall & Cipolla 2015, "SegNet", section 3).
    """
    more = [-size % window for size in x_BHWC.shape[1:3]]
    low = jnp.asarray(-jnp.inf, x_BHWC.dtype)
    x_BHWC = lax.pad(x_BHWC, low, ((0, 0, 0), *((0, extra, 0) for extra in more), (0, 0, 0)))
    best = x_BHWC[:, ::window, ::window]
    indices = jnp.zeros(best.shape, jnp.uint8)
    for place in range(1, window**2):
        view = x_BHWC[:, place // window :: window, place % window :: window]
        better = view > best
        best, indices = jnp.where(better, view, best), jnp.where(better, jnp.uint8(place), indices)
    return best, indices


def unpool(x_BhwC, indices_BhwC, size: tuple[int, int], window: int = 2):
    """The opposite of `max_pool_with_indices`: each value at its maximum's place in [B, *size, C], zeros elsewhere.

    Written with comparisons alone: XLA's scatter is slow on a CPU and not deterministic on a GPU.
    """
    batch, height, width, channels = x_BhwC.shape
    places = jnp.arange(window**2, dtype=indices_BhwC.dtype).reshape(1, 1, window, 1, window, 1)
    here = indices_BhwC[:, :, None, :, None] == places
    unpooled = jnp.where(here, x_BhwC[:, :, None, :, None], jnp.zeros((), x_BhwC.dtype))
    return unpooled.reshape(batch, height * window, width * window, channels)[:, : size[0], : size[1]]


def avg_pool(x, window: int):
    """Non-overlapping average pooling of [B, H, W, C]; a remainder at the right or bottom is dropped."""
    return nn.avg_pool(x, (window, window), strides=(window, window))


def local_response_norm(x, *, size: int, alpha: float, beta: float, k: float = 1.0):
    """x / (k + alpha / size * sum of x^2 over `size` neighbouring channels)^beta, for [..., C] (Krizhevsky et al. 2012,
    section 3.3, with alpha divided by the size as cuda-convnet and Caffe do)."""
    before = size // 2
    padded = jnp.pad(x * x, ((0, 0),) * (x.ndim - 1) + ((before, size - 1 - before),))
    total = lax.reduce_window(padded, 0.0, lax.add, (1,) * (x.ndim - 1) + (size,), (1,) * x.ndim, "VALID")
    return x * (k + alpha / size * total) ** -beta


def gather_columns(x, features: int, axis_name: str | None):
    """[B, features] from every device's share of the columns, filled up at the end; x itself without an axis."""
    return lax.all_gather(x, axis_name, axis=-1, tiled=True)[..., :features] if axis_name else x


class ConvTranspose(nn.Module):
    """Transposed convolution without bias, [B, h, w, C] -> [B, h x stride, w x stride, features]: the gradient of a
    convolution that divides the size by `stride`, with `padding` pixels on its upper and left sides."""

    features: int
    window: int = 4
    stride: int = 2
    padding: int = 1
    kernel_init: Callable = kaiming_normal

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.window, self.window, x.shape[-1], self.features))
        size = (x.shape[1] * self.stride, x.shape[2] * self.stride)
        return conv_transpose(x, kernel, (self.stride,) * 2, ((self.padding,) * 2,) * 2, size)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014, section 10): x * mask / (1 - rate) in training, x in evaluation.

    The mask of an example depends on the key and the example's row in the global batch alone, so the result is the
    same on any number of devices.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        keys = row_keys(self.make_rng("dropout"), x.shape[0], axis_name=self.axis_name)
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (x[0].size,)))(keys).reshape(x.shape)
        return jnp.where(mask, x / keep, jnp.zeros_like(x))


def row_keys(key, rows: int, *, axis_name: str | None = None):
    """One key for each of this device's `rows` rows [rows], made from the row's place in the global batch."""
    places = _ROWS.get()
    if places is None:
        places = (lax.axis_index(axis_name) * rows if axis_name else 0) + jnp.arange(rows)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(places)
