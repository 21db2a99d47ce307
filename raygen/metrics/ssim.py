"""Structural similarity of reconstructions and images, a mean over images; 1 is identity.

Wang et al. 2004, "Image quality assessment", equation 13, in torchmetrics' form: a Gaussian window of σ = 1.5 pixels
(11×11) around every pixel, the image being reflected at its borders; k₁ = 0.01, k₂ = 0.03.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement, _chunks, _pca
from raygen.models._base import Model, Reconstructor

DIRECTION = "max"
REQUIRES = Reconstructor
MEAN_OVER_IMAGES = True
CHUNK_IMAGES = 100


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean in [-1, 1] over images [N, C, H, W] in [0, 1]; nothing is random, so `seed` has no effect."""
    assert isinstance(model, Reconstructor)
    encoded = images if inputs is None else inputs
    chunks = _chunks.on_device(model.device, CHUNK_IMAGES, images, encoded)
    found = (similarities(model.decode(model.encode(seen)), chunk).sum().item() for chunk, seen in chunks)
    return sum(found) / len(images)


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same, with what PCA of as many components reaches."""
    return _pca.beside(compute, model, evidence)


def similarities(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity [N] in [-1, 1] of each of images [N, C, H, W] in [0, 1] to its counterpart."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds to import

    found = structural_similarity_index_measure(
        first.float(),
        second.float(),
        sigma=1.5,
        reduction="none",
        data_range=1.0,
    )
    assert isinstance(found, Tensor), "a pair comes only with the full image"
    return found.reshape(len(first))
