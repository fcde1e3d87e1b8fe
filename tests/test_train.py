"""The step on any number of devices, losses, schedules, checkpoints and the run's folder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import models
from data import augment, batches
from train import checkpoint, classification, folder, leaves, loop, losses, optimizers, parallel
from train.equality import tree_error
from train.state import State
from train.stop import Interrupted


def make_task(axis, model="cnn", **options):
    if model == "cnn":
        options |= {"axis_name": axis, "dropout": 0.3, "widths": (4, 8, 8), "features": 8}

    def prepare(images):
        return augment.normalize(images, (33.0,), (79.0,))

    return classification.create(
        model=models.create(model, 10, **options),
        optimizer=optimizers.create("sgd", lambda step: 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        image_shape=(28, 28, 1),
        class_names=tuple("0123456789"),
        train_prepare=lambda images, keys: prepare(augment.digits(images, keys)),
        eval_prepare=prepare,
        axis=axis,
    )


def run(mnist5k, devices, steps):
    task = make_task(parallel.axis_of(devices))
    state = task.init(jax.random.key(0))
    step = parallel.parallelize(task.train_step, devices, donate=True)
    stream = batches.train_batches(*mnist5k.splits["train"], batch_size=16, seed=0)
    for _ in range(steps):
        state, sums = step(state, next(stream))
    return jax.tree.map(np.asarray, (state.params, state.batch_stats)), jax.tree.map(float, sums)


@pytest.fixture(scope="module")
def one_device(mnist5k):
    return run(mnist5k, 1, 5)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_parameters(mnist5k, one_device, devices):
    trees, sums = run(mnist5k, devices, 5)
    assert tree_error(trees, one_device[0]) < 1e-5
    assert sums == pytest.approx(one_device[1], rel=1e-5)


def test_golden_step(mnist5k):
    _, sums = run(mnist5k, 1, 1)
    found = (round(sums["loss"] / sums["count"], 2), sums["count"])
    assert found == (2.37, 16), f"the first step's metrics are {found}: update this only for a change that means to"


def test_a_forgotten_reduction_is_named():
    def forgetful(state, batch):
        return {"weights": state["weights"] - batch["x"].mean(), "count": lax.psum(batch["x"].sum(), "data")}

    state, batch = {"weights": np.zeros(3, np.float32)}, {"x": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match=r"reduction over devices is missing:.*weights"):
        parallel.check_reductions(forgetful, state, batch=batch, devices=4)


@pytest.mark.parametrize("devices", [2, 8])
def test_the_steps_reduce_everything(devices):
    task = make_task("data")
    state = jax.eval_shape(task.init, jax.random.key(0))
    batch = {"image": np.zeros((16, 28, 28, 1), np.uint8), "label": np.zeros(16, np.int32)}
    parallel.check_reductions(task.train_step, state, batch=batch, devices=devices)
    parallel.check_reductions(task.eval_step, state, batch=batch | {"mask": np.ones(16, np.float32)}, devices=devices)


def test_evaluation_on_two_devices_equals_one(mnist5k):
    images, labels = mnist5k.splits["test"]
    found = []
    for devices in (1, 2):
        task = make_task(parallel.axis_of(devices))
        state = task.init(jax.random.key(0))
        step = parallel.parallelize(task.eval_step, devices, donate=False)
        found.append([step(state, part) for part in batches.eval_batches(images[:30], labels[:30], batch_size=20)])
    assert sum(float(part["count"]) for part in found[0]) == 30
    assert tree_error(found[1], jax.device_get(found[0])) < 1e-5


def test_losses_against_optax_and_a_sort():
    logits, labels = jax.random.normal(jax.random.key(0), (50, 10)), jnp.arange(50) % 10
    expected = -jax.nn.log_softmax(logits)[jnp.arange(50), labels]
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)
    top = np.argsort(-np.asarray(logits), axis=-1, kind="stable")[:, :5]
    np.testing.assert_array_equal(losses.in_top(logits, labels, 5), (top == np.asarray(labels)[:, None]).any(1))
    unit, binary = logits[:, :1], labels % 2
    expected = optax.sigmoid_binary_cross_entropy(unit[:, 0], binary)
    np.testing.assert_allclose(losses.cross_entropy(unit, binary), expected, rtol=1e-5)
    np.testing.assert_array_equal(losses.in_top(jnp.zeros((2, 3)), jnp.array([0, 1]), 1), [1.0, 0.0])


@pytest.mark.parametrize(
    "name, expected",
    [("constant", [1, 1, 1]), ("step", [1, 0.1, 0.01]), ("cosine", [1, 0.5, 0]), ("one_cycle", [0.04, 2 / 3, 0])],
)
def test_schedules(name, expected):
    rate = optimizers.schedule(name, learning_rate=1.0, steps=100)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], expected, atol=1e-6)


def test_warm_up_and_coupled_weight_decay():
    rate = optimizers.schedule("step", learning_rate=1.0, steps=100, warmup_steps=10)
    np.testing.assert_allclose([rate(0), rate(5), rate(49), rate(50), rate(75)], [0, 0.5, 1, 0.1, 0.01], atol=1e-6)
    optimizer = optimizers.create("sgd", lambda step: 0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
    updates, _ = optimizer.update(jnp.ones(()), optimizer.init(jnp.array(2.0)), jnp.array(2.0))
    assert float(updates) == pytest.approx(-0.1 * (1 + 0.5 * 2))


def loop_parts(mnist5k, tmp_path, stop, eval_step=None):
    """train() with everything but its state, record and plan."""
    task = make_task(None)
    counts = {"train": 0, "eval": 0}

    def counted(name, step):
        def traced(state, batch):
            counts[name] += 1
            return step(state, batch)

        return traced

    task = task._replace(train_step=counted("train", task.train_step), eval_step=counted("eval", task.eval_step))
    images, labels = mnist5k.splits["test"]
    columns = ["step", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy", "learning_rate"]

    def go(state, record, steps=6):
        metrics = folder.MetricsFile(tmp_path, columns, step=min(int(state.step), record.get("reported", 0)))
        try:
            return loop.train(
                state,
                task=task,
                record=record,
                plan=loop.Plan(steps, eval_every=3, log_every=2, save_every=0),
                devices=1,
                train_batches=lambda step: batches.train_batches(images, labels, batch_size=8, seed=0, start=step),
                eval_batches=lambda: eval_step(batches.eval_batches(images[:30], labels[:30], batch_size=8)),
                eval_examples=30,
                learning_rate=lambda step: 0.05,
                checkpoints=checkpoint.Checkpoints(tmp_path),
                metrics=metrics,
                stop=stop,
                progress=lambda step, row: None,
            )
        finally:
            metrics.close()

    return task, go, counts


class Signal:
    """Stands for loop.Stop: a signal that has come, or not."""

    number = 0


def test_the_loop_traces_each_step_once(mnist5k, tmp_path):
    task, go, counts = loop_parts(mnist5k, tmp_path, Signal(), lambda parts: parts)
    done = go(task.init(jax.random.key(0)), {})
    assert counts == {"train": 1, "eval": 1} and int(done.state.step) == 6


def test_a_signal_during_an_evaluation_saves_and_the_evaluation_comes_again(mnist5k, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for path in (whole, parts):
        path.mkdir()
    task, go, _ = loop_parts(mnist5k, whole, Signal(), lambda parts: parts)
    expected = go(task.init(jax.random.key(0)), {})
    stop = Signal()

    def interrupted(parts):
        for i, part in enumerate(parts):
            if i == 2:
                stop.number = 15
            yield part

    task, go, _ = loop_parts(mnist5k, parts, stop, interrupted)
    with pytest.raises(Interrupted, match="stopped at step 3") as caught:
        go(task.init(jax.random.key(0)), {})
    assert caught.value.exit_status == 143
    task, go, _ = loop_parts(mnist5k, parts, Signal(), lambda parts: parts)
    state, record = checkpoint.Checkpoints(parts).restore(task.init(jax.random.key(0)))
    assert int(state.step) == 3 and record["reported"] == 2
    found = go(state, record)
    assert leaves.fingerprint(*found.state[::2][:2]) == leaves.fingerprint(*expected.state[::2][:2])
    assert found.metrics == expected.metrics
    assert (parts / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def state_of(value):
    params = {"w": jnp.full((3, 4), float(value)), "b": jnp.arange(4.0)}
    return State(params, {}, (params,), jnp.int32(np.nan_to_num(value)), jax.random.key(7))


def saved(tmp_path, *steps, **options):
    lines = []
    store = checkpoint.Checkpoints(tmp_path, report=lines.append, **options)
    for step in steps:
        store.save(step, state_of(step), record={"reported": step}, metrics={"accuracy": 1.0 / step})
    store.wait()
    return store, lines


def test_a_checkpoint_comes_back_whole_and_the_best_is_kept(tmp_path):
    store, _ = saved(tmp_path, 1, 2, 3, 4)
    assert store.steps() == [1, 3, 4] and store.best_step() == 1
    state, record = store.restore(state_of(0))
    assert record == {"reported": 4}
    assert tree_error(state.params, state_of(4).params) == 0 and int(state.step) == 4
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7)))


@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "description"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_older_one_used(tmp_path, kind):
    store, lines = saved(tmp_path, 1, 2)
    folder_of = tmp_path / "checkpoints" / "2"
    files = [p for p in folder_of.glob("state/**/d/*") if p.is_file()]
    if kind in ("flip", "truncate"):  # Every data file: which of them hold the arrays is orbax's own affair.
        for path in files:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 4
            path.write_bytes(content if kind == "flip" else content[:10])
    elif kind == "description":
        path = folder_of / "about" / "metadata"
        path.write_text(path.read_text().replace("reported", "deported"))
    else:
        (tmp_path / "checkpoints" / "20").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("not a checkpoint")
    state, _ = store.restore(state_of(0))
    assert int(state.step) == (2 if kind == "empty" else 1)
    moved = "20" if kind == "empty" else "2"
    assert (
        (tmp_path / "damaged_checkpoints" / moved).is_dir()
        and len(lines) == 1
        and f"checkpoint {moved} is damaged" in lines[0]
    )


def test_a_flipped_bit_that_orbax_restores_silently_is_noticed(tmp_path):
    weights = jax.random.bits(jax.random.key(0), (64, 64))  # Incompressible: the file holds the very bytes.
    lines: list[str] = []
    store = checkpoint.Checkpoints(tmp_path, report=lines.append)
    state = state_of(1)._replace(params={"w": weights})
    store.save(1, state, record={})
    store.wait()
    row, flipped = np.asarray(weights)[32].tobytes(), 0
    for path in (tmp_path / "checkpoints" / "1").glob("state/**/d/*"):
        content = bytearray(path.read_bytes())
        if (at := content.find(row[:16])) >= 0:
            content[at] ^= 1
            path.write_bytes(content)
            flipped += 1
    assert flipped
    assert store.restore(state) is None and "the values of .params['w'] are damaged" in lines[0]


def test_another_network_is_refused_with_both_shapes(tmp_path):
    store, _ = saved(tmp_path, 1)
    other = state_of(0)._replace(params={"w": jnp.zeros((3, 5)), "b": jnp.zeros(4)})
    with pytest.raises(checkpoint.CheckpointError, match=r"float32\[3, 4\] there and float32\[3, 5\] here"):
        store.restore(other)
    assert store.steps() == [1]


def test_nothing_that_is_not_finite_is_saved(tmp_path):
    store, _ = saved(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        store.save(2, state_of(float("nan")), record={})
    assert store.steps() == [1]


def test_the_fingerprint_sees_values_names_and_types():
    base = {"a": np.zeros(2, np.float32)}
    others = [{"a": np.array([0, 1], np.float32)}, {"b": base["a"]}, {"a": np.zeros(2, np.int32)}]
    assert len({leaves.fingerprint(tree, ()) for tree in [base, *others]}) == 4
    assert leaves.fingerprint(base, ()) == leaves.fingerprint({"a": jnp.zeros(2)}, ())


def test_metrics_file_drops_rows_that_come_again(tmp_path):
    for step, rows in ((0, [1, 2, 3]), (2, [3, 4])):
        file = folder.MetricsFile(tmp_path, ["step", "loss", "other"], step=step)
        for number in rows:
            file.append({"step": number, "loss": number / 3})
        file.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,loss,other", *(f"{n},{n / 3!r}," for n in (1, 2, 3, 4))]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    first = folder.RunFolder(str(tmp_path))
    with pytest.raises(folder.FolderError, match="another run is using"):
        folder.RunFolder(str(tmp_path))
    first.close()
    folder.RunFolder(str(tmp_path)).close()
