"""Structural similarity of samples to their nearest training images: is a generator copying?

Near 1, or well above held-out images (`real` on the card), its samples are training images. A low value says nothing
of quality, as noise is like no image. The nearest image is that of the least squared error (`nearest_mse`): the
similarities of all pairs would take hours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import Evidence, Measurement, _nearest, ssim
from raygen.models._base import Model, Sampler

DIRECTION = "min"
REQUIRES = Sampler


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Mean in [-1, 1]."""
    return _nearest.measured(model, evidence, similarities, lowest_is_closest=False)


def similarities(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity [N] of each of images [N, C, H, W] in [0, 1] to its counterpart, some at a time."""
    chunks = zip(first.split(ssim.CHUNK_IMAGES), second.split(ssim.CHUNK_IMAGES), strict=True)
    return torch.cat([ssim.similarities(*chunk) for chunk in chunks])
