"""Tests of DCGAN: transposed convolution, parameter counts, training step, several devices, scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from models import dcgan, summary
from models.cpu_kernels import ops
from models.cpu_kernels.convolution import conv_transpose_dilated
from train.equality import tree_error
from train.parallel import data_parallel
from train.parallel.devices import axis_of
from train.state import State, step_key
from train.tasks import gan, gan_scores

SIDE = 16  # One block fewer than published; the same code compiles in half the time.
FORM = gan.Form(lambda images: images, lambda made: made, dcgan.latents)


@pytest.mark.parametrize(
    "window, stride, padding, more",  # more: pixels beyond the last window, torch's output_padding
    [(4, 2, 1, 0), (5, 2, 2, 1), (4, 1, 0, 0), (2, 3, 0, 0), (7, 3, 2, 2), (1, 2, 0, 1)],
)
def test_transposed_convolution_against_loops(window, stride, padding, more):
    height, width = (1, 1) if window == 4 and stride == 1 else (3, 4)
    random = np.random.default_rng(0)
    x = random.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = random.normal(size=(window, window, 3, 2)).astype(np.float32)
    size = tuple((n - 1) * stride + window - 2 * padding + more for n in (height, width))
    expected = np.zeros((2, *(n + 2 * padding for n in size), 2))
    for i, j in np.ndindex(height, width):
        rows, columns = (slice(n * stride, n * stride + window) for n in (i, j))
        expected[:, rows, columns] += np.einsum("bc,klco->bklo", x[:, i, j], kernel)
    expected = expected[:, padding : padding + size[0], padding : padding + size[1]]
    fixed = ((stride, stride), ((padding, padding),) * 2, size)
    ours = jax.jit(lambda x, kernel: ops.conv_transpose(x, kernel, *fixed))
    # XLA's form, which GPUs and TPUs use.
    plain = functools.partial(
        conv_transpose_dilated, strides=(stride, stride), padding=((padding, padding),) * 2, size=size
    )
    found, back = jax.vjp(ours, x, kernel)
    there, plain_back = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(there, expected, atol=1e-5)
    y = random.normal(size=found.shape).astype(np.float32)
    assert tree_error(back(y), jax.device_get(plain_back(y))) < 1e-5


@pytest.mark.parametrize(
    "size, channels, authors, generator, discriminator",  # Published: Radford et al.'s and PyTorch's code.
    [
        (64, 3, False, 3_576_704, 2_765_568),
        (64, 1, False, 3_574_656, 2_763_520),
        (32, 3, False, 1_068_928, 663_296),
        (64, 3, True, 18_885_760, 17_232_768),
    ],
)
def test_parameter_counts(size, channels, authors, generator, discriminator):
    model = models.create("dcgan", 10, size=size, channels=channels, authors=authors)
    rows = summary.layers(model, (size, size, channels))
    for name, count in (("generator", generator), ("discriminator", discriminator)):
        assert sum(row.parameters for row in rows if row.name.startswith(name)) == count
    # The first transposed convolution applies the whole kernel to each of 4x4 pixels.
    first = next(row for row in rows if row.name == "generator/deconv1")
    assert first.multiply_adds == 16 * first.parameters and first.shape[0] == 8


def task_of(axis=None, *, ema=0.0, conditional=False, optimizer=None, scorer=None, dtype=None):
    model = models.create("dcgan", 3, size=SIDE, channels=1, conditional=conditional, axis_name=axis)
    return gan.create(
        model=model,
        optimizer=optimizer or optax.sgd(0.05, momentum=0.9),
        image_shape=(SIDE, SIDE, 1),
        form=FORM,
        scorer=scorer,
        ema=ema,
        axis=axis,
        dtype=dtype,
    )


def gradients(after):
    """The gradients of the first step, which equal its momentum."""
    return {name: after.opt_state[name][0].trace for name in ("discriminator", "generator")}


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    images = np.tanh(random.normal(size=(8, SIDE, SIDE, 1))).astype(np.float32)
    return {"image": images, "label": np.arange(8, dtype=np.int32) % 3}


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_a_step_equals_the_two_gradients(batch, conditional):
    task = task_of(ema=0.9, conditional=conditional)
    model = models.create("dcgan", 3, size=SIDE, channels=1, conditional=conditional)
    start = jax.jit(task.init)(jax.random.key(3))
    after, sums = jax.jit(task.train_step)(start, batch)
    labels = batch["label"]
    z = dcgan.latents(jax.vmap(functools.partial(jax.random.fold_in, step_key(start)))(jnp.arange(8)))

    def run(network, params, *inputs, stats):
        variables = {"params": {network: params}, "batch_stats": {network: stats}}
        method = {"generator": "generate", "discriminator": "discriminate"}[network]
        return model.apply(variables, *inputs, labels, train=True, method=method, mutable=["batch_stats"])

    def discriminator_loss(params, fake):
        real_logits, real = run("discriminator", params, batch["image"], stats=start.batch_stats["discriminator"])
        fake_logits, _ = run("discriminator", params, fake, stats=start.batch_stats["discriminator"])
        loss = -jnp.log(jax.nn.sigmoid(real_logits)).mean() - jnp.log(1 - jax.nn.sigmoid(fake_logits)).mean()
        return loss, (real, (real_logits > 0).sum(), (fake_logits <= 0).sum())

    def generator_loss(params, discriminator):
        fake, stats = run("generator", params, z, stats=start.batch_stats["generator"])
        logits, _ = run("discriminator", discriminator, fake, stats=start.batch_stats["discriminator"])
        return -jnp.log(jax.nn.sigmoid(logits)).mean(), stats

    fake, _ = run("generator", start.params["generator"], z, stats=start.batch_stats["generator"])
    (d_loss, (real, hits, rejections)), d_grads = jax.jit(jax.value_and_grad(discriminator_loss, has_aux=True))(
        start.params["discriminator"], fake
    )
    (g_loss, stats), g_grads = jax.jit(jax.value_and_grad(generator_loss, has_aux=True))(
        start.params["generator"], after.params["discriminator"]
    )
    assert float(g_loss) > 0.01
    assert tree_error(gradients(after), jax.device_get({"discriminator": d_grads, "generator": g_grads})) < 1e-5
    metrics = task.compute_metrics(jax.tree.map(float, sums))
    np.testing.assert_allclose(
        [metrics[name] for name in ("loss_discriminator", "loss_generator", "accuracy_real", "accuracy_fake")],
        [d_loss, g_loss, hits / 8, rejections / 8],
        rtol=1e-4,
    )
    assert tree_error(after.batch_stats["generator"], jax.device_get(stats["batch_stats"]["generator"])) < 1e-5
    # The discriminator's running averages are updated with the real images, then twice with the generated images.
    expected = real["batch_stats"]["discriminator"]
    for params in (start.params["discriminator"], after.params["discriminator"]):
        expected = run("discriminator", params, fake, stats=expected)[1]["batch_stats"]["discriminator"]
    assert tree_error(after.batch_stats["discriminator"], jax.device_get(expected)) < 1e-4
    # The weight average keeps a tenth of the initial weights at the first step.
    halfway = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start.params["generator"], after.params["generator"])
    assert tree_error(after.opt_state["average"]["params"], jax.device_get(halfway)) < 1e-5
    assert gan.sampler(after) is after.opt_state["average"]


@pytest.mark.slow
@pytest.mark.parametrize("devices, through", [(2, "shard_map"), (4, "pmap")])
def test_several_devices_equal_one(batch, devices, through):
    one = task_of()
    several = task_of(axis_of(devices))
    state = jax.device_get(jax.jit(one.init)(jax.random.key(0)))
    data_parallel.check_reductions(several.train_step, state, batch=batch, devices=devices)
    expected, expected_sums = jax.device_get(jax.jit(one.train_step)(state, batch))
    step = data_parallel.parallelize(several.train_step, devices, donate=False, through=through)
    found, sums = jax.device_get(step(state, batch))

    assert tree_error(gradients(found), gradients(expected)) < 1e-5
    assert tree_error(found.batch_stats, expected.batch_stats) < 1e-5
    assert tree_error(sums, expected_sums) < 1e-5


def scorer_of(images, floor=0.5):
    def features(images):
        flat = images.reshape(len(images), -1).astype(jnp.float32)
        return flat[:, ::30], flat[:, 5:8]

    return gan.Scorer(features, images, np.zeros(len(images), np.int32), floor)


@pytest.mark.slow
def test_evaluation_does_not_depend_on_batch_size_and_devices(batch):
    random = np.random.default_rng(1)
    known = random.normal(size=(20, SIDE, SIDE, 1)).astype(np.float32)
    one = task_of(scorer=scorer_of(known))
    state = jax.device_get(jax.jit(one.init)(jax.random.key(0)))
    images, labels = batch["image"], batch["label"]

    def parts(size):
        for start in range(0, 8, size):
            rows = np.arange(start, start + size)
            kept = rows < 8
            picked = np.minimum(rows, 7)
            yield {"image": images[picked], "label": labels[picked], "mask": kept.astype(np.float32), "row": rows}

    def total(task, size, state=state, devices=1):
        """The sums of both evaluation steps."""
        sums: dict = {}
        for step in (task.eval_step, task.constant_eval_step):
            step = data_parallel.parallelize(step, devices, donate=False)
            found = [jax.device_get(step(state, part)) for part in parts(size)]
            sums |= functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), found)
        return sums

    whole = one.compute_metrics(total(one, 8))
    assert whole["samples"] == 40 and whole["floor"] == 0.5
    uneven = one.compute_metrics(total(one, 3))
    several = task_of(axis_of(2), scorer=scorer_of(known))
    shared = several.compute_metrics(total(several, 8, devices=2))
    for other in (uneven, shared):
        np.testing.assert_allclose(list(other.values()), list(whole.values()), rtol=1e-3)
    # An untrained generator scores the ceiling, since it generates the samples of step 0.
    np.testing.assert_allclose(whole["classifier_fid"], whole["ceiling"], rtol=1e-4)
    # Without a weight average, samples come from the generator itself.
    other = task_of(scorer=scorer_of(known)).init(jax.random.key(9))
    moved = State(other.params, state.batch_stats, {}, state.step, state.key)
    changed = one.compute_metrics(total(one, 8, moved))
    assert changed["ceiling"] == pytest.approx(whole["ceiling"]) and changed["classifier_fid"] != changed["ceiling"]


def test_frechet_distance_of_known_gaussians():
    # For covariances that commute, the distance is |m|^2 + sum (s1 - s2)^2.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    a, b = (turn * np.square(s) @ turn.T for s in ([1.0, 2.0, 3.0], [2.0, 2.0, 0.5]))
    found = gan_scores.frechet_distance((np.zeros(3), a), (np.array([1.0, 2.0, 2.0]), b))
    assert found == pytest.approx(9 + 1 + 0 + 6.25)
    assert gan_scores.frechet_distance((np.ones(3), a), (np.ones(3), a)) == pytest.approx(0, abs=1e-9)
    few = np.random.default_rng(0).normal(size=(5, 16))  # Fewer examples than features: the covariance is singular.
    singular = few.mean(0), np.cov(few.T)
    assert gan_scores.frechet_distance(singular, singular) == 0.0


def test_scores_against_hand_calculations():
    random = np.random.default_rng(0)
    features, weights = random.normal(size=(50, 4)), np.r_[np.ones(40), np.zeros(10)]
    mean, covariance = gan_scores.gaussian(jax.device_get(gan_scores.moments(features, weights)), 40)
    np.testing.assert_allclose(mean, features[:40].mean(0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(features[:40].T), atol=1e-5)
    # Certain predictions of four equally frequent classes score 4. The same uncertain prediction for all scores 1.
    sure = {"probabilities": np.full(4, 5.0), "negative_entropy": 0.0}
    assert gan_scores.inception_score(sure, 20.0) == pytest.approx(4)
    doubtful = {"probabilities": np.full(4, 5.0), "negative_entropy": 20 * np.log(0.25)}
    assert gan_scores.inception_score(doubtful, 20.0) == pytest.approx(1)


def test_nearest_neighbor_distances():
    random = np.random.default_rng(0)
    images, others = (random.integers(0, 256, (n, 3, 3, 2), dtype=np.uint8) for n in (5, 23))
    expected = np.sqrt((((images[:, None] / 255.0 - others[None] / 255.0) ** 2).mean((2, 3, 4))).min(1))
    for chunk in (1000, 10, 7):
        np.testing.assert_allclose(gan_scores.nearest(images, others, chunk), expected, atol=1e-5)
    np.testing.assert_allclose(gan_scores.nearest(others[3:4], others), 0, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_trains(batch):
    task = task_of(optimizer=optax.adam(0.0002, b1=0.5), dtype="bfloat16")
    state = jax.jit(task.init)(jax.random.key(0))
    after, sums = jax.jit(task.train_step)(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    assert np.isfinite(float(sums["loss"]))
