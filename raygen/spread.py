"""How far apart two models' values may lie by chance: of the images, of the samples and of the training's seed.

By the delete-a-group jackknife (Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17): images
and samples fall into groups, and what a value becomes without each of them tells its standard error, also of distances
and of shares of neighbours, for which there is no formula. The groups are the same images for every model, so that what
is hard for all of them leaves the difference alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raygen.metrics import Metric, _features
from raygen.metrics._features import FeatureNetwork
from raygen.models._base import Model, derived_seed

GROUPS = 20
STANDARD_ERRORS = 2.0
"""The spread in standard errors: a difference beyond it comes by chance once in twenty times."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models lie apart in a metric, and how far they may by chance alone.

    `over_seeds` says whether the spread of both models over training seeds is part of `spread`; without it the spread
    is one over images and samples, and another training of the same configuration may differ by more.
    """

    first: str
    second: str
    metric: str
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


def left_out(
    model: Model, metric: Metric, images: Tensor, *, samples: int, seed: int, network: FeatureNetwork | None
) -> list[float] | None:
    """The metric's value without each group of images [N, C, H, W] in [0, 1] and of samples, for N of 2 or more.

    None for a metric that is neither a comparison of features nor a mean over images.
    """
    groups = min(GROUPS, len(images))
    if metric.compare is not None and network is not None:
        real = _features.of_real(images, network)
        return _without_each(metric.compare, real, _features.of_samples(model, samples, seed, network), groups)
    if metric.mean_over_images and metric.compute is not None:
        return _of_mean(metric.compute, model, images, seed, groups)
    return None


def of_difference(first: list[float], second: list[float]) -> float:
    """The standard error of the difference of two values, from what each is without every group; NaN if one is."""
    differences = torch.tensor(first, dtype=torch.float64) - torch.tensor(second, dtype=torch.float64)
    groups = len(differences)
    return math.sqrt((groups - 1) * float(differences.var(correction=0)))


def _without_each(compare: Callable[[Tensor, Tensor], float], real: Tensor, made: Tensor, groups: int) -> list[float]:
    real_group, made_group = torch.arange(len(real)) % groups, torch.arange(len(made)) % groups
    return [compare(real[real_group != group], made[made_group != group]) for group in range(groups)]


def _of_mean(
    compute: Callable[[Model, Tensor, int], float], model: Model, images: Tensor, seed: int, groups: int
) -> list[float]:
    """The same for a mean over images, each of which is looked at only once."""
    sizes = [len(range(group, len(images), groups)) for group in range(groups)]
    sums = [
        size * compute(model, images[group::groups], derived_seed(seed, "group", group))
        for group, size in enumerate(sizes)
    ]
    return [(sum(sums) - own) / (len(images) - size) for own, size in zip(sums, sizes, strict=True)]
