"""Tests of concurrent and of killed calls of prepare."""

import errno
import os
import signal

import pytest
from commands import SignalAt
from test_unpack import NESTED, files, nested

from data.dataset import DataError
from data.prepare import lock


def prepare(tmp_path, *arguments):
    return "prepare", "--dataset=folder", f"--source={nested(tmp_path / 't.tar')}", "--split=train", *arguments


@pytest.mark.parametrize("flag", ["data_dir", "shards"])
def test_a_folder_in_use_is_refused_and_left_unchanged(tmp_path, start, flag):
    folders = {"data_dir": tmp_path / "d", "shards": tmp_path / "s"}
    used = folders[flag]
    unfinished = [used / "train/.n01.part/1.JPEG", used / "pictures/incomplete.AB_1.0.0/pictures-train.array_record"]
    for path in unfinished:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"of the other process")
    with lock.locked(used):
        done = start(*prepare(tmp_path, *(f"--{name}={folder}" for name, folder in folders.items())))
    line = f"error: another process is preparing a data set in {used}; wait until it has finished\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    assert all(path.read_bytes() == b"of the other process" for path in unfinished)
    assert files(tmp_path) == sorted([*(str(path.relative_to(tmp_path)) for path in unfinished), "t.tar"])


def test_leftovers_of_a_killed_call_are_removed(tmp_path, launch, start):
    both = f"--data_dir={tmp_path / 'd'}", f"--shards={tmp_path / 's'}"
    killed = launch(*prepare(tmp_path, *both), signal_at=SignalAt(signal.SIGKILL, "data.prepare.unpack:write", 5))
    assert killed.wait().returncode == -signal.SIGKILL
    (tmp_path / "s/pictures/incomplete.AB_1.0.0").mkdir(parents=True)
    left = files(tmp_path / "d")
    assert lock.NAME in left and "train/.n02.part/n02_0.JPEG" in left, left
    done = start(*prepare(tmp_path, *both))
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "d") == [f"train/{name}" for name in NESTED]
    assert os.listdir(tmp_path / "s/pictures") == ["1.0.0"]


def test_folders_of_a_failed_call_are_removed(tmp_path, start):
    (tmp_path / "t.tar").write_bytes(b"no archive")
    done = start("prepare", "--dataset=cifar10", f"--source={tmp_path / 't.tar'}", f"--data_dir={tmp_path / 'a/b'}")
    assert done.returncode == 1 and "can't be read as a tar archive" in done.stderr
    assert os.listdir(tmp_path) == ["t.tar"]


def test_a_lock_is_retried_if_its_file_was_removed_meanwhile(tmp_path, monkeypatch):
    """Between opening and locking the file, the process that held the lock ends and a third one acquires it."""
    third, flock = [], lock.fcntl.flock

    def late(file, operation):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        (tmp_path / lock.NAME).unlink()
        third.append(lock.locked(tmp_path))
        third[0].__enter__()
        flock(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with pytest.raises(DataError, match="another process is preparing"), lock.locked(tmp_path):
        pass
    third[0].__exit__(None, None, None)
    assert os.listdir(tmp_path) == []
    with lock.locked(tmp_path, tmp_path / "."):
        assert os.listdir(tmp_path) == [lock.NAME]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EROFS])
def test_a_folder_that_cannot_be_locked_is_used_without_a_lock(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.locked(tmp_path / "new"):
        (tmp_path / "new/file").touch()
    assert files(tmp_path) == ["new/file"]
