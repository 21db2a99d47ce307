"""A judgement ends soon after it is not wanted any more, whatever takes long in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from raygen import interruption
from raygen.errors import RunInterruptedError
from raygen.metrics import _features, _nearest, coverage, density, kid, precision, recall

POINTS = torch.randn(2100, 4, generator=torch.Generator().manual_seed(0)).double()
IMAGES = torch.rand(1300, 1, 8, 8, generator=torch.Generator().manual_seed(0))

LONG: dict[str, Callable[[], object]] = {
    "kid": lambda: kid.compare(POINTS, POINTS),
    **{
        metric.__name__.rpartition(".")[2]: lambda metric=metric: metric.compare(POINTS, POINTS)
        for metric in (precision, recall, density, coverage)
    },
    "features": lambda: _features.features(IMAGES, _features.random_network()),
    "nearest": lambda: _nearest.nearest(POINTS.float(), torch.zeros(5000, 4, dtype=torch.uint8)),
}


@pytest.mark.parametrize("name", LONG)
def test_it_asks_again_and_again_whether_it_is_wanted(name: str) -> None:
    asked = itertools.count(1)
    with pytest.raises(RunInterruptedError), interruption.heeding(lambda: next(asked) == 3):
        LONG[name]()
    assert next(asked) == 4
