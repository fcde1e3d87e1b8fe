"""flags.txt, run.json and summary.json of a run, its progress bar, and how a run is opened again."""

import atexit
import datetime
import importlib.metadata
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import models
from experiments.cli import flags
from train import checkpoint, leaves
from train import workdir as folder
from train.parallel import processes
from train.state import State, parameter_count

FOREIGN = ("options.json", "lecture.html", "sweep.csv")  # Of experiments, the lecture and sweeps.
# Flags that give weights of one shape another sense.
SENSE = ("model", "v1_5", "local_response_norm", "activation", "slope", "decoder", "authors", "conditional")


def start(home: folder.Workdir, config: dict, setup, *, dataset) -> dict | None:
    """The summary if the run is complete. Raises WorkdirError on every process where the folder is another's."""
    finished = processes.run_on_all_processes(lambda: open_run(home, config, setup, dataset=dataset))
    return processes.broadcast_json(finished)


def run_folder(workdir: str) -> folder.Workdir:
    """The run's folder, locked; of several processes the first has it, the others write to one that is removed."""
    if processes.is_main():
        return folder.Workdir(workdir)
    place = tempfile.mkdtemp(prefix="nutshell_process_")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return folder.Workdir(place)


def open_run(home: folder.Workdir, config: dict, setup, *, dataset) -> dict | None:
    """The summary if this folder's run is complete, else None. Raises WorkdirError, both sides shown, if the folder
    belongs to a run with other flags or on other data."""
    run = home.read_json("run.json")
    if run is None:
        found = [f"{name} of another command" for name in FOREIGN if (home.path / name).exists()]
        found += ["checkpoints, but no run.json that says whose"][: len(checkpoint.Checkpoints(home.path).steps())]
        if found:
            raise folder.WorkdirError(f"{home.path} holds {found[0]}; choose a new --workdir")
        return None
    if not isinstance(old := run.get("flags"), dict):
        raise folder.WorkdirError(f"{home.path / 'run.json'} is damaged: it holds no flags")
    old = {name: value for name, value in flags.LATER.items() if name in config} | old
    free = flags.FREE | (flags.FREE_IF_ACCUMULATED if config.get("fc_update") == "accumulate" else set())
    differing = sorted(k for k in config.keys() | old.keys() if k not in free and old.get(k) != config.get(k))
    if differing or run.get("task") != setup.task.name:
        pairs = "; ".join(f"--{k}: {given(old.get(k))} there, {given(config.get(k))} here" for k in differing)
        raise folder.WorkdirError(
            f"{home.path} belongs to another run ({pairs or run.get('task')}); choose a new --workdir"
        )
    about = setup.about
    data: dict[str, Any] = {"class_names": list(about.class_names), "image_shape": list(about.image_shape)}
    data |= {"splits": counts(dataset), "mean": list(about.mean), "std": list(about.std)}
    if hasattr(about, "class_weights"):  # Computed from the training labels, perhaps.
        data["class_weights"] = list(about.class_weights)
    for name, here in data.items():
        there = run.get(name, here)
        if name in ("mean", "std", "class_weights"):  # Another machine may round otherwise.
            same = np.shape(there) == np.shape(here) and np.allclose(there, here, rtol=1e-5)
        else:
            same = there == here
        if not same and not config["dry_run_data"]:
            raise folder.WorkdirError(f"{home.path} belongs to a run on other data: {name} {there} there, {here} here")
    finished = home.read_json("summary.json")
    return finished if finished and {setup.task.best[0], "fingerprint", "split", "step"} <= finished.keys() else None


def given(value) -> str:
    """A flag's value, as a message names it."""
    return "(not given)" if value is None else str(value)


def dry_folder(home: folder.Workdir) -> folder.Workdir:
    """A folder inside the run's own that is removed when the process ends: a dry run leaves nothing behind."""
    for left in home.path.glob(".dry_run_*"):  # Of one that was killed.
        shutil.rmtree(left, ignore_errors=True)
    place = tempfile.mkdtemp(prefix=".dry_run_", dir=home.path)
    atexit.register(home.remove_if_made)
    atexit.register(shutil.rmtree, place, ignore_errors=True)  # The last that is registered runs first.
    return folder.Workdir(place)


def load_run(workdir: str, *, flag: str = "workdir") -> dict:
    """run.json of a workdir, given by the flag. Raises WorkdirError where there is none."""
    path = pathlib.Path(workdir, "run.json")
    try:
        run = json.loads(path.read_text())
        needed = ("flags", "class_names", "image_shape", "mean", "std")
        names, shape = run["class_names"], run["image_shape"]
        sound = all(isinstance(name, str) for name in names) and len(shape) == 3 and all(int(n) > 0 for n in shape)
        if not sound or not all(run[name] for name in needed) or not {"task", "steps"} <= run.keys():
            return _no_run(workdir, flag)
        return {**run, "flags": flags.LATER | run["flags"]}
    except (OSError, ValueError, KeyError, TypeError):
        return _no_run(workdir, flag)


def _no_run(workdir, flag):
    raise folder.WorkdirError(f"--{flag}={workdir} holds no run: no readable run.json there")


def initial_state(config: dict, state: State) -> State:
    """`state`, or with --init_from its parameters and batch statistics replaced by those of another workdir; of a
    network that is this one's encoder, by that part."""
    if not config["init_from"]:
        return state
    theirs = load_run(config["init_from"], flag="init_from")["flags"]
    encoder = models.spec(config["model"]).encoders.get(theirs["model"])
    for name in SENSE if encoder is None else ():
        there, here = theirs.get(name), config.get(name)
        if (there or None) != (here or None):
            both = f"has --{name}={given(there)}, this run --{name}={given(here)}"
            raise flags.UsageError(f"--init_from={config['init_from']} {both}")
    parts: tuple[str, ...] = (".params", ".batch_stats")
    if encoder is not None:
        parts = tuple(f"{part}['{layer}" for part in parts for layer in encoder)
    source = checkpoint.Checkpoints(pathlib.Path(config["init_from"]), report=print_line, owner=False)
    found = source.restore(state, parts=parts)
    if found is None:
        raise folder.WorkdirError(f"--init_from={config['init_from']} holds no checkpoint")
    return found[0]


def _commit() -> str | None:
    here = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def counts(dataset) -> dict[str, int]:
    """Examples of each split."""
    return {split: len(labels) for split, (_, labels) in dataset.splits.items()}


def describe(dataset, state) -> str:
    images = ", ".join(f"{count:,} {split}" for split, count in counts(dataset).items())
    return f"{parameter_count(state.params):,} parameters; {images} images"


def write_start(home: folder.Workdir, config: dict, setup, *, dataset, state, steps: int, devices: str) -> None:
    """flags.txt and run.json; a run that goes on keeps its first start."""
    from models import summary as table

    old = home.read_json("run.json") or {}
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    run = {
        "task": setup.task.name,
        "flags": config,
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "commit": _commit(),
        "devices": devices,
        "seed": config["seed"],
        "steps": steps,
        "parameters": parameter_count(state.params),
        "multiply_adds": sum(layer.multiply_adds for layer in table.layers(setup.model, setup.input_shape)),
        "dataset": config["dataset"],
        **{name: list(value) for name, value in setup.about._asdict().items()},
        "splits": counts(dataset),
        "start": old.get("start") or _now(),
        "end": None,
    }
    folder.write_atomically(home.path / "flags.txt", flags.flagfile(config))
    home.write_json("run.json", run)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def write_end(home: folder.Workdir, summary: dict) -> None:
    """The end in run.json, then summary.json, whose presence says that the run is complete."""
    home.write_json("run.json", (home.read_json("run.json") or {}) | {"end": _now()})
    home.write_json("summary.json", summary)


def summary(config, setup, result, split: str, examples: int, workdir: str) -> dict:
    """The last line of standard output."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "split": split,
        **{name: result.metrics[name] for name in setup.task.metrics},
        **setup.task.details(result.sums),
        "examples": examples,
        "step": int(result.state.step),
        "seed": config["seed"],
        "parameters": parameter_count(result.state.params),
        "seconds": round(result.seconds, 2),
        "compile_seconds": round(result.compile_seconds, 2),
        "images_per_second": round(result.images_per_second, 1),
        "fingerprint": leaves.fingerprint(result.state.params, result.state.opt_state),
        "workdir": workdir,
    }


def headline(summary: dict) -> str:
    if "classifier_fid" in summary:
        of = f"{summary['floor']:.2f} (real pictures) and {summary['ceiling']:.1f} (untrained)"
        score = f"classifier_fid {summary['classifier_fid']:.2f} between {of}"
    else:
        name, title = ("accuracy", "accuracy") if "accuracy" in summary else ("mean_iou", "mean IoU")
        score = f"{title} {100 * summary[name]:.2f} %"
    return (
        f"{summary['split']} {score} of {summary['examples']:,} images, loss "
        f"{summary['loss']:.4f}, step {summary['step']:,}, {summary['seconds']:.0f} s"
    )


def columns(task) -> list[str]:
    """The header of metrics.csv."""
    parts = (("train", task.train_metrics), ("eval", task.metrics))
    names = [f"{part}_{name}" for part, metrics in parts for name in metrics]
    return ["step", *names, "learning_rate", "seconds", "images_per_second"]


def say_finished(summary: dict) -> int:
    """What a start in the folder of a complete run prints; its exit status."""
    if processes.is_main():
        try:
            line = headline(summary)
        except (KeyError, TypeError, ValueError) as error:
            raise folder.WorkdirError(f"summary.json of this run is damaged: {error!r}") from None
        print_line(f"this run is complete: {line}; another needs another --workdir")
        print(json.dumps(summary))
    return 0


class Progress:
    """A bar on a terminal, log lines elsewhere; both on standard error."""

    def __init__(self, start: int, steps: int, *, shown: bool):
        self.steps, self.bar, self.start, self.shown = steps, None, start, shown and processes.is_main()

    def __enter__(self):
        if sys.stderr.isatty() and self.shown:
            from tqdm import tqdm

            self.bar = tqdm(total=self.steps, initial=self.start, unit="step", file=sys.stderr)
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, step: int, row: dict) -> None:
        named = {"train_loss": "loss", "train_accuracy": "accuracy", "train_global_accuracy": "global accuracy",
                 "images_per_second": "images/s", "eval_loss": "eval loss", "eval_accuracy": "eval accuracy",
                 "eval_mean_iou": "eval mean IoU", "eval_classifier_fid": "classifier_fid"}  # fmt: skip
        shown = {
            label: f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.4g}"
            for key, label in named.items()
            if row.get(key) is not None
        }
        if self.bar is not None:
            self.bar.n = step
            self.bar.set_postfix(shown)
        elif "eval_loss" in row and self.shown:
            print(
                f"step {step}/{self.steps}  " + "  ".join(f"{k} {v}" for k, v in shown.items()),
                file=sys.stderr,
                flush=True,
            )


def restore(run_setup, workdir: str, which: str):
    """The state of a workdir's newest or best checkpoint."""
    import jax

    checkpoints = checkpoint.Checkpoints(
        pathlib.Path(workdir), best=run_setup.task.best, report=print_line, owner=False
    )
    like = jax.eval_shape(run_setup.task.init, jax.random.key(0))
    found = checkpoints.restore(like, best=which == "best")
    if found is None:
        raise folder.WorkdirError(f"--workdir={workdir} holds no checkpoint")
    return found[0]


def absolute(workdir: str) -> pathlib.Path:
    return pathlib.Path(workdir).absolute()


def print_line(line: str) -> None:
    print(flags.one_line(line), file=sys.stderr, flush=True)
