"""KL divergence of the posterior from the prior in nats per image: the rate, one of the two parts of the ELBO.

ELBO = reconstruction log-likelihood − KL. At an equal reconstruction less is better; 0 alone is posterior
collapse. The card shows it for each latent unit too.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement, _posterior
from raygen.models._base import GaussianEncoder, Model

DIRECTION = "min"
REQUIRES = GaussianEncoder
MEAN_OVER_IMAGES = True


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over images [N, C, H, W] in [0, 1]; nothing is random, so `seed` has no effect."""
    encoded = images if inputs is None else inputs
    return _posterior.kl_per_unit(*_posterior.posteriors(model, encoded)).sum().item()


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same with `per_unit_nats`, the divergence of each latent unit, a mean over the images."""
    per_unit = _posterior.kl_per_unit(*_posterior.posteriors(model, evidence.inputs))
    return Measurement(value=per_unit.sum().item(), details={"per_unit_nats": per_unit.tolist()})
