"""The posteriors of all held-out images at once, which the metrics of latent health share."""

from __future__ import annotations

import torch
from torch import Tensor

from raygen.metrics import _chunks
from raygen.models._base import GaussianEncoder, Model

CHUNK_IMAGES = 500


def posteriors(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log-variances [N, D] for images [N, C, H, W] in [0, 1], in float64 on the CPU."""
    assert isinstance(model, GaussianEncoder)
    found = [model.posterior(chunk) for (chunk,) in _chunks.on_device(model.device, CHUNK_IMAGES, images)]
    means, log_variances = (torch.cat(parts).double().cpu() for parts in zip(*found, strict=True))
    return means, log_variances


def kl_per_unit(means: Tensor, log_variances: Tensor) -> Tensor:
    """KL divergence [D] in nats of each latent unit from the standard normal prior, a mean over posteriors [N, D].

    ½ (μ² + σ² − 1 − ln σ²); Kingma & Welling 2014, "Auto-encoding variational Bayes", appendix B.
    """
    return 0.5 * (means.square() + log_variances.exp() - 1 - log_variances).mean(dim=0)
