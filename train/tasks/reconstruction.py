"""The reconstruction task: losses of autoencoders, their gradients and evaluation.

A loss is a function (apply, images, keys) -> (loss [B], terms). `apply(*inputs, method=...)` runs the network; images
are [B, H, W, C] with pixels in [0, 1]; `keys` [B] are the random keys of the examples; `terms` are additional values
[B] by name, which an evaluation also averages.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jax import lax

from models.layers import global_rows, row_keys
from train.precision import at_least_float32, cast_floating
from train.state import State
from train.task import Task
from train.tasks import gradient_descent

EVAL_SEED = 0  # Seed of the noise in evaluations, the same in every run.
MOST_PSNR = 100.0  # PSNR of a perfect reconstruction, for which the formula gives infinity.


def pixels(images):
    """uint8 [B, H, W, C] -> float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255


def _flat(x):
    return x.reshape(x.shape[0], -1)


def _folded(keys, number: int):
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _drawn(sample, keys, shape):
    """Draws [B, *shape] from `sample(key, (size,))`, one for each of the keys [B]."""
    return jax.vmap(lambda key: sample(key, (math.prod(shape),)))(keys).reshape(-1, *shape)


def mean_squared_error(output, images):
    """The squared error of each example [B], averaged over its pixels."""
    return jnp.square(_flat(output - images)).mean(1)


def psnr(error):
    """The peak signal-to-noise ratio in dB for a mean squared error of pixels in [0, 1], at most MOST_PSNR."""
    return -10 * jnp.log10(jnp.maximum(error, 10 ** (-MOST_PSNR / 10)))


def masked(images, keys, *, rate: float):
    """Sets each pixel, with all its channels, to 0 with probability `rate`: the noise of Vincent et al. 2008, who set a
    fixed number of pixels to 0."""
    shape = (*images.shape[1:-1], 1)
    keep = _drawn(lambda key, size: jax.random.bernoulli(key, 1 - rate, size), keys, shape)
    return jnp.where(keep, images, jnp.zeros_like(images))


def binarized(images, keys):
    """Binary images in which the probability that a pixel is 1 is its gray value."""
    uniform = _drawn(jax.random.uniform, keys, images.shape[1:])
    return (uniform < images).astype(jnp.float32)


def bernoulli_nll(logits, images):
    """-log p(image) per example [B] in nats, for independent pixels with these logits."""
    return _flat(optax.sigmoid_binary_cross_entropy(logits, images)).sum(1)


def gaussian_kl(mean, log_variance):
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over the components: [B, L] -> [B] (Kingma & Welling 2013,
    appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(1)


def reparameterized(mean, log_variance, noise):
    """Samples from N(mean, variance) as a differentiable function of both; `noise` is from N(0, 1)."""
    return mean + jnp.exp(0.5 * log_variance) * noise


def _compared(output, images):
    error = mean_squared_error(output, images)
    terms = {"squared_error": error, "psnr": psnr(error)}
    return 0.5 * _flat(jnp.square(output - images)).sum(1), lax.stop_gradient(terms)


def squared_loss(apply, images, keys):
    """Half the squared error of the reconstruction, summed over the pixels."""
    del keys
    return _compared(apply(images), images)


def denoising_loss(apply, images, keys, *, rate: float):
    """`squared_loss` between the original images and their reconstructions from `masked` images."""
    return _compared(apply(masked(images, keys, rate=rate)), images)


def sparse_loss(apply, images, keys, *, penalty: float):
    """`squared_loss` plus `penalty` times the sum of the code, which is non-negative."""
    del keys
    code = apply(images, method="encode")
    loss, terms = _compared(apply(code, method="decode"), images)
    return loss + penalty * code.sum(1), terms | {"active": (code > 0).astype(jnp.float32).mean(1)}


def inversion_loss(apply, images, keys):
    """`squared_loss` of a network that reconstructs images from the features of several layers, summed over the layers;
    the names of the terms are prefixed with the layer's name."""
    del keys
    compared = {layer: _compared(output, images) for layer, output in apply(images).items()}
    terms = {f"{layer}_{name}": value for layer, (_, terms) in compared.items() for name, value in terms.items()}
    return sum(loss for loss, _ in compared.values()), terms


def variational_loss(apply, images, keys):
    """The negative evidence lower bound (ELBO) in nats of `binarized` images, from one draw of the latent variables:
    E_q[-log p(x | z)] + KL(q(z | x) || p(z))."""
    binary = binarized(images, _folded(keys, 0))
    mean, log_variance = apply(binary, method="encode")
    z = reparameterized(mean, log_variance, _drawn(jax.random.normal, _folded(keys, 1), mean.shape[1:]))
    error, kl = bernoulli_nll(apply(z, method="decode"), binary), gaussian_kl(mean, log_variance)
    return error + kl, {"reconstruction": error, "kl": kl}


def log_weights(apply, binary, key, *, samples: int):
    """log p(x | z) + log p(z) - log q(z | x) in nats, [samples, B], for samples of z from q(z | x) and binary images.

    The mean over the samples estimates the ELBO. The log of the mean of their exponentials estimates a bound on log
    p(x) that is tighter with every sample (Burda, Grosse & Salakhutdinov 2015, "Importance weighted autoencoders").
    """
    mean, log_variance = apply(binary, method="encode")

    def one(number):
        noise = jax.random.normal(jax.random.fold_in(key, number), mean.shape)
        z = reparameterized(mean, log_variance, noise)
        density_ratio = 0.5 * (jnp.square(noise) - jnp.square(z) + log_variance).sum(1)
        return density_ratio - bernoulli_nll(apply(z, method="decode"), binary)

    return lax.map(one, jnp.arange(samples))


def _apply(params, model, dtype):
    """Returns the function `apply` of a loss: the network, computed in `dtype`, with outputs in float32."""
    variables = {"params": cast_floating(params, dtype)}

    def apply(*inputs, method=None):
        outputs = model.apply(variables, *cast_floating(inputs, dtype), method=method)
        return outputs if dtype is None else jax.tree.map(at_least_float32, outputs)

    return apply


def autodiff(params, batch_stats, batch, key, *, model, loss, axis, dtype=None):
    """((loss, (batch_stats, sums)), gradients) of this device's part of the mean loss over the global batch. The
    network computes in `dtype`, the loss in float32; gradients have the dtype of the parameters."""
    images = pixels(batch["image"])
    keys = row_keys(key, global_rows(len(images), axis))
    examples = len(images) * (lax.axis_size(axis) if axis else 1)

    def mean_loss(params):
        loss_B, _ = loss(_apply(params, model, dtype), images, keys)
        sums = {"loss": loss_B.sum(), "count": jnp.ones_like(loss_B).sum()}
        return loss_B.sum() / examples, (batch_stats, sums)

    return jax.value_and_grad(mean_loss, has_aux=True)(params)


def eval_step(state: State, batch, *, model, loss, axis=None, dtype=None):
    """Sums of the loss and its terms over the examples whose mask is 1; the noise of an example depends on its row."""
    keys = row_keys(jax.random.key(EVAL_SEED), batch["row"])
    loss_B, terms = loss(_apply(state.params, model, dtype), pixels(batch["image"]), keys)
    values = {"loss": loss_B, "count": jnp.ones_like(loss_B)} | terms
    sums = {name: (value * batch["mask"]).sum() for name, value in values.items()}
    return lax.psum(sums, axis) if axis else sums


def compute_metrics(sums) -> dict[str, float]:
    """Means over the examples."""
    return {
        name: float(value / sums["count"]) for name, value in sums.items() if name not in ("count", "gradient_norm")
    }


def create(*, model, optimizer, image_shape, loss, terms: tuple[str, ...] = (), axis=None, dtype=None) -> Task:
    """The task for a network without batch norm and a loss whose terms have the names `terms`."""
    grad_fn = functools.partial(autodiff, model=model, loss=loss, axis=axis, dtype=dtype)
    return Task(
        name="reconstruction",
        init=functools.partial(gradient_descent.init, model=model, optimizer=optimizer, image_shape=image_shape),
        train_step=functools.partial(gradient_descent.train_step, optimizer=optimizer, grad_fn=grad_fn, axis=axis),
        eval_step=functools.partial(eval_step, model=model, loss=loss, axis=axis, dtype=dtype),
        compute_metrics=compute_metrics,
        predict_step=lambda state, batch: _apply(state.params, model, dtype)(pixels(batch["image"])),
        metrics=("loss", *terms),
        train_metrics=("loss",),
        best=("loss", "min"),
    )
