"""Tests of checkpoints, fingerprints and workdirs, intact and damaged."""

import errno
import io
import os
import pathlib
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from train import checkpoint, leaves, workdir
from train.equality import tree_error
from train.state import State

BEST = ("accuracy", "max")


def state_of(value):
    params = {"w": jnp.full((3, 4), float(value)), "b": jnp.arange(4.0)}
    return State(params, {}, (params,), jnp.int32(np.nan_to_num(value)), jax.random.key(7))


def saved(tmp_path, *steps, **options):
    lines = []
    store = checkpoint.Checkpoints(tmp_path, best=BEST, report=lines.append, **options)
    for step in steps:
        store.save(step, state_of(step), record={"reported": step}, metrics={"accuracy": 1.0 / step})
    store.wait()
    return store, lines


def test_a_checkpoint_is_restored_exactly_and_the_best_is_kept(tmp_path):
    store, _ = saved(tmp_path, 1, 2, 3, 4)
    assert store.steps() == [1, 3, 4] and store.best_step() == 1
    state, record = store.restore(state_of(0))
    assert record == {"reported": 4}
    assert tree_error(state.params, state_of(4).params) == 0 and int(state.step) == 4
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7)))


def test_only_the_newest_and_the_best_are_kept_also_after_a_restart(tmp_path):
    saved(tmp_path, 1, 2, 3, keep=1)
    store = checkpoint.Checkpoints(tmp_path, best=BEST, keep=1)
    for step in (4, 5):
        store.save(step, state_of(step), record={})
    store.wait()
    assert store.steps() == [1, 5]
    (tmp_path / "checkpoints" / "9").mkdir()
    (tmp_path / "checkpoints" / "1" / "about" / "metadata").write_text("{")
    state, _ = checkpoint.Checkpoints(tmp_path, best=BEST, owner=False, report=print).restore(state_of(0), best=True)
    assert int(state.step) == 5 and store.steps() == [1, 5, 9]


@pytest.mark.parametrize("name", ["lr=[0.1]", "a*", "why?", "a\\b"])
def test_paths_that_orbax_misinterprets_are_refused(tmp_path, name):
    """Orbax loses arrays saved below the first of these paths and writes those below the last to a/b."""
    for path in (tmp_path / name, tmp_path / name / "w"):
        message = re.escape(f"--workdir={path}: the path of a workdir can't contain ")
        for opened in (workdir.Workdir, checkpoint.Checkpoints):
            with pytest.raises(workdir.WorkdirError, match=message):
                opened(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a]b{c}", "a b'c", "#%20&$x", "ünï ☃"])
def test_paths_with_other_special_characters_are_accepted(tmp_path, name):
    store, _ = saved(tmp_path / name, 1)
    assert int(store.restore(state_of(0))[0].step) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_partial_checkpoint_of_a_killed_run_is_removed(tmp_path):
    """The resumed run removes it; a reader does not, since a run may be writing it."""
    saved(tmp_path, 1)
    part = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    for store in (checkpoint.Checkpoints(tmp_path, owner=False), checkpoint.Checkpoints(tmp_path)):
        (part / "state").mkdir(parents=True, exist_ok=True)
        (part / "state" / "d").write_bytes(bytes(1000))
        store.restore(state_of(0))
        assert part.exists() is not store.owner
    part.mkdir()
    saved(tmp_path, 3)
    assert not part.exists() and store.steps() == [1, 3]


def test_a_checkpoint_deleted_while_it_is_read_is_not_reported_as_damaged(tmp_path, monkeypatch):
    """The run that owns it deletes it after saving a newer one."""
    saved(tmp_path, 1, 2)
    reader, lines = checkpoint.Checkpoints(tmp_path, best=BEST, owner=False), []
    reader.report, read = lines.append, reader._read

    def overtaken(step, *arguments):
        if step == 2:
            saved(tmp_path, 3, keep=1)
        return read(step, *arguments)

    monkeypatch.setattr(reader, "_read", overtaken)
    state, _ = reader.restore(state_of(0))
    assert int(state.step) == 3 and reader.steps() == [1, 3] and not lines


def test_a_reader_skips_damaged_checkpoints(tmp_path):
    saved(tmp_path, 1, 2)
    for step in "12":
        (tmp_path / "checkpoints" / step / "about" / "metadata").write_text("{")
    lines = []
    assert checkpoint.Checkpoints(tmp_path, best=BEST, owner=False, report=lines.append).restore(state_of(0)) is None
    assert [line[:23] for line in lines] == ["checkpoint 2 is damaged", "checkpoint 1 is damaged"]
    assert all(line.endswith("it is skipped") for line in lines)


@pytest.mark.parametrize("kind", ["flip", "truncate", "empty", "description"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_older_one_used(tmp_path, kind):
    store, lines = saved(tmp_path, 1, 2)
    folder_of = tmp_path / "checkpoints" / "2"
    files = [p for p in folder_of.glob("state/**/d/*") if p.is_file()]
    if kind in ("flip", "truncate"):  # Every data file, since orbax decides which of them hold the arrays.
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


def test_a_flipped_bit_that_orbax_restores_silently_is_detected(tmp_path):
    weights = jax.random.bits(jax.random.key(0), (64, 64))  # Incompressible, so the file contains these bytes.
    lines: list[str] = []
    store = checkpoint.Checkpoints(tmp_path, best=BEST, report=lines.append)
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


READ_ERRORS = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES]


@pytest.mark.parametrize("number", READ_ERRORS, ids=lambda number: errno.errorcode[number])
def test_unreadable_metadata_is_not_reported_as_damaged(tmp_path, monkeypatch, number):
    store, lines = saved(tmp_path, 1, 2, 3)
    before = sorted((tmp_path / "checkpoints").rglob("*"))
    read = pathlib.Path.read_bytes

    def fails(path):
        if path.parts[-3:-1] == ("3", "about"):
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "read_bytes", fails)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            store.restore(state_of(0))
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            store.best_step()
    assert sorted((tmp_path / "checkpoints").rglob("*")) == before and not lines
    assert not (tmp_path / "damaged_checkpoints").exists() and store.restore(state_of(0))[1] == {"reported": 3}


def test_unreadable_arrays_are_not_reported_as_damaged(tmp_path, monkeypatch):
    """Whether tensorstore reports the error or reading the file raises it."""
    store, lines = saved(tmp_path, 1, 2)
    import orbax.checkpoint

    class Reader(orbax.checkpoint.Checkpointer):
        def restore(self, *arguments, **options):
            raise ValueError(message)

    monkeypatch.setattr(orbax.checkpoint, "Checkpointer", Reader)
    message = "Error opening: [source locations='x'] [os_error_code='5']"
    with pytest.raises(checkpoint.CheckpointError, match=f"cannot read .*checkpoints/2/state: {os.strerror(5)}"):
        store.restore(state_of(0))
    message, read = "DATA_LOSS: short read", pathlib.Path.read_bytes

    def fails(path):
        if "state" in path.parts:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", fails)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        store.restore(state_of(0))
    assert store.steps() == [1, 2] and not lines and not (tmp_path / "damaged_checkpoints").exists()


def test_other_orbax_errors_are_not_reported_as_damage(tmp_path, monkeypatch):
    store, lines = saved(tmp_path, 1, 2)
    import orbax.checkpoint

    class Reader(orbax.checkpoint.Checkpointer):
        def restore(self, *arguments, **options):
            raise RuntimeError("Unable to cast Python instance")

    monkeypatch.setattr(orbax.checkpoint, "Checkpointer", Reader)
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/2/state: Unable to cast"):
        store.restore(state_of(0))
    assert store.steps() == [1, 2] and not lines
    for opens in (checkpoint.Checkpoints, lambda path: workdir.Workdir(str(path))):
        with pytest.raises(workdir.WorkdirError, match="the locale can't represent this name; set LC_ALL"):
            opens(tmp_path / "\udcfcmlaut")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_temporarily_unreadable_best_checkpoint_is_kept(tmp_path, monkeypatch):
    store, _ = saved(tmp_path, 1, 2, keep=1)
    read = pathlib.Path.read_bytes

    def fails(path):
        if path.parts[-3:-1] == ("1", "about"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "read_bytes", fails)
        for step in (3, 4):
            store.save(step, state_of(step), record={}, metrics={"accuracy": 0.3 - step / 100})
        store.wait()
    assert store.steps() == [1, 2, 4] and store.best_step() == 1  # Step 2 is the best of those that could be read.


def test_saving_a_step_again_never_loses_it(tmp_path, monkeypatch):
    store, _ = saved(tmp_path, 1, 2)
    manager = store._open()

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manager, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(2, state_of(7), record={"reported": 7})
    again = checkpoint.Checkpoints(tmp_path, best=BEST)
    state, record = again.restore(state_of(0))
    assert record == {"reported": 2} and int(state.step) == 2 and again.steps() == [1, 2]
    again.save(2, state_of(7), record={"reported": 7})
    again.wait()
    assert again.restore(state_of(0))[1] == {"reported": 7}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_another_network_is_refused_with_both_shapes(tmp_path):
    store, _ = saved(tmp_path, 1)
    other = state_of(0)._replace(params={"w": jnp.zeros((3, 5)), "b": jnp.zeros(4)})
    with pytest.raises(checkpoint.CheckpointError, match=r"float32\[3, 4\] \(stored\), float32\[3, 5\] \(expected\)"):
        store.restore(other)
    assert store.steps() == [1]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    store, _ = saved(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="not finite at step 2"):
        store.save(2, state_of(float("nan")), record={})
    assert store.steps() == [1]


def test_the_fingerprint_depends_on_values_names_and_types():
    base = {"a": np.zeros(2, np.float32)}
    others = [{"a": np.array([0, 1], np.float32)}, {"b": base["a"]}, {"a": np.zeros(2, np.int32)}]
    assert len({leaves.fingerprint(tree, ()) for tree in [base, *others]}) == 4
    assert leaves.fingerprint(base, ()) == leaves.fingerprint({"a": jnp.zeros(2)}, ())


def test_metrics_file_drops_rows_after_the_restored_step(tmp_path):
    for step, rows in ((0, [1, 2, 3]), (2, [3, 4])):
        file = workdir.MetricsFile(tmp_path, ["step", "loss", "other"], step=step)
        for number in rows:
            file.append({"step": number, "loss": number / 3})
        file.close()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["step,loss,other", *(f"{n},{n / 3!r}," for n in (1, 2, 3, 4))]


def records(folder):
    """The events in TensorBoard's files."""
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:  # A record is its length, a checksum, the event and a checksum.
            (length,) = struct.unpack("<Q", content[:8])
            yield event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def events(folder):
    """The values of TensorBoard's files, as (tag, step, value)."""
    return [(value.tag, event.step, value) for event in records(folder) for value in event.summary.value]


@pytest.mark.parametrize("step", [0, 7])
def test_tensorboard_drops_rows_after_the_step(tmp_path, step):
    """An event with this status tells TensorBoard to drop the values of earlier files from its step on."""
    file = workdir.MetricsFile(tmp_path, ["step", "train_loss"], step=step)
    file.append({"step": step + 1, "train_loss": 0.5})
    file.close()
    status = event_pb2.SessionLog.START
    assert [event.step for event in records(tmp_path) if event.session_log.status == status] == [step + 1]


def test_tensorboard_has_grouped_tags_and_images(tmp_path):
    file = workdir.MetricsFile(tmp_path, ["step", "train_loss", "eval_loss", "seconds", "eval_accuracy_top5"], step=0)
    file.append({"step": 3, "train_loss": 0.5, "eval_loss": 0.25, "seconds": 2.0})
    file.append({"step": 4, "train_loss": 0.125, "eval_accuracy_top5": 1.0})
    file.close()
    scalars = [(tag, step, value.simple_value) for tag, step, value in events(tmp_path)]
    assert scalars == [
        ("loss/train", 3, 0.5),
        ("loss/eval", 3, 0.25),
        ("seconds", 3, 2.0),
        ("loss/train", 4, 0.125),
        ("accuracy_top5/eval", 4, 1.0),
    ]
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    workdir.write_event_images(tmp_path, {"figures/one": image}, step=9)
    tag, step, value = next(entry for entry in events(tmp_path) if entry[0].startswith("figures"))
    assert (tag, step) == ("figures/one", 9)
    np.testing.assert_array_equal(Image.open(io.BytesIO(value.image.encoded_image_string)), image)


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", refuse)
    with pytest.raises(workdir.WorkdirError, match=f"cannot lock --workdir={tmp_path}: No locks available"):
        workdir.Workdir(str(tmp_path))


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    first = workdir.Workdir(str(tmp_path))
    with pytest.raises(workdir.WorkdirError, match="another run is using"):
        workdir.Workdir(str(tmp_path))
    first.close()
    workdir.Workdir(str(tmp_path)).close()
