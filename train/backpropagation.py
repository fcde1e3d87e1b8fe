"""The lecture's backpropagation, implemented explicitly, without automatic differentiation.

Forward, for layer l with activations a, weights W and bias b, where * is the valid cross-correlation:

    z^l_ij = (a^(l-1) * W^l)_ij - b^l = sum_k sum_m a^(l-1)_(i+k)(j+m) W^l_km - b^l,    a^l = sigma(z^l)

Backward, the four equations, with the error delta^l = dC / dz^l of each example:

    (1)  delta^L     = dC/da^L . sigma'(z^L)                    at the output
    (2)  delta^(l-1) = (delta^l * flipped W^l) . sigma'(z^(l-1))  with delta^l zero-padded
    (3)  dC/dW^l_km  = sum_ij a^(l-1)_(i+k)(j+m) delta^l_ij
    (4)  dC/db^l     = - sum_ij delta^l_ij

Then W := W - eta / N sum_examples dC/dW, and the same for b. A dense layer has a window as large as the image.

Corrections and additions to the slides:
* (4): the bias is subtracted, so its gradient has a minus sign; with a plus sign, the update would ascend.
* The slides have one bias per position, b_ij, with the gradient -delta_ij. The gradient of a bias that all positions
  share, like the weights, is the sum over the positions.
* (1): softmax is not an elementwise function; with cross-entropy, the error at the output is delta^L = p - y, without
  sigma'.
* Pooling has no weights: max pooling passes the error to the maximum, the first one if tied; average pooling spreads
  it equally over the window.

In the project's parameters, biases are added: bias = -b.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from models import layer_specs
from models import layers as functions
from models.layers import global_rows, row_keys
from train.tasks import losses


def correlate(a_BHWC, w_KLCO, stride: int = 1):
    """The valid cross-correlation [B, h, w, O]: at each position, the sum over the window and the channels."""
    height, width = ((n - k) // stride + 1 for n, k in zip(a_BHWC.shape[1:3], w_KLCO.shape[:2], strict=True))
    total = jnp.zeros((len(a_BHWC), height, width, w_KLCO.shape[-1]), a_BHWC.dtype)
    for k in range(w_KLCO.shape[0]):
        for m in range(w_KLCO.shape[1]):
            total += seen(a_BHWC, k, m, stride, (height, width)) @ w_KLCO[k, m]
    return total


def seen(a_BHWC, k: int, m: int, stride: int, size: tuple[int, int]):
    """The inputs [B, *size, C] at position (k, m) of all windows of a correlation."""
    rows, columns = ((n - 1) * stride + 1 for n in size)
    return a_BHWC[:, k : k + rows : stride, m : m + columns : stride]


def dilated(delta_BhwO, stride: int):
    """Inserts stride - 1 zeros between the errors."""
    return lax.pad(delta_BhwO, jnp.zeros((), delta_BhwO.dtype), ((0, 0, 0), *[(0, 0, stride - 1)] * 2, (0, 0, 0)))


def flipped(w_KLCO):
    """The kernel rotated by 180 degrees, with its inputs and outputs swapped."""
    return w_KLCO[::-1, ::-1].transpose(0, 1, 3, 2)


def error_below(delta_BhwO, w_KLCO, stride: int, size: tuple[int, int]):
    """Equation (2) without sigma': the error [B, *size, C] at the input of a correlation."""
    rows, columns = w_KLCO.shape[:2]
    delta = dilated(delta_BhwO, stride)
    # Pixels beyond the last window have zero error.
    edges = [(k - 1, n - d) for k, n, d in zip((rows, columns), size, delta.shape[1:3], strict=True)]
    return correlate(jnp.pad(delta, ((0, 0), *edges, (0, 0))), flipped(w_KLCO))


def weight_gradient(a_BHWC, delta_BhwO, stride: int, window: tuple[int, int]):
    """Equation (3), summed over the examples: [K, L, C, O]."""
    size = delta_BhwO.shape[1:3]

    def at(k, m):
        return jnp.einsum("bijc,bijo->co", seen(a_BHWC, k, m, stride, size), delta_BhwO)

    return jnp.stack([jnp.stack([at(k, m) for m in range(window[1])]) for k in range(window[0])])


def bias_gradient(delta_BhwO, *, shared: bool = True):
    """Equation (4), summed over the examples: [O] if the positions share the bias, [h, w, O] for the slides' bias."""
    return -delta_BhwO.sum((0, 1, 2) if shared else 0)


def derivative(name: str, z, a, *, slope: float):
    """sigma'(z) of an activation, from z and a = sigma(z). At z = 0, it is 0 for the rectifiers, as in models.layers,
    and 1 for leaky_relu. gelu is the tanh approximation."""
    if name == "tanh":
        return 1 - a**2
    if name == "sigmoid":
        return a * (1 - a)
    if name == "relu":
        return jnp.where(z > 0, jnp.ones_like(z), jnp.zeros_like(z))
    if name == "rectified_tanh":
        return jnp.where(z > 0, 1 - a**2, jnp.zeros_like(z))
    if name == "leaky_relu":
        return jnp.where(z >= 0, jnp.ones_like(z), jnp.full_like(z, slope))
    if name == "gelu":  # Derivative of z (1 + t) / 2, t = tanh(c (z + 0.044715 z^3)), c = sqrt(2 / pi).
        c = math.sqrt(2 / math.pi)
        t = jnp.tanh(c * (z + 0.044715 * z**3))
        return (1 + t) / 2 + c / 2 * z * (1 - t**2) * (1 + 3 * 0.044715 * z**2)
    raise ValueError(f"the derivative of the activation {name!r} is not implemented")


def max_pooling(a_BHWC, window: int, stride: int):
    """Returns (maxima, winner): `winner` is each maximum's position k * window + m in its window, the first if tied."""
    height, width = ((n - window) // stride + 1 for n in a_BHWC.shape[1:3])
    views = [seen(a_BHWC, k, m, stride, (height, width)) for k in range(window) for m in range(window)]
    stacked = jnp.stack(views)
    return stacked.max(0), stacked.argmax(0)


def max_pooling_error(delta_BhwC, winner, window: int, stride: int, size: tuple[int, int]):
    """Places each error at the position of its maximum, [B, *size, C]; errors of overlapping windows are added."""
    total = jnp.zeros((len(delta_BhwC), *size, delta_BhwC.shape[-1]), delta_BhwC.dtype)
    rows, columns = ((n - 1) * stride + 1 for n in delta_BhwC.shape[1:3])
    for k in range(window):
        for m in range(window):
            here = jnp.where(winner == k * window + m, delta_BhwC, jnp.zeros_like(delta_BhwC))
            total = total.at[:, k : k + rows : stride, m : m + columns : stride].add(here)
    return total


def average_pooling(a_BHWC, window: int):
    """Average pooling over non-overlapping windows."""
    height, width = (n // window for n in a_BHWC.shape[1:3])
    views = [seen(a_BHWC, k, m, window, (height, width)) for k in range(window) for m in range(window)]
    return sum(views) / window**2


def average_pooling_error(delta_BhwC, window: int, size: tuple[int, int]):
    """Distributes each error equally over its window."""
    shares = jnp.repeat(jnp.repeat(delta_BhwC / window**2, window, 1), window, 2)
    edges = [(0, n - m) for n, m in zip(size, shares.shape[1:3], strict=True)]
    return jnp.pad(shares, ((0, 0), *edges, (0, 0)))


def forward(layers: Sequence[layer_specs.Layer], params, a) -> tuple[Any, list]:
    """Returns (output of the last layer, values that each layer saves for `backward`) for activations [B, ...]."""
    kept: list = []
    for layer in layers:
        match layer:
            case layer_specs.Padding(edges):
                kept.append(edges)
                a = jnp.pad(a, ((0, 0), *edges, (0, 0)))
            case layer_specs.Convolution(name, stride):
                kept.append(a)
                b = -params[name]["bias"]
                a = correlate(a, params[name]["kernel"], stride) - b.reshape(1, 1, 1, -1)
            case layer_specs.Dense(name):
                kept.append(a)
                b = -params[name]["bias"]
                a = a.reshape(len(a), -1) @ params[name]["kernel"] - b[None]
            case layer_specs.MaxPooling(window, stride):
                size = a.shape[1:3]
                a, winner = max_pooling(a, window, stride)
                kept.append((winner, size))
            case layer_specs.AveragePooling(window):
                kept.append(a.shape[1:3])
                a = average_pooling(a, window)
            case layer_specs.Activation(name, slope):
                z, a = a, functions.activation(name, slope=slope)(a)
                kept.append((z, a))
    return a, kept


def backward(layers: Sequence[layer_specs.Layer], params, kept: list, delta) -> tuple[dict, list]:
    """Returns (gradients summed over the examples, the error after each layer) from the error `delta` at the output."""
    gradients: dict[str, Any] = {}
    errors: list = []
    for layer, memory in zip(reversed(layers), reversed(kept), strict=True):
        errors.insert(0, delta)
        match layer:
            case layer_specs.Padding(edges):
                rows, columns = (slice(low, n - high) for (low, high), n in zip(edges, delta.shape[1:3], strict=True))
                delta = delta[:, rows, columns]
            case layer_specs.Convolution(name, stride):
                kernel = params[name]["kernel"]
                # -(-sum): the gradient with respect to the project's bias, which is -b.
                bias = -bias_gradient(delta)
                gradients[name] = {"kernel": weight_gradient(memory, delta, stride, kernel.shape[:2]), "bias": bias}
                delta = error_below(delta, kernel, stride, memory.shape[1:3])
            case layer_specs.Dense(name):
                flat, kernel = memory.reshape(len(memory), -1), params[name]["kernel"]
                gradients[name] = {"kernel": flat.T @ delta, "bias": delta.sum(0)}
                delta = (delta @ kernel.T).reshape(memory.shape)
            case layer_specs.MaxPooling(window, stride):
                winner, size = memory
                delta = max_pooling_error(delta, winner, window, stride, size)
            case layer_specs.AveragePooling(window):
                delta = average_pooling_error(delta, window, memory)
            case layer_specs.Activation(name, slope):
                z, a = memory
                delta = delta * derivative(name, z, a, slope=slope)
    return gradients, errors


def cross_entropy_error(logits, labels):
    """Equation (1) for softmax with cross-entropy: p - y, [B, C]."""
    return jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def squared_error(a, z, target, *, activation: str, slope: float = 0.01):
    """Equation (1) for C = |a - target|^2 / 2 with the output a = sigma(z)."""
    return (a - target) * derivative(activation, z, a, slope=slope)


def gradients(
    params, batch_stats, batch, key, *, layers: Sequence[layer_specs.Layer], prepare: Callable, axis=None, rows=None
):
    """Like train.tasks.classification.autodiff: ((loss, (batch_stats, sums)), gradients) of this device's part of the
    mean cross-entropy over the global batch."""
    image_key, _ = jax.random.split(key)
    labels = batch["label"]
    rows = global_rows(len(labels), axis) if rows is None else rows
    images = prepare(batch["image"], row_keys(image_key, rows))
    examples = len(labels) * (lax.axis_size(axis) if axis else 1)
    logits, kept = forward(layers, params, images)
    summed, _ = backward(layers, params, kept, cross_entropy_error(logits, labels))
    loss_B = losses.cross_entropy(logits, labels)
    sums = {
        "loss": loss_B.sum(),
        "correct": losses.in_top(logits, labels, 1).sum(),
        "count": jnp.ones_like(loss_B).sum(),
    }
    # The factor 1 / N of the update.
    return (sums["loss"] / examples, (batch_stats, sums)), jax.tree.map(lambda g: g / examples, summed)
