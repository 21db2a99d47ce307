"""Batches as the steps of a training are given them."""

from __future__ import annotations

from collections.abc import Iterator

from raygen.models._base import Batch
from raygen.training.batches import Batches


def batches_from(batches: Batches, step: int) -> Iterator[Batch]:
    """What the steps from `step` to the end of its epoch see."""
    for number, pixels in enumerate(batches.pixels_from(step), start=step):
        yield batches.batch(pixels, batches.noise(number))
