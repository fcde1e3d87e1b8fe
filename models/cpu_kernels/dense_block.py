"""Dense blocks (Huang et al. 2016, "Densely connected convolutional networks") with fused batch norm and ReLU.

Each layer of a dense block reads all preceding feature maps. When layers are computed one by one, batch norm and ReLU
write the same amount of memory again, as do the gradients of the concatenations. Here, the statistics of each feature
map are computed once, the kernels apply batch norm and ReLU while reading the convolution's input, and all feature maps
share one buffer, as do their gradients, so memory grows linearly with depth.

There is no fallback to XLA here; `ops.dense_block` chooses between the two.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models.cpu_kernels import ffi
from models.cpu_kernels.batch_norm import variance


class Composite(NamedTuple):
    """The paper's composite function H: batch norm, ReLU and convolution, then dropout.

    Attributes:
      norm: flax.linen.BatchNorm, bound to the network's scope.
      conv: flax.linen.Conv without bias, with an odd window, stride 1 and "same" zero padding; None after the last
        block, where global pooling follows the ReLU.
      drop: Function that applies dropout to the result; None without dropout.
    """

    norm: nn.BatchNorm
    conv: nn.Conv | None
    drop: Callable | None = None


def _statistics(x_BHWC, axis: str | None):
    """Returns mean and variance [2, C] over the batch on all devices, computed as flax.linen.BatchNorm does."""
    mean, square = x_BHWC.mean((0, 1, 2)), (x_BHWC * x_BHWC).mean((0, 1, 2))
    if axis:
        mean, square = lax.pmean((mean, square), axis)
    return jnp.stack([mean, variance((mean, square))])


def _statistics_backward(gradient_2C, x_BHWC, mean, axis: str | None):
    """Returns the gradient of x from the gradient of its statistics."""
    if axis:
        gradient_2C = lax.pmean(gradient_2C, axis)
    d_mean, d_variance = gradient_2C.reshape(2, 1, 1, 1, -1) / x_BHWC[..., 0].size
    return d_mean + 2 * d_variance * (x_BHWC - mean.reshape(1, 1, 1, -1))


def batch_norm_affine(norm: Mapping, statistics_2C, *, epsilon: float):
    """Returns a and b [2, C] such that batch norm with parameters `norm` (scale, bias) is a x + b."""
    a = norm["scale"] * lax.rsqrt(statistics_2C[1] + np.float32(epsilon))
    return jnp.stack([a, norm["bias"] - statistics_2C[0] * a])


def _affine(norm: dict, statistics_2W, epsilon: float):
    """`batch_norm_affine` computed by a kernel, from the first C of W channels."""
    operands = (norm["scale"], norm["bias"], statistics_2W)
    return ffi.call("affine", (2, len(norm["scale"])), *operands, epsilon=np.float32(epsilon))


def _affine_backward(total_2W, gradient_2C, norm: dict, statistics_2W, epsilon: float):
    """Returns `total` with the gradient of the statistics added in place, and the gradient of `norm`."""
    shapes, operands = [total_2W.shape, gradient_2C.shape], (total_2W, gradient_2C, norm["scale"], statistics_2W)
    total, d_norm = ffi.call("affine_gradient", shapes, *operands, aliases={0: 0}, epsilon=np.float32(epsilon))
    return total, {"scale": d_norm[0], "bias": d_norm[1]}


def update_running_stats(running: Mapping, statistics_2W, *, momentum: float) -> dict:
    """Returns batch norm's running statistics (mean and var [C]) after one more batch.

    Args:
      running: The running statistics before this batch.
      statistics_2W: Mean and variance of the batch [2, W]; the first C of W channels are used.
      momentum: Decay of the running statistics.
    """
    shapes = [running["mean"].shape] * 2
    operands = (running["mean"], running["var"], lax.stop_gradient(statistics_2W))
    mean, variance = ffi.call("update_running_stats", shapes, *operands, momentum=np.float32(momentum))
    return {"mean": mean, "var": variance}


def _same_padding(kernel):
    return tuple((side // 2, side // 2) for side in kernel.shape[:2])


def _convolve(x_BHWW, ab_2C, kernel):
    """Convolves relu(a x + b), for the first C of W channels of x, with a kernel [h, w, C, O] and "same" padding."""
    shape = (*x_BHWW.shape[:3], kernel.shape[3])
    window = ffi.window_attribute((1, 1), _same_padding(kernel))
    return ffi.call("convolution", shape, x_BHWW, kernel, ab_2C, window=window)


def _convolve_backward(total_BHWW, x_BHWW, ab_2C, kernel, gradient_BHWO):
    """Returns `total` with the gradient of x added in place, the gradient of a and b, and the gradient of the
    kernel."""
    window = ffi.window_attribute((1, 1), _same_padding(kernel))
    d_kernel = ffi.call("kernel_gradient", kernel.shape, x_BHWW, gradient_BHWO, ab_2C, window=window)
    # The gradient of a "same" convolution's input is the "same" convolution with the rotated and transposed kernel.
    rotated = kernel.transpose(0, 1, 3, 2)[::-1, ::-1]
    shape = (*gradient_BHWO.shape[:3], rotated.shape[3])
    d_normalized = ffi.call("convolution", shape, gradient_BHWO, rotated, window=window)
    operands, shapes = (total_BHWW, d_normalized, x_BHWW, ab_2C), [total_BHWW.shape, ab_2C.shape]
    total, d_ab = ffi.call("affine_relu_gradient", shapes, *operands, aliases={0: 0})
    return total, d_ab, d_kernel


@jax.custom_vjp
def affine_relu_convolution(x_BHWC, ab_2C, kernel):
    """Returns the convolution [B, H, W, O] of relu(a x + b), with stride 1 and "same" zero padding.

    Args:
      x_BHWC: float32 images.
      ab_2C: a and b per channel, from `batch_norm_affine`.
      kernel: [h, w, C, O], h and w odd.
    """
    return _convolve(x_BHWC, ab_2C, kernel)


def _affine_relu_convolution_backward(saved, gradient):
    x, ab, kernel = saved
    return _convolve_backward(jnp.zeros_like(x), x, ab, kernel, gradient)


def _affine_relu_convolution_forward(x, ab, kernel):
    return _convolve(x, ab, kernel), (x, ab, kernel)


affine_relu_convolution.defvjp(_affine_relu_convolution_forward, _affine_relu_convolution_backward)


def _bottleneck_output(h, layer: dict, axis: str | None, epsilon: float):
    """Applies bn2, ReLU and conv2 to h; returns the output and the statistics of h."""
    statistics = _statistics(h, axis)
    ab = batch_norm_affine(layer["bn2"], statistics, epsilon=epsilon)
    return affine_relu_convolution(h, ab, layer["conv2"]), statistics


def _forward(x, layers: list[dict], axis: str | None, epsilon: float):
    first = x.shape[-1]
    growth = layers[0]["conv2" if "conv2" in layers[0] else "conv1"].shape[-1]
    maps = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, growth * len(layers))))
    statistics, vjps, bottleneck_statistics = _statistics(x, axis), [], []
    for i, layer in enumerate(layers):
        y = _convolve(maps, _affine(layer["bn1"], statistics, epsilon), layer["conv1"])
        if "conv2" in layer:
            second = {name: layer[name] for name in ("bn2", "conv2")}
            output = functools.partial(_bottleneck_output, axis=axis, epsilon=epsilon)
            (y, of_h), vjp = jax.vjp(output, y, second)
            vjps.append(vjp)
            bottleneck_statistics.append(of_h)
        maps = lax.dynamic_update_slice(maps, y, (0, 0, 0, first + i * growth))
        statistics = jnp.concatenate([statistics, _statistics(y, axis)], axis=1)
    return (maps, statistics, bottleneck_statistics), (maps, statistics, layers, vjps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_block(x_BHWC, layers: list[dict], axis: str | None, epsilon: float):
    """Applies a dense block in training mode.

    Args:
      x_BHWC: float32 feature maps.
      layers: The parameters of each layer: "bn1" (scale, bias), "conv1" (kernel), and in the bottleneck form also "bn2"
        and "conv2". All layers have the same growth rate k.
      axis: Name of the mesh axis over which batch statistics are averaged; None on one device.
      epsilon: Batch norm's epsilon.

    Returns:
      (feature maps [B, H, W, C + k * layers], their batch statistics [2, C + k * layers], the batch statistics of each
      bottleneck's feature maps). Statistics are mean and variance.
    """
    return _forward(x_BHWC, layers, axis, epsilon)[0]


def _backward(axis, epsilon, saved, gradients):
    maps, statistics, layers, vjps = saved
    total, d_statistics, d_bottleneck_statistics = gradients
    end, d_layers = maps.shape[-1], []

    def of_maps(begin):
        """The gradient of the feature maps `begin` to `end`, to which all layers that read them have contributed."""
        through_statistics = _statistics_backward(
            d_statistics[:, begin:end], maps[..., begin:end], statistics[0, begin:end], axis
        )
        return total[..., begin:end] + through_statistics

    for i, layer in reversed(list(enumerate(layers))):
        begin = end - layer["conv2" if vjps else "conv1"].shape[-1]
        gradient, d_second = of_maps(begin), {}
        if vjps:
            gradient, d_second = vjps[i]((gradient, d_bottleneck_statistics[i]))
        ab = _affine(layer["bn1"], statistics, epsilon)
        total, d_ab, d_kernel = _convolve_backward(total, maps, ab, layer["conv1"], gradient)
        d_statistics, d_norm = _affine_backward(d_statistics, d_ab, layer["bn1"], statistics, epsilon)
        d_layers.append({"bn1": d_norm, "conv1": d_kernel} | d_second)
        end = begin
    return of_maps(0), d_layers[::-1]


dense_block.defvjp(_forward, _backward)


def _update_running_stats(norm: nn.BatchNorm, statistics_2W):
    updated = update_running_stats(norm.variables["batch_stats"], statistics_2W, momentum=norm.momentum)
    for name, value in updated.items():
        norm.put_variable("batch_stats", name, value)


class FusedDenseBlock(nn.Module):
    """A dense block and the composite function after it, in training mode: the kernel form of `ops.dense_block`.

    It has no variables of its own. It reads and updates the layers' variables, so the parameters are the same as when
    the layers are called one by one.

    Attributes:
      layers: The composite functions of each layer: one, or two in the bottleneck form.
      after: The composite function applied to all feature maps of the block.
      relu: The ReLU after the last batch norm of a network.
    """

    layers: Sequence[Sequence[Composite]]
    after: Composite
    relu: Callable

    def __call__(self, x_BHWC):
        def weights(layer: Sequence[Composite]) -> dict[str, Any]:
            norms = {f"bn{i}": part.norm.variables["params"] for i, part in enumerate(layer, 1)}
            return norms | {f"conv{i}": kernel(part.conv) for i, part in enumerate(layer, 1)}

        def kernel(conv) -> Any:
            return conv.variables["params"]["kernel"]

        norm = self.after.norm
        parameters = [weights(layer) for layer in self.layers]
        maps, statistics, of_bottlenecks = dense_block(x_BHWC, parameters, norm.axis_name, norm.epsilon)
        for i, layer in enumerate(self.layers):
            for part, batch in zip(layer, (statistics, *of_bottlenecks[i : i + 1]), strict=True):
                _update_running_stats(part.norm, batch)
        _update_running_stats(norm, statistics)
        ab = batch_norm_affine(norm.variables["params"], statistics, epsilon=norm.epsilon)
        if self.after.conv is None:
            a, b = ab.reshape(2, 1, 1, 1, -1)
            return self.relu(a * maps + b)
        return affine_relu_convolution(maps, ab, kernel(self.after.conv))
