"""Compression: input values per latent value; a reconstruction says little without it.

In bytes it compares 8-bit pixels with float32 latents, as both are stored; no entropy coder is involved.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement
from raygen.models._base import Model, Reconstructor

DIRECTION = "max"
REQUIRES = Reconstructor
LATENT_BYTES = 4


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """C·H·W / D for images [N, C, H, W]; nothing is random, so `seed` has no effect."""
    return images[0].numel() / model.latent_dim


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same with the values and bytes of one image and of its latents."""
    values = evidence.images[0].numel()
    details = {
        "image_values": values,
        "latent_values": model.latent_dim,
        "image_bytes": values,
        "latent_bytes": LATENT_BYTES * model.latent_dim,
        "bytes_ratio": values / (LATENT_BYTES * model.latent_dim),
    }
    return Measurement(value=compute(model, evidence.images, evidence.seed), details=details)
