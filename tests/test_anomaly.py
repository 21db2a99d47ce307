"""A threshold keeps its word whatever the scores are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raygen import anomaly, inspection, models
from raygen.data import Dataset
from raygen.errors import RunError, SpecError
from raygen.models._base import ImageShape
from raygen.results import TrainedModel
from raygen.spec import TrainSpec


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60, unique=True), st.integers(1, 99))
def test_of_equals_as_many_as_promised_lie_beyond(scores: list[float], percent: int) -> None:
    """Each of n + 1 scores in turn is the new one: exactly ⌊α(n + 1)⌋ lie beyond what the others set."""
    promised = percent * len(scores) // 100
    every = torch.tensor(scores, dtype=torch.float64)
    beyond = 0
    for row in range(len(every)):
        others = torch.cat([every[:row], every[row + 1 :]])
        if promised == 0:
            with pytest.raises(SpecError, match="normal validation images"):
                anomaly.threshold(others, percent / 100)
            continue
        limit = anomaly.threshold(others, percent / 100)
        assert limit.images == len(others)
        beyond += int(limit.is_exceeded(every[row]))
    assert beyond == promised


@pytest.mark.parametrize(("part", "images", "enough"), [(0.01, 98, 99), (0.05, 18, 19), (0.3, 2, 3)])
def test_too_few_images_are_refused_with_what_would_do(part: float, images: int, enough: int) -> None:
    with pytest.raises(
        SpecError, match=f"takes {enough} normal validation images, not {images}: use .* or more"
    ) as told:
        anomaly.threshold(torch.arange(float(images)), part)
    advised = float(str(told.value).split()[-3])
    assert anomaly.threshold(torch.arange(float(images)), advised).value == images - 1
    assert anomaly.threshold(torch.arange(float(enough)), part).value == enough - 1


def test_what_is_not_finite_lies_beyond_and_sets_no_threshold() -> None:
    limit = anomaly.Threshold(value=1.0, images=99)
    assert limit.is_exceeded(torch.tensor([0.0, 1.0, 1.1, math.inf, math.nan])).tolist() == [False, False, *[True] * 3]
    with pytest.raises(RunError, match="not finite"):
        anomaly.threshold(torch.tensor([1.0, math.nan] * 50), 0.5)
    assert anomaly.worst(torch.tensor([1.0, math.nan, 3.0])).tolist() == [1, 2, 0]


def test_a_part_that_cannot_be_told_is_refused_before_any_image_is_looked_at(digits: Dataset) -> None:
    spec = TrainSpec.create("ae", {"model.hidden": [8]})
    model = models.find("ae")(spec.model, ImageShape(1, 8, 8))
    seen: list[Any] = []
    encoder = model.get_submodule("encoder")
    encoder.register_forward_pre_hook(lambda *given: seen.append(given))
    chosen = inspection.select(digits, "test")
    for part in (0.0, 2.0, 1e-4):
        with pytest.raises(SpecError, match="--false-alarms"):
            anomaly.score(TrainedModel(model, spec, {}), chosen, digits, part, seed=0)
    assert not seen
