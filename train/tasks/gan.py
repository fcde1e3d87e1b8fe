"""The task of a generative adversarial network: its step, its scores.

Goodfellow et al. 2014, "Generative adversarial nets": the discriminator learns to distinguish real images from
generated ones, and the generator to produce images that are classified as real (the non-saturating loss of section 3).
A step updates the discriminator, then the generator against the updated discriminator, as in PyTorch's dcgan example.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from models.layers import BatchNorm, global_rows, row_keys
from train.averaging import moving_average
from train.parallel.data_parallel import pcast_varying
from train.precision import at_least_float32, cast_floating
from train.state import State, step_key
from train.task import Task
from train.tasks import gan_scores

DRAWS = 5  # Draws per evaluation, each with one sample per test image.
NORM = 250  # Number of training images, and of samples, for the discriminator's batch statistics in evaluations.
EVAL_SEED = 0  # Seed of the samples' latent vectors in evaluations, the same in every run.


class Scorer(NamedTuple):
    """The classifier's features and the data with which samples are scored."""

    features: Callable[..., Any]  # uint8 [B, H, W, C] -> (features [B, F], logits [B, K])
    train_images: Any  # uint8 [N, H, W, C]
    train_labels: Any  # [N]
    floor: float  # The Fréchet distance between training images and the test images.


class Form(NamedTuple):
    """Converts images for the networks and draws latent vectors."""

    to_network: Callable[..., Any]  # uint8 [B, H, W, C] -> [B, size, size, C] in [-1, 1]
    to_image: Callable[..., Any]  # the inverse
    latents: Callable[..., Any]  # keys [B] -> [B, L]


def init(key, *, model, optimizer, image_shape, ema: float) -> State:
    """The state before the first step. The two networks have separate optimizer states; with `ema`, the optimizer state
    also has an average of the generator."""
    variables = model.init(jax.random.fold_in(key, 2**32 - 1), jnp.zeros((1, *image_shape)), train=False)
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = {name: optimizer.init(params[name]) for name in ("discriminator", "generator")}
    if ema:
        opt_state["average"] = {"params": params["generator"], "batch_stats": stats["generator"]}
    return State(params, stats, opt_state, jnp.zeros((), jnp.int32), key)


def apply(model, network: str, params, *inputs, stats, dtype=None, train: bool):
    """Returns (output of the network, its updated batch statistics)."""
    variables = {"params": {network: cast_floating(params, dtype)}, "batch_stats": {network: stats}}
    method = "generate" if network == "generator" else "discriminate"
    inputs = cast_floating(inputs, dtype)
    if not train:
        return at_least_float32(model.apply(variables, *inputs, train=False, method=method)), stats
    output, changed = model.apply(variables, *inputs, train=True, method=method, mutable=["batch_stats"])
    return at_least_float32(output), changed["batch_stats"][network]


def train_step(state: State, batch, *, model, optimizer, form: Form, ema: float, axis=None, dtype=None):
    """One update of the discriminator, then one of the generator: (state, batch) -> (state, sums).

    The discriminator receives the real and the generated images as two batches, each normalized separately. The
    images are generated once; their gradient from the second loss is propagated back through the generator.
    """
    labels, old = batch["label"], state.params
    rows = len(labels)
    examples = rows * (lax.axis_size(axis) if axis else 1)
    z = form.latents(row_keys(step_key(state), global_rows(rows, axis)))
    params, stats = pcast_varying((old, state.batch_stats), axis)
    run = functools.partial(apply, model, dtype=dtype, train=True)
    real = form.to_network(batch["image"])

    def generate(generator):
        return run("generator", generator, z, labels, stats=stats["generator"])

    fake, pull, generator_stats = jax.vjp(generate, params["generator"], has_aux=True)

    def discriminator_loss(discriminator):
        on_real, seen = run("discriminator", discriminator, real, labels, stats=stats["discriminator"])
        on_fake, seen = run("discriminator", discriminator, fake, labels, stats=seen)
        loss = (jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake)).sum()
        sums = {"correct_real": (on_real > 0).sum(), "correct_fake": (on_fake <= 0).sum(), "loss_discriminator": loss}
        return loss / examples, (seen, sums)

    def generator_loss(fake, discriminator, seen):
        on_fake, seen = run("discriminator", discriminator, fake, labels, stats=seen)
        loss = jax.nn.softplus(-on_fake).sum()
        return loss / examples, (seen, loss)

    def updated(network, gradients):
        gradients = lax.psum(gradients, axis) if axis else gradients
        norm = optax.tree.norm(gradients)
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(gradients, state.opt_state[network], old[network], gradient_norm=norm)
        return optax.apply_updates(old[network], updates), opt_state, norm

    gradients, (seen, sums) = jax.grad(discriminator_loss, has_aux=True)(params["discriminator"])
    discriminator, discriminator_state, discriminator_norm = updated("discriminator", gradients)
    back, (seen, loss) = jax.grad(generator_loss, has_aux=True)(fake, pcast_varying(discriminator, axis), seen)
    generator, generator_state, generator_norm = updated("generator", *pull(back))

    sums |= {"loss_generator": loss, "count": jnp.ones_like(z[:, 0]).sum()}
    sums["loss"] = sums["loss_discriminator"] + loss
    sums = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)
    batch_stats = {"generator": generator_stats, "discriminator": seen}
    if axis:
        sums, batch_stats = lax.psum(sums, axis), lax.pmean(batch_stats, axis)
    sums |= {"gradient_norm": jnp.hypot(discriminator_norm, generator_norm)}
    opt_state = {"discriminator": discriminator_state, "generator": generator_state}
    if ema:
        new = {"params": generator, "batch_stats": batch_stats["generator"]}
        opt_state["average"] = moving_average(state.opt_state["average"], new, step=state.step, decay=ema)
    params = {"discriminator": discriminator, "generator": generator}
    return State(params, batch_stats, opt_state, state.step + 1, state.key), sums


def sampler(state: State) -> dict:
    """The generator's parameters and batch statistics for sampling: the average if there is one."""
    own = {"params": state.params["generator"], "batch_stats": state.batch_stats["generator"]}
    return state.opt_state.get("average", own)


def predict_step(state: State, batch, *, model, form: Form, dtype=None):
    """Samples uint8 [B, H, W, C] from latent vectors [B, L] and labels [B]."""
    generator = sampler(state)
    made, _ = apply(
        model,
        "generator",
        generator["params"],
        batch["latent"],
        batch["label"],
        stats=generator["batch_stats"],
        dtype=dtype,
        train=False,
    )
    return form.to_image(made)


def judged(state: State, images, labels, *, fixed, fixed_labels, model, form: Form, dtype):
    """The discriminator's logits [B] of uint8 images, normalized with the statistics of the `fixed` images."""
    judge = functools.partial(apply, model, "discriminator", state.params["discriminator"], dtype=dtype)
    zero = jax.tree.map(jnp.zeros_like, state.batch_stats["discriminator"])
    _, seen = judge(form.to_network(fixed), fixed_labels, stats=zero, train=True)
    # Running statistics that start from zero are (1 - momentum) times the batch statistics.
    stats = jax.tree.map(lambda x: x / (1 - BatchNorm.keywords["momentum"]), seen)
    return judge(form.to_network(images), labels, stats=stats, train=False)[0]


def _samples(state: State, batch, draw, *, model, form: Form, dtype):
    """Samples uint8 [B, H, W, C], one for each row of the batch."""
    key = jax.random.fold_in(jax.random.key(EVAL_SEED), draw)
    z = form.latents(jax.vmap(functools.partial(jax.random.fold_in, key))(batch["row"]))
    return predict_step(state, {"latent": z, "label": batch["label"]}, model=model, form=form, dtype=dtype)


def _scored_draws(state: State, batch, *, scorer: Scorer, **common):
    """The sums over the samples of each draw [DRAWS, ...] from which its scores are computed."""
    mask = batch["mask"]

    def score(draw):
        features, logits = scorer.features(_samples(state, batch, draw, **common))
        log_p = jax.nn.log_softmax(logits)
        p = jnp.exp(log_p) * mask[:, None]
        classes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]) * mask[:, None]
        return gan_scores.moments(features, mask) | {
            "probabilities": p.sum(0),
            "negative_entropy": (p * log_p).sum(),
            "classes": classes.sum(0),
        }

    return lax.map(score, jnp.arange(DRAWS))


def ceiling_step(
    state: State, batch, *, model, form: Form, scorer: Scorer | None, first: Callable, axis=None, dtype=None
):
    """The sums over samples of the untrained generator, from which the ceiling is computed. They are the same in every
    evaluation of a run. `first` is `init`."""
    assert scorer is not None
    start = first(state.key)
    draws = _scored_draws(start, batch, scorer=scorer, model=model, form=form, dtype=dtype)
    sums = {"start": draws, "count": batch["mask"].sum()}
    return lax.psum(sums, axis) if axis else sums


def eval_step(state: State, batch, *, model, form: Form, scorer: Scorer | None, axis=None, dtype=None):
    """Sums over the test images whose mask is 1, and over the same number of samples of each draw: the losses and the
    other inputs of `compute_metrics`, except for the ceiling."""
    assert scorer is not None
    mask, labels, images = batch["mask"], batch["label"], batch["image"]
    common = {"model": model, "form": form, "dtype": dtype}
    made = _samples(state, batch, 0, **common)
    # As in training, real and generated images are normalized separately, here with the statistics of fixed images.
    norm = slice(0, NORM)
    fixed_labels = jnp.asarray(scorer.train_labels[norm])
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(EVAL_SEED)))(
        DRAWS + jnp.arange(len(fixed_labels))
    )
    fixed_fake = predict_step(
        state, {"latent": form.latents(keys), "label": fixed_labels}, model=model, form=form, dtype=dtype
    )
    judge = functools.partial(judged, state, fixed_labels=fixed_labels, model=model, form=form, dtype=dtype)
    on_real = judge(images, labels, fixed=scorer.train_images[norm])
    on_fake = judge(made, labels, fixed=fixed_fake)
    losses = {
        "loss_discriminator": (jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake)) * mask,
        "loss_generator": jax.nn.softplus(-on_fake) * mask,
        "correct_real": (on_real > 0) * mask,
        "correct_fake": (on_fake <= 0) * mask,
        "near_samples": gan_scores.nearest(made, scorer.train_images) * mask,
        "near_tests": gan_scores.nearest(images, scorer.train_images) * mask,
    }
    sums = {name: value.sum() for name, value in losses.items()}
    sums |= {
        "loss": sums["loss_discriminator"] + sums["loss_generator"],
        "count": mask.sum(),
        "real": gan_scores.moments(scorer.features(images)[0], mask),
        "draws": _scored_draws(state, batch, scorer=scorer, **common),
    }
    return lax.psum(sums, axis) if axis else sums


def compute_metrics(sums, *, floor: float = 0.0) -> dict[str, float]:
    """Mean losses and accuracies; for an evaluation's sums also the scores described in docs/generation.md."""
    count = float(sums["count"])
    metrics = {name: sums[name] / count for name in ("loss", "loss_discriminator", "loss_generator")}
    metrics |= {f"accuracy_{kind}": sums[f"correct_{kind}"] / count for kind in ("real", "fake")}
    if "draws" in sums:
        real = gan_scores.gaussian(sums["real"], count)
        shares = sums["draws"]["classes"].sum(0) / (DRAWS * count)

        def each(score, name):
            return np.mean([score(jax.tree.map(lambda x, i=i: x[i], sums[name])) for i in range(DRAWS)])

        def distance(draw):
            return gan_scores.frechet_distance(gan_scores.gaussian(draw, count), real)

        metrics |= {
            "classifier_fid": each(distance, "draws"),
            "floor": floor,
            "ceiling": each(distance, "start"),
            "inception_score": each(lambda draw: gan_scores.inception_score(draw, count), "draws"),
            "coverage_min": shares.min(),
            "coverage_max": shares.max(),
            "memorisation": sums["near_samples"] / max(float(sums["near_tests"]), 1e-12),
            "samples": DRAWS * count,
        }
    return {name: float(value) for name, value in metrics.items()}


def create(*, model, optimizer, image_shape, form: Form, scorer: Scorer | None, ema: float, axis, dtype=None) -> Task:
    """The task for a `models.dcgan.DCGAN`; `image_shape` is the image shape of the networks. Without a `scorer`, it
    can't be evaluated."""
    first = functools.partial(init, model=model, optimizer=optimizer, image_shape=image_shape, ema=0.0)
    common = {"model": model, "form": form, "dtype": dtype}
    train_metrics = ("loss", "loss_discriminator", "loss_generator", "accuracy_real", "accuracy_fake")
    distances = ("classifier_fid", "floor", "ceiling", "inception_score", "coverage_min", "coverage_max")
    return Task(
        name="generation",
        init=functools.partial(first, ema=ema),
        train_step=functools.partial(train_step, optimizer=optimizer, ema=ema, axis=axis, **common),
        eval_step=functools.partial(eval_step, scorer=scorer, axis=axis, **common),
        constant_eval_step=functools.partial(ceiling_step, scorer=scorer, first=first, axis=axis, **common),
        compute_metrics=functools.partial(compute_metrics, floor=scorer.floor if scorer else 0.0),
        predict_step=functools.partial(predict_step, **common),
        metrics=(*train_metrics, *distances, "memorisation", "samples"),
        train_metrics=train_metrics,
        best=("classifier_fid", "min"),
    )
