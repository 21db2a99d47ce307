"""Mean squared reconstruction error per pixel, for pixels in [0, 1]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from raygen.metrics import Evidence, Measurement, _chunks, _pca
from raygen.models._base import Model, Reconstructor

DIRECTION = "min"
REQUIRES = Reconstructor
MEAN_OVER_IMAGES = True
CHUNK_IMAGES = 500


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over all pixels of images [N, C, H, W] in [0, 1]; nothing is random, so `seed` has no effect."""
    assert isinstance(model, Reconstructor)
    total = 0.0
    encoded = images if inputs is None else inputs
    for chunk, seen in _chunks.on_device(model.device, CHUNK_IMAGES, images, encoded):
        total += F.mse_loss(model.decode(model.encode(seen)).float(), chunk, reduction="sum").item()
    return total / images.numel()


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same, with what PCA of as many components reaches."""
    return _pca.beside(compute, model, evidence)
