"""Log-likelihood of an image given latents from its posterior, in nats per image: the ELBO's other part.

E_q(z|x) [ln p(x|z)], from one posterior sample per image with the noise that `elbo` draws for the same seed:
val_elbo = val_reconstruction_log_likelihood − val_kl, up to float rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import _chunks
from raygen.models._base import LatentVariableModel, Model

DIRECTION = "max"
REQUIRES = LatentVariableModel
MEAN_OVER_IMAGES = True
CHUNK_IMAGES = 500


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over images [N, C, H, W] in [0, 1]."""
    assert isinstance(model, LatentVariableModel)
    # Drawn on the CPU, so that one seed means the same noise on every device.
    noise = torch.randn(len(images), model.latent_dim, generator=torch.Generator().manual_seed(seed))
    total = 0.0
    encoded = images if inputs is None else inputs
    for chunk, seen, chunk_noise in _chunks.on_device(model.device, CHUNK_IMAGES, images, encoded, noise):
        mean, log_variance = model.posterior(seen)
        latents = mean + chunk_noise * (0.5 * log_variance).exp()
        total += model.log_likelihood(chunk, latents).double().sum().item()
    return total / len(images)
