"""What a trained model is judged by on held-out images: one file per metric, found by its file name.

A metric called `elbo` is reported as `val_elbo`. Its file says which way is better (`DIRECTION`), what a model
must be able to do (`REQUIRES`, a protocol of raygen.models._base), and has one or more of these functions:

- `compute(model, images, seed)`: one number, for images [N, C, H, W] in [0, 1], which go to the model's device some at
  a time (`_chunks.on_device`), as all of them may be more than a GPU holds. Without it only an evaluation can ask for
  the metric, as it needs labels, a classifier or the training images: no training can be judged by it. If it does not
  compare samples, also `inputs`: what a model that restores corrupted images encodes in their place.
  With `MEAN_OVER_IMAGES = True` it is a mean over images that are looked at one by one.
- `compare(real, made)`: one number from features [N, F] of images and [M, F] of samples, over any network.
- `measure(model, evidence)`: the number with what an evaluation card shows beside it: details, what a simple baseline
  reaches, or what held-out images reach in the place of samples. With `ALL_CLASSES = True` it also sees images of
  classes that the model was not trained on.
"""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raygen.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from raygen.data import Dataset
    from raygen.models._base import Model

Direction = Literal["min", "max"]
HeldOut = Literal["validation", "test"]
"""The parts of a data set that no training sees."""

PREFIX = "val_"
TEST_PREFIX = "test_"
"""Of the name of a value on test images, in the place of PREFIX."""


FITTED_IMAGES, FITTED_PIXELS = 10_000, 100_000_000
"""Training images that a baseline or a probe is fitted on, at most, and numbers in all of them."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What an evaluation judges by: held-out images [N, C, H, W] in [0, 1] and what a training does not have.

    `corrupt` gives what a model sees of images [B, C, H, W], drawn from a seed; None if it sees them as they are.
    """

    images: Tensor
    seed: int
    dataset: Dataset  # whose training images they are compared with, of the classes that they are of
    labels: Tensor | None = None  # classes [N] of the images
    normal_class: int | None = None  # the class that is no anomaly
    samples: int = 5000  # to draw
    is_samples: int = 5000  # importance samples per image
    corrupt: Callable[[Tensor, int], Tensor | None] = lambda images, seed: None
    _known: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Result]) -> Result:
        """What `make` gives, kept under this name for the other metrics of the same evaluation."""
        if name not in self._known:
            self._known[name] = make()
        found: Result = self._known[name]
        return found

    @cached_property
    def inputs(self) -> Tensor:
        """What is encoded, [N, C, H, W] in [0, 1]."""
        return self._seen(self.images, self.seed)

    @cached_property
    def fitted_images(self) -> Tensor:
        """The first training images [M, C, H, W] in [0, 1] on the device of the others; M is `most_fitted`."""
        count = most_fitted(self.dataset.shape)
        return self.dataset.train.images[:count].to(self.images.device, self.images.dtype).div_(255)

    @cached_property
    def fitted_inputs(self) -> Tensor:
        """What is encoded of these, [M, C, H, W] in [0, 1], with other noise than that of `inputs`."""
        return self._seen(self.fitted_images, self.seed + 1)

    def _seen(self, images: Tensor, seed: int) -> Tensor:
        seen = self.corrupt(images, seed)
        return images if seen is None else seen


def most_fitted(shape: tuple[int, int, int]) -> int:
    """How many images of a shape (C, H, W) a baseline or a probe is fitted on at most."""
    return min(FITTED_IMAGES, max(2, FITTED_PIXELS // math.prod(shape)))


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a simpler method of the model's size reaches, fitted on so many training images."""

    name: str
    value: float
    fitted_on: int


@dataclass(frozen=True, kw_only=True)
class AgainstTraining:
    """So many samples were compared with training images; `real` is the value of held-out images in their place."""

    samples: int
    train_images: int
    real: float
    real_samples: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, and what must be known about it or is found with it, the details as plain JSON."""

    value: float
    details: Mapping[str, Any] = field(default_factory=dict)
    baseline: Baseline | None = None
    against_training: AgainstTraining | None = None


@dataclass(frozen=True)
class Metric:
    """One metric; `name` carries the prefix of values on validation images."""

    name: str
    direction: Direction
    requires: type
    compute: Callable[..., float] | None
    compare: Callable[[Tensor, Tensor], float] | None = None
    measure: Callable[[Model, Evidence], Measurement] | None = None
    all_classes: bool = False
    mean_over_images: bool = False

    def value(self, model: Model, images: Tensor, seed: int, inputs: Tensor | None) -> float:
        """What `compute` gives for images of which the model encodes `inputs`, the images themselves if None."""
        assert self.compute is not None, "a metric that only an evaluation can compute is refused before"
        return self.compute(model, images, seed, *(() if self.compare else (inputs,)))

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` beats `than` in this metric's direction."""
        return value > than if self.direction == "max" else value < than


def names() -> list[str]:
    """The names of all metrics, as they are reported."""
    return sorted(PREFIX + module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def reported(name: str, split: HeldOut) -> str:
    """What the value of the metric `name` is called that was computed on one part: val_elbo or test_elbo."""
    return (PREFIX if split == "validation" else TEST_PREFIX) + name.removeprefix(PREFIX)


def short(name: str) -> str:
    """The name of a metric or its value without what says the part."""
    return name.removeprefix(PREFIX).removeprefix(TEST_PREFIX)


def find(name: str) -> Metric:
    """The metric reported as `name`; raises SpecError with the nearest name where there is none."""
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"metrics: {', '.join(names())}"
        raise SpecError(f"there is no metric {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{name.removeprefix(PREFIX)}")
    return Metric(
        name=name,
        direction=module.DIRECTION,
        requires=module.REQUIRES,
        compute=getattr(module, "compute", None),
        compare=getattr(module, "compare", None),
        measure=getattr(module, "measure", None),
        all_classes=getattr(module, "ALL_CLASSES", False),
        mean_over_images=getattr(module, "MEAN_OVER_IMAGES", False),
    )
