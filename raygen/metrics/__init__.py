"""What a trained model is judged by on held-out images: one file per metric, found by its file name.

A metric called `elbo` is reported as `val_elbo`. Its file says which way is better (`DIRECTION`), what a model
must be able to do (`REQUIRES`, a protocol of raygen.models._base) and computes one number:
`compute(model, images, seed)` with images [N, C, H, W] in [0, 1] on the model's device.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raygen.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from raygen.models._base import Model

Direction = Literal["min", "max"]
PREFIX = "val_"


@dataclass(frozen=True)
class Metric:
    """One metric; `name` carries the prefix that says it was computed on held-out images."""

    name: str
    direction: Direction
    requires: type
    compute: Callable[[Model, Tensor, int], float]

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` beats `than` in this metric's direction."""
        return value > than if self.direction == "max" else value < than


def names() -> list[str]:
    """The names of all metrics, as they are reported."""
    return sorted(PREFIX + module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


def find(name: str) -> Metric:
    """The metric reported as `name`; raises SpecError with the nearest name where there is none."""
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"metrics: {', '.join(names())}"
        raise SpecError(f"there is no metric {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{name.removeprefix(PREFIX)}")
    return Metric(name=name, direction=module.DIRECTION, requires=module.REQUIRES, compute=module.compute)
