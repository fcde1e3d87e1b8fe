"""Checkpoints with orbax: asynchronous, atomic, the newest and the best kept, silent damage noticed."""

import functools
import hashlib
import json
import logging
import pathlib
import sys
from typing import Any

import jax
import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, or doesn't fit; the message names the folder."""


def _leaves(tree) -> dict[str, np.ndarray]:
    """Leaves by path, whole and on the host, copied: the device's memory may be given to the next step."""
    host = jax.tree.map(_raw, tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(host)}


def fingerprint(params, opt_state) -> str:
    """SHA-256 over the sorted leaves' paths, dtypes, shapes and bytes of parameters and optimizer state."""
    digest = hashlib.sha256()
    for path, leaf in sorted(_leaves({"params": params, "opt_state": opt_state}).items()):
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _bit_sum(leaf: np.ndarray) -> int:
    """Sum mod 2^32 of the leaf's bytes, as 32-bit words where they divide, times the odd weights 2 i + 1."""
    data = np.frombuffer(np.ascontiguousarray(leaf).tobytes(), np.uint8)
    words = data.view(np.uint32) if data.size % 4 == 0 else data.astype(np.uint32)
    return int((words * (2 * np.arange(words.size, dtype=np.uint32) + 1)).sum(dtype=np.uint32))


@functools.cache
def _quiet_orbax() -> None:
    """Drops orbax's own lines, by their path, and what the other arrays of a failed read or write print when orbax's
    event loop is gone already: the failure itself is raised."""
    before = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    for handler in [*logging.getLogger().handlers, *logging.getLogger("absl").handlers]:
        handler.addFilter(lambda record: "orbax" not in record.pathname and record.name != "asyncio")


class Checkpoints:
    """The folder `workdir`/checkpoints. `report` gets each line that a person should see."""

    def __init__(self, workdir: pathlib.Path, *, keep: int = 2, best=("accuracy", "max"), report=logging.warning):
        self.folder, self.damaged = workdir / "checkpoints", workdir / "damaged_checkpoints"
        self.keep, self.best, self.report, self._manager = keep, best, report, None

    def _orbax(self):
        """The manager, made at its first use: importing orbax takes longer than a small network's first step."""
        if self._manager is None:
            import orbax.checkpoint as ocp
            from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

            _quiet_orbax()
            metric, mode = self.best
            best = policy.BestN(
                get_metric_fn=lambda m: m[metric], reverse=mode == "min", n=1, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(self.keep), best])
            )
            self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        return self._manager

    def steps(self) -> list[int]:
        """Steps that have a folder, oldest first."""
        names = [p.name for p in self.folder.iterdir() if p.name.isdecimal()] if self.folder.is_dir() else []
        return sorted(int(name) for name in names)

    def best_step(self) -> int | None:
        """The step with the best metric, the earlier one of two equals; None without any."""
        metric, mode = self.best
        scores = {step: self._about(step).get("metrics") for step in self.steps()}
        signed = {step: found[metric] * (1 if mode == "max" else -1) for step, found in scores.items() if found}
        return max(signed, key=lambda step: (signed[step], -step)) if signed else None

    def save(self, step: int, state, record: dict, metrics: dict | None = None) -> None:
        """Begins to save whole host arrays and the JSON `record`. An error of the save before it is raised here."""
        import orbax.checkpoint as ocp

        leaves = _leaves(state)
        bad = [name for name, leaf in leaves.items() if leaf.dtype.kind == "f" and not np.isfinite(leaf).all()]
        if bad:
            raise FloatingPointError(f"{bad[0]} is not finite at step {step}; the last good checkpoint is kept")
        text = json.dumps({
            "record": record,
                "metrics": metrics,
            "leaves": {name: [str(leaf.dtype), list(leaf.shape), _bit_sum(leaf)] for name, leaf in leaves.items()},
        })  # fmt: skip
        about = {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), about=ocp.args.JsonSave(about))

        def replace():  # A step that a signal saved before its evaluation was done is saved again after it.
            if step in self._orbax().all_steps():
                self._orbax().delete(step)
            self._orbax().save(step, args=args, metrics=metrics, force=True)

        self._guard(replace)

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        if self._manager is not None:
            self._guard(self._manager.wait_until_finished)

    def _guard(self, action) -> None:
        try:
            action()
        except Exception as error:  # orbax and tensorstore raise many types for a full disk or a lost folder.
            line = " ".join(str(error).split())[:300]
            raise CheckpointError(f"cannot save a checkpoint in {self.folder}: {line}") from error

    def restore(self, like, *, step: int | None = None) -> tuple[Any, dict] | None:
        """(state, record) of `step`, by default the newest that is whole; None where there is none.

        A damaged step is moved aside and the next older one is used. Raises CheckpointError, naming both sides, where
        the checkpoint's leaves are not those of `like` (a tree of arrays or shapes): a configuration error.
        """
        for found in [step] if step is not None else self.steps()[::-1]:
            try:
                leaves, record = self._read(found, like)
            except (CheckpointError, PermissionError):
                raise
            except Exception as error:  # Whatever a damaged file makes json, zarr or tensorstore say.
                self._set_aside(found, error)
                continue
            paths, treedef = jax.tree_util.tree_flatten_with_path(like)
            arrays = [self._like(leaves[jax.tree_util.keystr(path)], leaf) for path, leaf in paths]
            return jax.tree.unflatten(treedef, arrays), record
        return None

    def restore_parameters(self, state):
        """`state`, a State, with the newest checkpoint's parameters and batch statistics; None where there is none.

        The optimizer may differ; raises CheckpointError where the network does.
        """
        for step in self.steps()[::-1]:
            leaves, _ = self._read(
                step, {name: getattr(state, name) for name in ("params", "batch_stats")}, partial=True
            )
            paths, treedef = jax.tree_util.tree_flatten_with_path(state)
            names = [jax.tree_util.keystr(path) for path, _ in paths]
            new = [
                self._like(leaves[n], leaf) if n in leaves else leaf for n, (_, leaf) in zip(names, paths, strict=True)
            ]
            return jax.tree.unflatten(treedef, new)
        return None

    @staticmethod
    def _like(array, leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(array) if is_key else jax.numpy.asarray(array)

    def _read(self, step: int, like, *, partial: bool = False) -> tuple[dict, dict]:
        import orbax.checkpoint as ocp

        _quiet_orbax()
        folder = self.folder.absolute() / str(step)
        about = self._about(step)
        saved = {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in about["leaves"].items()}
        wanted = {name: (str(leaf.dtype), leaf.shape) for name, leaf in _abstract(like).items()}
        if partial:  # Only the leaves of the named parts of the state; a dictionary's paths are written otherwise.
            wanted = {"." + name[2:].replace("']", "", 1): entry for name, entry in wanted.items()}
            kept = {name: entry for name, entry in saved.items() if name.startswith((".params", ".batch_stats"))}
        else:
            kept = saved
        for name in sorted(kept.keys() | wanted.keys()):
            if kept.get(name) != wanted.get(name):
                ours, theirs = (_say(side.get(name)) for side in (wanted, kept))
                raise CheckpointError(f"{folder} holds another network: {name} is {theirs} there and {ours} here")
        target = {name: np.zeros(shape, dtype) for name, (dtype, shape) in saved.items()}
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            leaves = reader.restore(folder / "state", args=ocp.args.StandardRestore(target))
        for name, leaf in leaves.items():
            if _bit_sum(np.asarray(leaf)) != about["leaves"][name][2]:
                raise ValueError(f"the values of {name} are damaged")
        return {name: leaves[name] for name in wanted}, about["record"]

    def _about(self, step: int) -> dict:
        """What `save` wrote beside the arrays. Raises ValueError or OSError where that is damaged."""
        about = json.loads((self.folder / str(step) / "about" / "metadata").read_text())
        if hashlib.sha256(about["text"].encode()).hexdigest() != about["sha256"]:
            raise ValueError("its description is damaged")
        return json.loads(about["text"])

    def _set_aside(self, step: int, error: Exception) -> None:
        source, number = self.folder / str(step), 0
        while (target := self.damaged / f"{step}{f'-{number}' if number else ''}").exists():
            number += 1
        self.damaged.mkdir(exist_ok=True)
        source.rename(target)
        self.report(f"checkpoint {step} is damaged ({' '.join(str(error).split())[:120]}); moved to {target}")


def _raw(leaf):
    """Key arrays as their uint32 data; other leaves as they are."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _abstract(tree) -> dict[str, Any]:
    shapes = jax.eval_shape(lambda tree: jax.tree.map(_raw, tree), tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def _say(entry) -> str:
    return "absent" if entry is None else f"{entry[0]}{list(entry[1])}"
