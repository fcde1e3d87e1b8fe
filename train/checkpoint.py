"""Asynchronous, atomic checkpoints with Orbax and checksums; the newest ones and the best are kept."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from train import leaves
from train.messages import say
from train.orbax_logging import drop_library_lines
from train.parallel import processes
from train.workdir import check_name


class CheckpointError(RuntimeError):
    """A checkpoint can't be written or read, or does not match; the message names the folder."""


class _Damaged(Exception):
    """Verified damage: content is missing, can't be decoded or has a wrong digest. A read error is not damage."""


def _orbax() -> Any:
    drop_library_lines()
    import orbax.checkpoint  # Imported at first use: the import takes longer than a small network's first step.

    return orbax.checkpoint


def _best(scores: dict[int, float | None]) -> int | None:
    """The step with the largest score, the earliest if tied; None if there are no scores."""
    known = {step: score for step, score in scores.items() if score is not None}
    return max(known, key=lambda step: (known[step], -step)) if known else None


def _errno(error: Exception) -> int | None:
    """The operating system's error number in tensorstore's error message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


@dataclasses.dataclass
class Checkpoints:
    """The folder `workdir`/checkpoints; `report` receives messages for the user. Only the `owner`, which holds the
    workdir's lock, moves checkpoints, and only those that are verified to be damaged; a reader skips them."""

    workdir: pathlib.Path
    keep: int = 2
    best: tuple[str, str] | None = None  # (metric, "max" or "min"); the best step is kept too.
    report: Callable[[str], Any] = say
    owner: bool = True
    constants: Any = None  # The run's constants, JSON, stored in each checkpoint.
    _manager: Any = None

    def __post_init__(self):
        check_name(self.workdir)
        self.folder, self.damaged = (self.workdir.absolute() / f"{kind}checkpoints" for kind in ("", "damaged_"))

    def _open(self):
        if self._manager is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._recover()
            alone = processes.single_process_options(_orbax().options.MultiprocessingOptions)
            options = _orbax().CheckpointManagerOptions(create=False, multiprocessing_options=alone)
            self._manager = _orbax().CheckpointManager(self.folder, options=options)  # Keeps all; `wait` deletes.
        return self._manager

    def steps(self) -> list[int]:
        """The steps that have a folder, in ascending order."""
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is a file, not a folder of checkpoints; choose a new --workdir")
        names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def _recover(self) -> None:
        """Completes or undoes the replacement of a checkpoint that a killed process left unfinished, and removes
        partial checkpoints. Must not be called while a save is in progress."""
        for part in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
        for previous in self.folder.glob(".*.previous"):
            new = self.folder / previous.name.split(".")[1]
            if new.exists():
                shutil.rmtree(previous, ignore_errors=True)
            else:
                previous.rename(new)

    def _score(self, step: int) -> float | None:
        """The metric of a step, with its sign changed for "min" so that larger is better; None if there is none or the
        step is damaged. Raises OSError if it can't be read."""
        try:
            metrics = self._about(step)["metrics"]
        except _Damaged:
            return None
        if self.best is None:
            return None
        value = metrics.get(self.best[0]) if isinstance(metrics, dict) else None
        return value * (1 if self.best[1] == "max" else -1) if isinstance(value, int | float) else None

    def best_step(self) -> int | None:
        """The step with the best metric, the earliest if tied; None if there is none. Damaged steps are ignored."""
        return _best({step: self._score(step) for step in self.steps()})

    def save(self, step: int, state, *, record: dict, metrics: dict | None = None) -> None:
        """Starts saving `state` and the JSON `record`. Raises FloatingPointError, without saving, if a value is not
        finite."""
        arrays = leaves.to_host(state)
        for name, leaf in arrays.items():
            if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                raise FloatingPointError(f"{name} is not finite at step {step}; earlier checkpoints are kept")
        named = {name: [str(leaf.dtype), list(leaf.shape), leaves.bit_sum(leaf)] for name, leaf in arrays.items()}
        text = json.dumps({"record": record, "metrics": metrics, "leaves": named, "constants": self.constants})
        about = {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        self.wait()
        args = _orbax().args
        parts = args.Composite(state=args.StandardSave(arrays), about=args.JsonSave(about))
        manager = self._open()
        if step in self.steps():
            # The step was saved after a signal, before its evaluation. Keep the old copy until the new one is complete.
            (self.folder / str(step)).rename(self.folder / f".{step}.previous")
            self._guard(manager.reload)
        self._guard(lambda: manager.save(step, args=parts, force=True))

    def wait(self) -> None:
        """Waits until the last save is on disk, then deletes all steps except the newest `keep` and the best. A step
        whose metric can't be read at the moment may be the best, so it is kept."""
        if self._manager is not None:
            self._guard(self._manager.wait_until_finished)
            self._recover()
            scores, unreadable = {}, set[int]()
            for step in self.steps():
                try:
                    scores[step] = self._score(step)
                except OSError:
                    unreadable.add(step)
            for step in set(self.steps()[: -self.keep]) - unreadable - {_best(scores)}:
                self._guard(lambda step=step: self._manager.delete(step))

    def _guard(self, action) -> None:
        try:
            action()
        except Exception as error:  # orbax and tensorstore raise many types for a full disk or a lost folder.
            number = _errno(error)
            line = os.strerror(number) if number else " ".join(str(error).split())[:300]
            raise CheckpointError(f"cannot save a checkpoint in {self.folder}: {line}") from error

    def restore(
        self, like, *, best: bool = False, parts: tuple[str, ...] = ("",), without: frozenset[str] = frozenset()
    ) -> tuple[Any, dict] | None:
        """Returns (state, record) of the newest, or the best, undamaged step; None if there is none.

        Leaves whose path does not begin with one of `parts`, and leaves in `without`, are taken from `like` (arrays or
        shapes). A damaged step is moved aside and the next older one is used. Raises CheckpointError, naming both
        shapes, if leaves differ from `like`, and CheckpointError or OSError if a checkpoint can't be read; it may be
        undamaged, so it is not moved.
        """
        if self.owner and self.folder.is_dir():
            self._recover()
        tried: set[int | None] = {None}
        while True:
            # Listed again each time, because the run may be saving and deleting steps.
            first = [self.best_step()] if best and tried == {None} else []
            found = next((step for step in [*first, *self.steps()[::-1]] if step not in tried), None)
            if found is None:
                return None
            tried.add(found)
            try:
                arrays, record = self._read(found, like, parts, without)
            except _Damaged as error:
                if found in self.steps():
                    self._set_aside(found, error)
                continue
            return leaves.from_host(arrays, like), record

    def _about(self, step: int) -> dict:
        """The metadata of a step. Raises OSError if it can't be read."""
        path = self.folder / str(step) / "about" / "metadata"
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise _Damaged("its metadata is missing") from None
        try:
            about = json.loads(content)
            if hashlib.sha256(about["text"].encode()).hexdigest() != about["sha256"]:
                raise _Damaged("its metadata is damaged")
            return json.loads(about["text"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Damaged("its metadata is damaged") from None

    def _arrays(self, step: int, target: dict) -> dict:
        """The arrays of a step, like `target`. Raises CheckpointError if its files can't be read."""
        folder = self.folder / str(step) / "state"
        alone = processes.single_process_options(_orbax().options.MultiprocessingOptions)
        try:
            with _orbax().Checkpointer(_orbax().StandardCheckpointHandler(), multiprocessing_options=alone) as reader:
                return reader.restore(folder, args=_orbax().args.StandardRestore(target))
        except Exception as error:  # orbax, zarr and tensorstore raise many types.
            number = _errno(error) or getattr(error, "errno", None)
            if number not in (None, errno.ENOENT):
                raise CheckpointError(f"cannot read {folder}: {os.strerror(number)}") from error
            undecodable = isinstance(error, ValueError | KeyError | TypeError | EOFError | FileNotFoundError)
            if not undecodable or isinstance(error, UnicodeEncodeError):
                raise CheckpointError(f"cannot read {folder}: {' '.join(str(error).split())[:300]}") from error
            for path in (path for path in folder.rglob("*") if path.is_file()):
                with contextlib.suppress(FileNotFoundError):
                    path.read_bytes()  # An OSError propagates: the file can't be read now, but may be undamaged.
            raise _Damaged(str(error)) from error

    def _read(self, step: int, like, parts, without) -> tuple[dict, dict]:
        about = self._about(step)
        saved = {name: f"{dtype}{shape}" for name, (dtype, shape, _) in about["leaves"].items()}
        ours = leaves.shapes(like)
        restored = {name for name in saved.keys() | ours.keys() if name.startswith(parts)} - without
        wanted = {name: entry for name, entry in ours.items() if name in restored}
        for name in sorted(restored):
            if saved.get(name) != wanted.get(name):
                both = f"{saved.get(name, 'absent')} (stored), {wanted.get(name, 'absent')} (expected)"
                raise CheckpointError(f"{self.folder / str(step)} contains a different network: {name}: {both}")
        target = {name: np.zeros(shape, dtype) for name, (dtype, shape, _) in about["leaves"].items()}
        arrays = self._arrays(step, target)
        for name, leaf in arrays.items():
            if leaves.bit_sum(np.asarray(leaf)) != about["leaves"][name][2]:
                raise _Damaged(f"the values of {name} are damaged")
        return {name: arrays[name] for name in wanted}, about["record"]

    def _set_aside(self, step: int, error: Exception) -> None:
        line, target = f"checkpoint {step} is damaged ({' '.join(str(error).split())[:120]})", self.damaged / str(step)
        if not self.owner:
            return self.report(f"{line}; it is skipped")
        while target.exists():
            target = target.with_name(f"{target.name}-again")
        self.damaged.mkdir(exist_ok=True)
        (self.folder / str(step)).rename(target)
        self.report(f"{line}; moved to {target}")
