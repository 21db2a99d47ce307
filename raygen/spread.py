"""How far two models' values may lie apart by chance: of the images, of the samples and of the training's seed.

By the delete-a-group jackknife (Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17): images
and samples fall into groups, and what a value becomes without each of them tells its standard error, also of distances
and of shares of neighbours, for which there is no formula. The groups are of the same images for every model, so that
what is hard for all of them leaves the difference alone. Shares of neighbours change by jumps, and their spread comes
out up to twice too wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raygen.models._base import Model, derived_seed

GROUPS = 20
STANDARD_ERRORS = 2.0
"""Standard errors in a spread: a larger difference comes by chance once in twenty times."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models lie apart in a value, 0 or more, and how far chance alone may take them.

    `over_seeds` says that both were trained on several seeds, whose spread is part of this one; without it another
    training of the same configuration may lie further away.
    """

    first: str
    second: str
    name: str
    difference: float
    spread: float
    over_seeds: bool

    @property
    def is_within(self) -> bool:
        """Whether chance explains it."""
        return self.difference <= self.spread

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {**vars(self), "within_spread": self.is_within}


def without_each_group(compare: Callable[[Tensor, Tensor], float], real: Tensor, made: Tensor) -> list[float]:
    """A comparison of features [N, F] of images and [M, F] of samples without each group of both; N and M above 2."""
    groups = min(GROUPS, len(real), len(made))
    real_group, made_group = (torch.arange(len(each), device=each.device) % groups for each in (real, made))
    return [compare(real[real_group != group], made[made_group != group]) for group in range(groups)]


def mean_without_each_group(
    compute: Callable[[Model, Tensor, int, Tensor], float], model: Model, images: Tensor, inputs: Tensor, seed: int
) -> list[float]:
    """The same for a mean over images [N, C, H, W], N above 1, each of which is looked at once.

    The model encodes `inputs` [N, C, H, W], which are the images unless it learns to restore them.
    """
    groups = min(GROUPS, len(images))
    sizes = [len(range(group, len(images), groups)) for group in range(groups)]
    sums = [
        size * compute(model, images[group::groups], derived_seed(seed, "group", group), inputs[group::groups])
        for group, size in enumerate(sizes)
    ]
    return [(sum(sums) - own) / (len(images) - size) for own, size in zip(sums, sizes, strict=True)]


def standard_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the difference of two values, from what each is without every group; NaN if one of these is."""
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    return math.sqrt((len(differences) - 1) * float(differences.var(correction=0)))
