"""What chance explains, against draws made again and again."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raygen.metrics import frechet, precision
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions
from raygen.spread import GROUPS, mean_without_each_group, standard_error, without_each_group


class Ruler(Model):
    """A model that judges an image by its mean pixel, times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(ModelOptions(name="ruler"), ImageShape(1, 8, 8))
        self.factor = factor

    def phases(self) -> list[Phase]:
        return []


def mean_pixel(model: Model, images: Tensor, seed: int, inputs: Tensor) -> float:
    assert isinstance(model, Ruler)
    assert torch.equal(images, inputs), "the same rows of both"
    return model.factor * images.double().mean().item()


def draw(seed: int, rows: int, shift: float = 0.0) -> Tensor:
    """Features [rows, 6] of unequal spread."""
    normal = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) + shift


def errors(compare: Callable[[Tensor, Tensor], float], rows: int, draws: int) -> tuple[float, float]:
    """The standard deviation of a difference of two models over draws, and what the jackknife says of it."""
    drawn, told = [], []
    for number in range(draws):
        real = draw(3 * number, rows)
        pair = draw(3 * number + 1, rows, shift=0.3), draw(3 * number + 2, rows, shift=0.4)
        drawn.append(compare(real, pair[0]) - compare(real, pair[1]))
        if number < 10:
            told.append(standard_error(*(without_each_group(compare, real, made) for made in pair)))
    return statistics.stdev(drawn), statistics.fmean(told)


def test_the_error_of_a_distance_is_what_other_draws_show() -> None:
    drawn, told = errors(frechet.compare, rows=400, draws=80)
    assert told == pytest.approx(drawn, rel=0.3)


def test_the_error_of_a_share_of_neighbours_is_not_understated() -> None:
    drawn, told = errors(precision.compare, rows=150, draws=40)
    assert 0.8 * drawn < told < 3 * drawn


def test_the_error_of_a_mean_is_the_formula_s() -> None:
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, :, :4] *= torch.rand(400, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    values = images.double().mean(dim=(1, 2, 3))
    without = mean_without_each_group(mean_pixel, Ruler(), images, images, 0)
    assert len(without) == GROUPS
    assert standard_error(without, [0.0] * GROUPS) == pytest.approx(float(values.std()) / 20, rel=0.35)
    rest = torch.cat([images[group::GROUPS] for group in range(1, GROUPS)])
    assert without[0] == pytest.approx(mean_pixel(Ruler(), rest, 0, rest))


def test_what_is_hard_for_both_models_leaves_their_difference_alone() -> None:
    images = torch.rand(205, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = (mean_without_each_group(mean_pixel, Ruler(factor), images, images, 0) for factor in (1.0, 1.01))
    alone = standard_error(ours, [0.0] * GROUPS)
    assert standard_error(ours, theirs) == pytest.approx(0.01 * alone, rel=1e-6)


def test_groups_need_not_be_of_one_size() -> None:
    real, made = draw(0, rows=57), draw(1, rows=43)
    without = without_each_group(frechet.compare, real, made)
    assert len(without) == GROUPS
    assert all(value != frechet.compare(real, made) for value in without)


def test_a_value_that_is_not_finite_has_no_error() -> None:
    assert math.isnan(standard_error([math.nan, 1.0], [1.0, 1.0]))
