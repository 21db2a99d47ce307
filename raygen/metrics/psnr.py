"""Peak signal-to-noise ratio of reconstructions in decibels, a mean over images.

10 log₁₀ (1 / MSE) with the mean squared error of each image, for pixels in [0, 1]. An error below 1e-10 counts as
1e-10, so that a perfect image has 100 dB and not infinity.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement, _chunks, _pca
from raygen.models._base import Model, Reconstructor

DIRECTION = "max"
REQUIRES = Reconstructor
MEAN_OVER_IMAGES = True
CHUNK_IMAGES = 500
SMALLEST_ERROR = 1e-10


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over images [N, C, H, W] in [0, 1], at most 100 dB; nothing is random, so `seed` has no effect."""
    assert isinstance(model, Reconstructor)
    total = 0.0
    encoded = images if inputs is None else inputs
    for chunk, seen in _chunks.on_device(model.device, CHUNK_IMAGES, images, encoded):
        total += ratios(model.decode(model.encode(seen)), chunk).sum().item()
    return total / len(images)


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same, with what PCA of as many components reaches."""
    return _pca.beside(compute, model, evidence)


def ratios(first: Tensor, second: Tensor) -> Tensor:
    """Ratio [N] in decibels, at most 100, of each of images [N, C, H, W] in [0, 1] to its counterpart; float64."""
    errors = (first.float() - second.float()).square().flatten(1).mean(dim=1)
    return -10 * errors.double().clamp(min=SMALLEST_ERROR).log10()
