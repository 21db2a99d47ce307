"""Evidence lower bound in nats per image, with beta 1 whatever beta the model was trained with.

One posterior sample per image, from noise fixed by the seed. Comparable across latent dimensions, rates and
betas, but not across likelihoods (a Bernoulli and a Gaussian model measure different things).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import _chunks
from raygen.models._base import LikelihoodModel, Model

DIRECTION = "max"
REQUIRES = LikelihoodModel
MEAN_OVER_IMAGES = True
CHUNK_IMAGES = 500


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over images [N, C, H, W] in [0, 1]."""
    assert isinstance(model, LikelihoodModel)
    # Drawn on the CPU, so that one seed means the same noise on every device.
    noise = torch.randn(len(images), model.latent_dim, generator=torch.Generator().manual_seed(seed))
    encoded = images if inputs is None else inputs
    chunks = _chunks.on_device(model.device, CHUNK_IMAGES, images, noise, encoded)
    return sum(model.elbo(*chunk).double().sum().item() for chunk in chunks) / len(images)
