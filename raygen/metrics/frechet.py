"""Fréchet distance between held-out images and as many samples, over a frozen random network. Not FID.

d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) between Gaussians fitted to the features of both sets (Heusel et
al. 2017, "GANs trained by a two time-scale update rule"). Inception FID takes its features from a network
trained on ImageNet. Here they come from three strided 3×3 convolutions with fixed random orthogonal weights
and a fixed random projection to 64 features, applied to the images resized to 32×32: it needs no download
and works for any image, as Naeem et al. 2020, "Reliable fidelity and diversity metrics", argue for domains
far from ImageNet. The values rank models on one data set, image count and seed; they are not comparable with
published FIDs, nor across data sets.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.models._base import Model, Sampler

DIRECTION = "min"
REQUIRES = Sampler
CHUNK_IMAGES = 500

SIDE = 32
CHANNELS = (3, 32, 64, 128)
FEATURES = 64
WEIGHTS_SEED = 0


def compute(model: Model, images: Tensor, seed: int) -> float:
    """Squared Fréchet distance for images [N, C, H, W] in [0, 1] and N samples from latents fixed by `seed`."""
    assert isinstance(model, Sampler)
    # Drawn on the CPU, so that one seed means the same latents on every device.
    latents = torch.randn(len(images), model.latent_dim, generator=torch.Generator().manual_seed(seed))
    samples = torch.cat([model.sample(chunk).float() for chunk in latents.to(images.device).split(CHUNK_IMAGES)])
    return distance(statistics(samples), _real_statistics(images))


def distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Squared Fréchet distance between two Gaussians, each a mean [F] and covariance [F, F] in float64."""
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
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
    """Mean [F] and covariance [F, F] of the features of images [N, C, H, W] in [0, 1], in float64."""
    network = _feature_network().to(images.device)
    features = torch.cat([network(_prepared(chunk)) for chunk in images.split(CHUNK_IMAGES)]).double().cpu()
    return features.mean(dim=0), torch.cov(features.T)


@lru_cache(maxsize=1)
def _real_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """The held-out images are the same tensor at every evaluation of a training: one pass serves them all."""
    return statistics(images)


def _prepared(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] to [N, 3, 32, 32] in [-1, 1]."""
    resized = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return 2 * resized.expand(-1, 3, -1, -1) - 1


@lru_cache(maxsize=1)
def _feature_network() -> nn.Sequential:
    # RandomState's stream is frozen by NumPy's policy, so the weights are the same in every version.
    random = np.random.RandomState(WEIGHTS_SEED)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(CHANNELS):
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
        layers += [_with_orthogonal_weight(convolution, random), nn.LeakyReLU(0.2)]
    flat = CHANNELS[-1] * (SIDE // 2 ** (len(CHANNELS) - 1)) ** 2
    projection = _with_orthogonal_weight(nn.Linear(flat, FEATURES, bias=False), random)
    return nn.Sequential(*layers, nn.Flatten(), projection).eval().requires_grad_(False)


def _with_orthogonal_weight(layer: nn.Conv2d | nn.Linear, random: np.random.RandomState) -> nn.Conv2d | nn.Linear:
    """The layer with rows or columns orthonormal, scaled by √2 to keep variance through the activations."""
    rows, columns = len(layer.weight), layer.weight[0].numel()
    basis, triangle = np.linalg.qr(random.standard_normal((max(rows, columns), min(rows, columns))))
    # Fixing the signs makes the decomposition unique, whichever LAPACK computed it.
    basis = basis * np.sign(np.diag(triangle))
    weight = basis if rows >= columns else basis.T
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.sqrt(2) * weight).reshape(layer.weight.shape))
    return layer
