"""Property-based tests over split sizes, batch sizes, seeds and schedules: batches, evaluation, learning rates."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data import batches, stream
from train import loop, optimizers, task
from train.parallel import data_parallel
from train.parallel.devices import AXIS

# The check for slow data generation measures time, so it would fail on a busy machine.
COMMON = settings(
    deadline=None, derandomize=True, database=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
SEEDS = st.integers(0, 2**32 - 1)  # The values that --seed accepts.


def take(count, *arguments, **options):
    return list(itertools.islice(batches.train_batches(*arguments, **options), count))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def joined(parts):
    """The global batches, concatenated from the batches of all processes."""
    return [{name: np.concatenate([p[name] for p in same]) for name in same[0]} for same in zip(*parts, strict=True)]


@st.composite
def sharded_batches(draw, largest):
    """Draws (number of processes, global batch size)."""
    processes = draw(st.integers(1, 4))
    return processes, processes * draw(st.integers(1, largest // processes))


@settings(COMMON, max_examples=100)
@given(examples=st.integers(1, 40), sharding=sharded_batches(48), seed=SEEDS, start=st.integers(0, 200), flip=...)
def test_training_batches(examples: int, sharding, seed: int, start: int, flip: bool):
    """Epochs follow each other without gaps. Each has every example once, in an order given by the seed and epoch."""
    processes, batch_size = sharding
    labels = np.arange(examples, dtype=np.int32)
    images = np.stack([labels, labels + 100], 1).astype(np.uint8)[:, None, :, None]
    options = {"seed": seed, "flip": flip}
    steps = -(-3 * examples // batch_size)
    whole = take(steps, images, labels, batch_size=batch_size, **options)
    assert all(len(batch["label"]) == batch_size for batch in whole), "no batch may be incomplete"
    seen, shown = (np.concatenate([batch[name] for batch in whole]) for name in ("label", "image"))
    turned = shown[:, 0, 0, 0] >= 100
    np.testing.assert_array_equal(shown[:, 0, :, 0].min(1), seen)
    np.testing.assert_array_equal(shown[:, 0, :, 0].max(1), seen + 100)
    sides = []
    for epoch in range(3):
        span = slice(epoch * examples, (epoch + 1) * examples)
        np.testing.assert_array_equal(np.sort(seen[span]), labels)
        np.testing.assert_array_equal(seen[span], batches.order(seed, epoch, examples=examples))
        sides.append(turned[span][np.argsort(seen[span])])
    if flip:
        assert (sides[0] != sides[1]).all() and (sides[0] == sides[2]).all()
    else:
        assert not turned.any()
    again = take(steps * batch_size, images, labels, batch_size=1, **options)  # The order stays the same.
    np.testing.assert_array_equal([batch["label"][0] for batch in again], seen)
    middle = start % steps
    assert_equal(take(steps - middle, images, labels, batch_size=batch_size, start=middle, **options), whole[middle:])
    expected = take(2, images, labels, batch_size=batch_size, start=start, **options)
    parts = [
        take(2, images, labels, batch_size=batch_size, start=start, part=(i, processes), **options)
        for i in range(processes)
    ]
    assert_equal(joined(parts), expected)


@settings(COMMON, max_examples=15)
@given(examples=st.integers(1, 12), sharding=sharded_batches(12), seed=SEEDS, start=st.integers(0, 20))
def test_training_batches_of_a_stream(examples, sharding, seed, start):
    """A stream has the order of images in memory; its random crops depend only on the seed and the position."""
    (processes, batch_size), labels = sharding, np.arange(examples, dtype=np.int32)

    def read(example, crop):
        return np.array([example, *crop(90, 80)[0]], np.uint8).reshape(1, 1, 5)

    view = stream.View(1, random=True)
    images = stream.Stream(read, labels, channels=5, view=view)
    options = {"batch_size": batch_size, "seed": seed}
    whole = take(start + 2, images, labels, **options)
    in_memory = take(start + 2, labels, labels, **options)
    np.testing.assert_array_equal([b["label"] for b in whole], [b["label"] for b in in_memory])
    np.testing.assert_array_equal([b["image"][:, 0, 0, 0] for b in whole], [b["label"] for b in whole])
    parts = [take(2, images, labels, start=start, part=(i, processes), **options) for i in range(processes)]
    assert_equal(joined(parts), whole[start:])


SEEDS_AND_EPOCHS = st.tuples(SEEDS, st.integers(0, 1000))


@settings(COMMON, max_examples=200)
@given(one=SEEDS_AND_EPOCHS, other=SEEDS_AND_EPOCHS, examples=st.integers(20, 60))  # 20 examples have 2e18 orders.
def test_different_seeds_and_epochs_give_different_orders(one, other, examples):
    assume(one != other)
    first = batches.order(*one, examples=examples)
    assert (first != batches.order(*other, examples=examples)).any() and (first != np.arange(examples)).any()


def eval_size(examples, batch_size, rows, devices):
    """The evaluation batch size of a run, rounded up to a multiple of the number of devices."""
    size = task.eval_batch_size(
        types.SimpleNamespace(min_eval_batch_size=rows), batch_size=batch_size, examples=examples
    )
    return -(-size // devices) * devices


def check_sums(sums, examples):
    """Checks that each row was counted exactly once, and none beyond the last."""
    np.testing.assert_array_equal(sums["seen"], np.arange(len(sums["seen"])) < examples)
    assert sums["label"] == examples * (examples + 1) / 2


def split(examples):
    labels = np.arange(1, examples + 1, dtype=np.int32)
    return np.ones((examples, 1, 1, 1), np.uint8) * labels[:, None, None, None].astype(np.uint8), labels


@settings(COMMON, max_examples=150)
@given(
    examples=st.integers(1, 120),
    batch_size=st.integers(1, 150),
    rows=st.integers(1, 150),
    processes=st.integers(1, 4),
    local=st.integers(1, 3),
)
def test_evaluation_counts_each_example_once(examples, batch_size, rows, processes, local):
    images, labels = split(examples)
    size = eval_size(examples, batch_size, rows, processes * local)

    def eval_step(state, batch):
        mask, seen = batch["mask"], np.zeros(128)
        assert mask.shape == batch["row"].shape == batch["label"].shape == (size,) and size % local == 0
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
        np.add.at(seen, batch["row"][mask == 1], 1)
        return {"count": mask.sum(), "label": (mask * batch["label"]).sum(), "seen": seen}

    parts = [list(batches.eval_batches(images, labels, batch_size=size, part=(i, processes))) for i in range(processes)]
    check_sums(evaluated(None, eval_step, joined(parts), examples), examples)
    with pytest.raises(RuntimeError, match="the evaluation counted"):
        evaluated(None, eval_step, joined(parts)[:-1] * 2 + joined(parts)[-1:] * 3, examples)


def evaluated(state, eval_step, batches, examples):
    return loop.evaluate(state, eval_step, data=loop.EvalData(lambda: batches, examples))


@functools.cache
def device_step(devices):
    def eval_step(state, batch):
        mask = batch["mask"]
        seen = jnp.zeros(32).at[batch["row"]].add(mask, mode="drop")
        sums = {"count": mask.sum(), "label": (mask * batch["label"]).sum(), "seen": seen}
        return jax.lax.psum(sums, AXIS) if devices > 1 else sums

    return data_parallel.parallelize(eval_step, devices, donate=False)


@pytest.mark.parametrize("devices", [1, 2, 8])
@settings(COMMON, max_examples=12)
@given(examples=st.integers(1, 32), rows=st.sampled_from([1, 3]))
def test_evaluation_on_devices_counts_each_example_once(devices, examples, rows):
    size = rows * devices  # Few sizes, since each is compiled.
    found = batches.eval_batches(*split(examples), batch_size=size)
    check_sums(evaluated(np.zeros(()), device_step(devices), found, examples), examples)


LONGEST = 250  # All schedules are computed for this number of steps, so that each operation is compiled once.


def rates(name, steps, **options):
    """The learning rates [steps + 1] after 0 to `steps` steps."""
    rate = optimizers.schedule(name, steps=steps, **options)
    return np.broadcast_to(rate(jnp.arange(LONGEST + 1)), LONGEST + 1)[: steps + 1].astype(np.float64)


@st.composite
def warmed_up(draw, smallest=1):
    """Draws (steps of a run, fewer warm-up steps)."""
    steps = draw(st.integers(smallest, LONGEST))
    return steps, draw(st.integers(0, steps - 1))


RATES = st.floats(1e-4, 10)
DROPS = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=5)


@settings(COMMON, max_examples=200)
@given(length=warmed_up(), learning_rate=RATES, drops=DROPS, factor=st.floats(1.01, 20))
def test_every_drop_takes_effect(length, learning_rate, drops, factor):
    steps, warmup_steps = length
    found = rates(
        "step",
        steps,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        drops=drops,
        drop_factor=factor,
    )
    count = np.array([sum(round(steps * drop) <= step for drop in drops) for step in range(steps + 1)])
    expected = (learning_rate / factor**count)[warmup_steps:]
    np.testing.assert_allclose(found[warmup_steps:], expected, rtol=1e-5)
    np.testing.assert_allclose(found[-1], learning_rate / factor ** len(drops), rtol=1e-5)


@settings(COMMON, max_examples=150)
@given(name=st.sampled_from(optimizers.SCHEDULES), length=warmed_up(2), learning_rate=RATES, drops=DROPS)
def test_the_learning_rate_warms_up_and_is_never_above_the_one_given(name, length, learning_rate, drops):
    steps, warmup_steps = length
    found = rates(name, steps, learning_rate=learning_rate, warmup_steps=warmup_steps, drops=drops) / learning_rate
    assert found.min() > -1e-6 and found.max() < 1 + 1e-6
    rise = max(1, steps // 4) if name == "one_cycle" else warmup_steps
    before, after = found[: rise + 1], found[rise:]
    if name == "one_cycle":
        np.testing.assert_allclose([before[0], after[0]], [1 / rise, 1], rtol=1e-5)
        assert (np.diff(before) >= 0).all()
    elif warmup_steps:
        np.testing.assert_allclose(before[:-1], np.arange(rise) / rise, atol=1e-5)
        assert (np.diff(before[:-1]) > 0).all()
    if name == "constant":
        np.testing.assert_allclose(after, 1, rtol=1e-6)
    assert (np.diff(after) <= 1e-6).all()
    if name in ("cosine", "one_cycle"):
        np.testing.assert_allclose([after[0], after[-1]], [1, 0], atol=1e-5)
        assert (np.diff(after) < 0).all()
