"""Fréchet distance between images and samples, over a feature network; its bias falls as there are more of them.

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) between Gaussians fitted to the features of both sets (Heusel et
al. 2017, "GANs trained by a two time-scale update rule"). Over the `inception` network it is FID. A training is
judged over the `random` network, which needs no download and works for any image: these values rank models on
one data set, image count and seed; they are not comparable with published FIDs, nor across data sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raygen.metrics import _features
from raygen.models._base import Model, Sampler

DIRECTION = "min"
REQUIRES = Sampler


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Squared Fréchet distance for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`."""
    return compare(*_features.random_pair(model, images, seed))


def compare(real: Tensor, made: Tensor) -> float:
    """Squared Fréchet distance between features [N, F] of images and [M, F] of samples."""
    return distance(moments(made), moments(real))


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Squared Fréchet distance between two Gaussians, each a mean [F] and covariance [F, F] in float64."""
    # Small, and decomposed at the same speed on the CPU, without what a GPU's libraries take of its memory for it.
    (mean_1, covariance_1), (mean_2, covariance_2) = ([part.cpu() for part in moments] for moments in (first, second))
    # A diverged model's samples: the decomposition below would raise what no caller expects.
    if not all(numbers.isfinite().all() for numbers in (*first, *second)):
        return math.nan
    # tr (Σ₁Σ₂)^½ through the symmetric Σ₁^½ Σ₂ Σ₁^½, which has the same eigenvalues and real ones.
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_2 @ root).clamp(min=0).sqrt().sum()
    squared = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * cross
    return max(float(squared), 0.0)


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of the features of images [N, C, H, W] in [0, 1] over the random network."""
    return moments(_features.features(images, _features.random_network()))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [F] and covariance [F, F] of features [N, F]."""
    return features.mean(dim=0), torch.cov(features.T)
