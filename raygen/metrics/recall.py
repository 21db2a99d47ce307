"""Recall: the share of real images that lie among the samples, over a feature network.

Among them means nearer to some sample than its third nearest other sample (Kynkäänniemi et al. 2019, "Improved
precision and recall metric for assessing generative models", equation 2).
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import _features, _neighbours
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler
NEIGHBOURS = 3


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Recall for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`, over `random`."""
    return compare(*_features.random_pair(model, images, seed))


def compare(real: Tensor, made: Tensor) -> float:
    """Recall in [0, 1] for features [N, F] of images and [M, F] of samples."""
    return _neighbours.share_inside(real, made, _neighbours.radii(made, NEIGHBOURS))
