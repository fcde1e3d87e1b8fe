"""Batch norm, ReLU and convolution in one, and dense blocks made of it, for CPUs.

A layer of a dense block reads all maps before it: batch norm and ReLU write as much again, and the gradients of the
concatenations once more. Here every map has its statistics taken once, the kernels of models/cpu normalise while they
copy what a convolution needs, and maps and gradients stay in one buffer each: memory grows linearly with depth.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from models import kernels, native
from models.layers import BatchNorm


def statistics(x_BHWC, axis: str | None):
    """(mean, variance) [C] over the batch on all devices, as flax's batch norm takes them."""
    mean, square = x_BHWC.mean((0, 1, 2)), (x_BHWC * x_BHWC).mean((0, 1, 2))
    if axis:
        mean, square = lax.pmean((mean, square), axis)
    return mean, jnp.maximum(square - mean * mean, 0.0)


def affine(norm: dict, mean, variance):
    """(a, b) for which batch norm is a x + b."""
    a = norm["scale"] * lax.rsqrt(variance + BatchNorm.keywords["epsilon"])
    return a, norm["bias"] - mean * a


def moved(old: dict, mean, variance) -> dict:
    """Batch norm's running statistics after one batch."""
    keep = BatchNorm.keywords["momentum"]
    return {name: keep * old[name] + (1 - keep) * new for name, new in (("mean", mean), ("var", variance))}


def _edges(kernel):
    return tuple((side // 2, side // 2) for side in kernel.shape[:2])


def _plain(x_BHWC, a, b, kernel):
    """What the kernels compute: of x's first channels, as many as a, b and the kernel have."""
    a, b = a.reshape(1, 1, 1, -1), b.reshape(1, 1, 1, -1)
    normalised = jax.nn.relu(a * x_BHWC[..., : a.shape[-1]] + b)
    return kernels.xla_convolution(normalised, kernel, (1, 1), _edges(kernel))


def _plain_gradients(total_BHWC, x_BHWC, a, b, kernel, gradient_BHWO):
    """`total` with the gradient of x added, and the gradients of a, b and the kernel."""
    of_x, *others = jax.vjp(_plain, x_BHWC, a, b, kernel)[1](gradient_BHWO)
    return total_BHWC + of_x, *others


def _convolve(x_BHWC, a, b, kernel):
    like = jax.eval_shape(_plain, x_BHWC, a, b, kernel)
    return native.call("convolution", like, x_BHWC, kernel, a, b, window=native.window((1, 1), _edges(kernel)))


def _gradients(total_BHWC, x_BHWC, a, b, kernel, gradient_BHWO):
    """As `_plain_gradients`; the memory of `total` is used again."""
    *like, like_kernel = jax.eval_shape(_plain_gradients, total_BHWC, x_BHWC, a, b, kernel, gradient_BHWO)
    window = native.window((1, 1), _edges(kernel))
    of_kernel = native.call("kernel_gradient", like_kernel, x_BHWC, gradient_BHWO, a, b, window=window)
    of_normalised = kernels.spread(gradient_BHWO, kernel, padding=_edges(kernel), size=x_BHWC.shape[1:3])
    operands = (total_BHWC, of_normalised, x_BHWC, a, b)
    total, of_a, of_b = native.call("normalised_gradient", tuple(like), *operands, aliases={0: 0})
    return total, of_a, of_b, of_kernel


@jax.custom_vjp
def convolution(x_BHWC, a, b, kernel):
    """The convolution of relu(a x + b), stride 1, an odd window, padded with zeros to the same size."""
    return _convolve(x_BHWC, a, b, kernel)


def _convolution_backward(saved, gradient):
    x, a, b, kernel = saved
    return _gradients(jnp.zeros_like(x), x, a, b, kernel, gradient)


def _convolution_forward(x, a, b, kernel):
    return _convolve(x, a, b, kernel), (x, a, b, kernel)


convolution.defvjp(_convolution_forward, _convolution_backward)


def _second(h, layer: dict, axis: str | None):
    """(the layer's maps, their batch norm's statistics) from those of a bottleneck."""
    found = statistics(h, axis)
    return convolution(h, *affine(layer["bn2"], *found), layer["conv2"]), found


def _forward(x, layers: list[dict], axis: str | None):
    first = x.shape[-1]
    growth = layers[0]["conv2" if "conv2" in layers[0] else "conv1"].shape[-1]
    maps = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, growth * len(layers))))
    (mean, variance), pulls, seconds = statistics(x, axis), [], []
    for i, layer in enumerate(layers):
        a, b = affine(layer["bn1"], mean, variance)
        y = _convolve(maps, a, b, layer["conv1"])
        if "conv2" in layer:
            rest = {name: layer[name] for name in ("bn2", "conv2")}
            (y, found), pull = jax.vjp(functools.partial(_second, axis=axis), y, rest)
            pulls.append(pull)
            seconds.append(found)
        maps = lax.dynamic_update_slice(maps, y, (0, 0, 0, first + i * growth))
        more = statistics(y, axis)
        mean, variance = jnp.concatenate([mean, more[0]]), jnp.concatenate([variance, more[1]])
    return (maps, mean, variance, seconds), (maps, mean, variance, layers, pulls)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def block(x_BHWC, layers: list[dict], axis: str | None):
    """(all maps, their means, their variances, those of each bottleneck's maps) of a dense block. A layer is its
    parameters: bn1 and conv1, of a bottleneck bn2 and conv2 too."""
    return _forward(x_BHWC, layers, axis)[0]


def _backward(axis, saved, gradients):
    maps, mean, variance, layers, pulls = saved
    total, of_mean, of_variance, of_seconds = gradients
    end, found = maps.shape[-1], []

    def own(begin):
        """The gradient of the maps between `begin` and `end`, after all that read them."""
        _, pull = jax.vjp(functools.partial(statistics, axis=axis), maps[..., begin:end])
        return total[..., begin:end] + pull((of_mean[begin:end], of_variance[begin:end]))[0]

    for i, layer in reversed(list(enumerate(layers))):
        begin = end - layer["conv2" if pulls else "conv1"].shape[-1]
        gradient, rest = own(begin), {}
        if pulls:
            gradient, rest = pulls[i]((gradient, of_seconds[i]))
        (a, b), pull = jax.vjp(affine, layer["bn1"], mean[:begin], variance[:begin])
        total, of_a, of_b, of_kernel = _gradients(total, maps, a, b, layer["conv1"], gradient)
        of_norm, more_mean, more_variance = pull((of_a, of_b))
        of_mean, of_variance = of_mean.at[:begin].add(more_mean), of_variance.at[:begin].add(more_variance)
        found.append({"bn1": of_norm, "conv1": of_kernel} | rest)
        end = begin
    return own(0), found[::-1]


block.defvjp(_forward, _backward)
