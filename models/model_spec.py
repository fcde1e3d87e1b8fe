"""Registry entries: a model's module and its metadata."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn

from models.torchvision import TorchvisionLayout

Task = Literal["classification", "segmentation", "generation", "reconstruction"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The registry entry for one model name.

    Attributes:
      module: The Linen module class, with a field `num_classes` unless it reconstructs images, or a functools.partial
        of it that fixes other fields, for example the depth.
      task: The task that the model solves.
      image_shape: Default image shape (height, width, channels), from the data set that the model was published for.
      num_classes: Number of classes of that data set.
      author_groups: The learning-rate and weight-decay multipliers of the model's authors, as (regular expression for
        the parameter path, learning-rate multiplier, weight-decay multiplier). Empty if there are none.
      torchvision: The layer names in torchvision's state dict; None if torchvision has no such model.
      data_dependent_init: Computes initial batch statistics from data: a function of (batch statistics, normalized
        images [B, H, W, C]) that returns the new batch statistics.
      first_filters: Computes the filters [h, w, C, F] of the first layer from (parameters, batch statistics), for a
        model whose first layer is not simply a convolution kernel.
      raw_pixels: True if the model takes pixel values 0 to 255 instead of normalized images.
      encoders: Models that the encoder can be initialized from, each with the prefixes of the layer names it shares.
    """

    module: Callable[..., nn.Module]
    task: Task = "classification"
    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_classes: int = 10
    author_groups: tuple[tuple[str, float, float], ...] = ()
    torchvision: TorchvisionLayout | None = None
    data_dependent_init: Callable | None = None
    first_filters: Callable | None = None
    raw_pixels: bool = False
    encoders: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> set[str]:
        """The names of the module's configurable fields, without `num_classes`."""
        fixed: Mapping[str, Any] = {}
        module: Any = self.module
        if isinstance(module, functools.partial):
            module, fixed = module.func, module.keywords
        names = {field.name for field in dataclasses.fields(module)}
        return names - {"parent", "name", "num_classes", "guided", *fixed}
