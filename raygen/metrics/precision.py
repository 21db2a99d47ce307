"""Precision: the share of samples that lie among the real images, over a feature network.

Among them means nearer to some real image than its third nearest real neighbour (Kynkäänniemi et al. 2019,
"Improved precision and recall metric for assessing generative models", equation 2).
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import _features, _neighbours
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler
NEIGHBOURS = 3


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Precision for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`, over `random`."""
    return compare(*_features.random_pair(model, images, seed))


def compare(real: Tensor, made: Tensor) -> float:
    """Precision in [0, 1] for features [N, F] of images and [M, F] of samples."""
    return _neighbours.share_inside(made, real, _neighbours.radii(real, NEIGHBOURS))
