"""Density: how many neighbourhoods of real images a sample lies in, over a feature network.

A neighbourhood reaches to the fifth nearest real image; the mean count is divided by 5 (Naeem et al. 2020,
"Reliable fidelity and diversity metrics for generative models", equation 3). About 1 where samples and images are
alike, more where samples crowd the densest places.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import _features, _neighbours
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler
NEIGHBOURS = 5


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Density for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`, over `random`."""
    return compare(*_features.random_pair(model, images, seed))


def compare(real: Tensor, made: Tensor) -> float:
    """Density of 0 or more for features [N, F] of images and [M, F] of samples."""
    radii = _neighbours.radii(real, NEIGHBOURS)
    inside = sum((rows < radii).sum().item() for rows in _neighbours.distances(made, real))
    return inside / (NEIGHBOURS * len(made))
