"""Fine-tuning: which weights of a network depend on the classes, and how the other ones are trained.

The head consists of the parameters and batch statistics whose shape depends on the number of classes; all others are
the backbone. For other classes than those of the run of --init_from, the head is new.
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from experiments.cli.app import require
from experiments.cli.config import ClassifyConfig, SegmentConfig, TrainingConfig
from experiments.setup import saved_run
from models import summary
from models.errors import ModelError
from train import linear_probe
from train.task import Task
from train.workdir import WorkdirError

Leaf = tuple[str, ...]  # The keys of a variable, such as ("params", "logits", "kernel").


def keys(path) -> Leaf:
    return tuple(str(entry.key) for entry in path)


def shapes(model: nn.Module, input_shape) -> dict[Leaf, tuple[int, ...]]:
    """The shapes of parameters and batch statistics; nothing is computed."""
    found = summary.variables(model, input_shape)
    kept = {name: found[name] for name in ("params", "batch_stats") if name in found}
    return {keys(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(kept)}


def head(model: Any, input_shape, *, name: str, flag: str) -> frozenset[Leaf]:
    """The variables whose shape depends on the number of classes. Raises UsageError, with the model's `name` and the
    `flag` that needs a backbone, if these are all variables, or if the network supports no other number of classes."""
    ours = shapes(model, input_shape)
    try:
        others = shapes(model.clone(num_classes=model.num_classes + 1), input_shape)
    except ModelError:  # logistic: two classes only.
        others = {}
    found = frozenset(leaf for leaf, shape in ours.items() if others.get(leaf) != shape)
    line = f"{flag}: all weights of --model={name} depend on the classes, so it has no backbone"
    require(len(found) < len(ours), line)
    return found


class Backbone(NamedTuple):
    """How the backbone is trained: `frozen`, or with its learning rate multiplied by `rate`."""

    head: frozenset[Leaf] = frozenset()
    frozen: bool = False
    rate: float = 1.0

    def is_frozen(self, path) -> bool:
        """Whether a parameter, given by its path, is not trained."""
        return ("params", *keys(path)) not in self.head

    @property
    def groups(self) -> tuple[tuple[str, float, float], ...]:
        """The groups of train.optimizers.create that multiply the backbone's learning rate."""
        names = ["/".join(leaf[1:]) for leaf in sorted(self.head) if leaf[0] == "params"]
        own = [(f"^{re.escape(name)}$", 1.0, 1.0) for name in names]
        return (*own, ("", self.rate, 1.0)) if self.rate != 1 else ()

    def optimizer(self, optimizer):
        return linear_probe.of_head(optimizer, self.is_frozen) if self.frozen else optimizer

    def module(self, model: nn.Module) -> Any:
        """What the task uses in place of the model."""
        return linear_probe.Probe(model, self.is_frozen) if self.frozen else model

    def task(self, task: Task) -> Task:
        return linear_probe.probing(task, self.is_frozen) if self.frozen else task


def backbone(config: ClassifyConfig | SegmentConfig, model: nn.Module, input_shape) -> Backbone:
    """How --freeze and --backbone_rate train the backbone. Raises UsageError if the network has none."""
    frozen, rate = config.freeze == "backbone", config.backbone_rate
    if not frozen and rate == 1:
        return Backbone()
    flag = "--freeze=backbone" if frozen else f"--backbone_rate={rate:g}"
    return Backbone(head(model, input_shape, name=config.model, flag=flag), frozen, rate)


def own_run(config: TrainingConfig) -> saved_run.SavedRun | None:
    """The run that the config resumes; None if it is new."""
    try:
        run = saved_run.read(config.workdir) if config.workdir else None
    except WorkdirError:
        return None
    return run if run and isinstance(run.config, type(config)) else None


def constants(config: ClassifyConfig | SegmentConfig) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation that the images of the run of --init_from were normalized with; None without
    it. A resumed run keeps its own: older versions computed them from its images."""
    if not config.init_from:
        return None
    info = (own_run(config) or saved_run.read(config.init_from, flag="init_from")).info
    return info.mean, info.std
