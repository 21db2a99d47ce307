"""Coverage: the share of real images whose neighbourhood holds a sample, over a feature network.

A neighbourhood reaches to the fifth nearest real image (Naeem et al. 2020, "Reliable fidelity and diversity
metrics for generative models", equation 4). It falls as a generator loses modes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import _features, _neighbours
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler
NEIGHBOURS = 5


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Coverage for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`, over `random`."""
    return compare(*_features.random_pair(model, images, seed))


def compare(real: Tensor, made: Tensor) -> float:
    """Coverage in [0, 1] for features [N, F] of images and [M, F] of samples."""
    nearest = torch.cat([rows.amin(dim=1) for rows in _neighbours.distances(real, made)])
    return (nearest < _neighbours.radii(real, NEIGHBOURS)).double().mean().item()
