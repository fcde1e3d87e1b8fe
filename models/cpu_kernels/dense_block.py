"""Batch norm, ReLU and convolution in one, and dense blocks made of it, for CPUs.

A layer of a dense block reads all maps before it: batch norm and ReLU write as much again, and the gradients of the
concatenations once more. Here every map has its statistics taken once, the kernels of ops.py normalise while they
copy what a convolution needs, and maps and gradients stay in one buffer each: memory grows linearly with depth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.cpu_kernels import build, ops
from models.layers import BatchNorm

EPSILON = np.float32(BatchNorm.keywords["epsilon"])


def statistics(x_BHWC, axis: str | None):
    """Mean and variance [2, C] over the batch on all devices, as flax's batch norm takes them."""
    mean, square = x_BHWC.mean((0, 1, 2)), (x_BHWC * x_BHWC).mean((0, 1, 2))
    if axis:
        mean, square = lax.pmean((mean, square), axis)
    return jnp.stack([mean, jnp.maximum(square - mean * mean, 0.0)])


def _through_statistics(gradient_2C, x_BHWC, mean, axis: str | None):
    """The gradient of x from that of its statistics."""
    if axis:
        gradient_2C = lax.pmean(gradient_2C, axis)
    of_mean, of_variance = gradient_2C.reshape(2, 1, 1, 1, -1) / x_BHWC[..., 0].size
    return of_mean + 2 * of_variance * (x_BHWC - mean.reshape(1, 1, 1, -1))


def affine(norm: dict, found_2C):
    """a and b [2, C] for which batch norm is a x + b."""
    a = norm["scale"] * lax.rsqrt(found_2C[1] + EPSILON)
    return jnp.stack([a, norm["bias"] - found_2C[0] * a])


def _affine(norm: dict, found_2C):
    """`affine` for the first of the statistics, as many as batch norm has channels."""
    operands = (norm["scale"], norm["bias"], found_2C)
    return build.call("affine", (2, len(norm["scale"])), *operands, epsilon=EPSILON)


def _through_affine(total_2C, gradient_2C, norm: dict, found_2C):
    """`total` with the gradient of the statistics added, in the same memory, and that of batch norm's parameters."""
    shapes, operands = [total_2C.shape, gradient_2C.shape], (total_2C, gradient_2C, norm["scale"], found_2C)
    total, of_norm = build.call("affine_gradient", shapes, *operands, aliases={0: 0}, epsilon=EPSILON)
    return total, {"scale": of_norm[0], "bias": of_norm[1]}


def moved(old: dict, found_2C) -> dict:
    """Batch norm's running statistics after a batch with these statistics, or more of which they are the first."""
    shapes, operands = [old["mean"].shape] * 2, (old["mean"], old["var"], lax.stop_gradient(found_2C))
    mean, variance = build.call("moved", shapes, *operands, keep=np.float32(BatchNorm.keywords["momentum"]))
    return {"mean": mean, "var": variance}


def _edges(kernel):
    return tuple((side // 2, side // 2) for side in kernel.shape[:2])


def _convolve(x_BHWC, ab_2C, kernel):
    """The convolution of relu(a x + b), for the first channels of x, as many as a, b and the kernel have."""
    shape = (*x_BHWC.shape[:3], kernel.shape[3])
    return build.call("convolution", shape, x_BHWC, kernel, ab_2C, window=build.window((1, 1), _edges(kernel)))


def _gradients(total_BHWC, x_BHWC, ab_2C, kernel, gradient_BHWO):
    """`total` with the gradient of x added, in the same memory, and the gradients of a and b, and the kernel."""
    window = build.window((1, 1), _edges(kernel))
    of_kernel = build.call("kernel_gradient", kernel.shape, x_BHWC, gradient_BHWO, ab_2C, window=window)
    of_normalised = ops.spread(gradient_BHWO, kernel, padding=_edges(kernel), size=x_BHWC.shape[1:3])
    operands, shapes = (total_BHWC, of_normalised, x_BHWC, ab_2C), [total_BHWC.shape, ab_2C.shape]
    total, of_ab = build.call("normalised_gradient", shapes, *operands, aliases={0: 0})
    return total, of_ab, of_kernel


@jax.custom_vjp
def convolution(x_BHWC, ab_2C, kernel):
    """The convolution of relu(a x + b), stride 1, an odd window, padded with zeros to the same size."""
    return _convolve(x_BHWC, ab_2C, kernel)


def _convolution_backward(saved, gradient):
    x, ab, kernel = saved
    return _gradients(jnp.zeros_like(x), x, ab, kernel, gradient)


def _convolution_forward(x, ab, kernel):
    return _convolve(x, ab, kernel), (x, ab, kernel)


convolution.defvjp(_convolution_forward, _convolution_backward)


def _second(h, layer: dict, axis: str | None):
    """(the layer's maps, their batch norm's statistics) from those of a bottleneck."""
    found = statistics(h, axis)
    return convolution(h, affine(layer["bn2"], found), layer["conv2"]), found


def _forward(x, layers: list[dict], axis: str | None):
    first = x.shape[-1]
    growth = layers[0]["conv2" if "conv2" in layers[0] else "conv1"].shape[-1]
    maps = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, growth * len(layers))))
    found, pulls, seconds = statistics(x, axis), [], []
    for i, layer in enumerate(layers):
        y = _convolve(maps, _affine(layer["bn1"], found), layer["conv1"])
        if "conv2" in layer:
            rest = {name: layer[name] for name in ("bn2", "conv2")}
            (y, second), pull = jax.vjp(functools.partial(_second, axis=axis), y, rest)
            pulls.append(pull)
            seconds.append(second)
        maps = lax.dynamic_update_slice(maps, y, (0, 0, 0, first + i * growth))
        found = jnp.concatenate([found, statistics(y, axis)], axis=1)
    return (maps, found, seconds), (maps, found, layers, pulls)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def block(x_BHWC, layers: list[dict], axis: str | None):
    """(all maps, their statistics, those of each bottleneck's maps) of a dense block. A layer is its parameters: bn1
    and conv1, of a bottleneck bn2 and conv2 too."""
    return _forward(x_BHWC, layers, axis)[0]


def _backward(axis, saved, gradients):
    maps, found, layers, pulls = saved
    total, of_found, of_seconds = gradients
    end, of_layers = maps.shape[-1], []

    def own(begin):
        """The gradient of the maps between `begin` and `end`, after all that read them."""
        through = _through_statistics(of_found[:, begin:end], maps[..., begin:end], found[0, begin:end], axis)
        return total[..., begin:end] + through

    for i, layer in reversed(list(enumerate(layers))):
        begin = end - layer["conv2" if pulls else "conv1"].shape[-1]
        gradient, rest = own(begin), {}
        if pulls:
            gradient, rest = pulls[i]((gradient, of_seconds[i]))
        ab = _affine(layer["bn1"], found)
        total, of_ab, of_kernel = _gradients(total, maps, ab, layer["conv1"], gradient)
        of_found, of_norm = _through_affine(of_found, of_ab, layer["bn1"], found)
        of_layers.append({"bn1": of_norm, "conv1": of_kernel} | rest)
        end = begin
    return own(0), of_layers[::-1]


block.defvjp(_forward, _backward)
