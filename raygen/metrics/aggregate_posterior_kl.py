"""Aggregate-posterior fit: KL divergence in nats of all posteriors together from the prior; 0 is a perfect fit.

KL(q(z) ‖ p(z)) with q(z) = 1/N Σₙ q(z|xₙ), the part of the ELBO's KL that mutual information does not explain
(Hoffman & Johnson 2016, "ELBO surgery", equation 6). It is what samples from the prior suffer from. The estimate
draws one z from each posterior and evaluates the mixture exactly. Mutual information is at most ln N, so with
few images or narrow posteriors the value is about KL − ln N: compare at an equal number of images only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raygen.metrics import Evidence, Measurement, _posterior
from raygen.models._base import GaussianEncoder, Model

DIRECTION = "min"
REQUIRES = GaussianEncoder
CHUNK_ROWS = 500


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Estimate for images [N, C, H, W] in [0, 1], with draws fixed by `seed`."""
    return divergence(*_posterior.posteriors(model, images if inputs is None else inputs), seed)


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same with `mutual_information_nats`, of images and latents: KL less this value."""
    means, log_variances = _posterior.posteriors(model, evidence.inputs)
    value = divergence(means, log_variances, evidence.seed)
    kl = _posterior.kl_per_unit(means, log_variances).sum().item()
    return Measurement(value=value, details={"mutual_information_nats": kl - value})


def divergence(means: Tensor, log_variances: Tensor, seed: int) -> float:
    """KL divergence in nats of the mixture of Gaussians [N, D] from the standard normal; float64 on the CPU."""
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(seed)).double()
    draws = means + noise * (0.5 * log_variances).exp()
    mixture = torch.cat([_log_mixture(rows, means, log_variances) for rows in draws.split(CHUNK_ROWS)])
    # Both densities have the factor (2π)^(-D/2), which cancels.
    return (mixture + 0.5 * draws.square().sum(dim=1)).mean().item()


def _log_mixture(draws: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Log-density [n] of draws [n, D] under the mixture of Gaussians [N, D], without its factor (2π)^(-D/2)."""
    precisions = (-log_variances).exp()
    # Σ (z − μ)² / σ², multiplied out: two matrix products in place of a block [n, N, D].
    squares = draws.square() @ precisions.T - 2 * draws @ (means * precisions).T
    constants = (means.square() * precisions + log_variances).sum(dim=1)
    return (-0.5 * (squares + constants)).logsumexp(dim=1) - math.log(len(means))
