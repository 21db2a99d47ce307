"""Active units: how many latent dimensions tell images apart; 0 is posterior collapse.

A unit u is active where Var_x (E_q(u|x) [u]) > 0.01 (Burda et al. 2016, "Importance weighted autoencoders",
section 5.2).
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement, _posterior
from raygen.models._base import GaussianEncoder, Model

DIRECTION = "max"
REQUIRES = GaussianEncoder
ACTIVE_VARIANCE = 0.01


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Number of units in 0..D for images [N, C, H, W] in [0, 1]; nothing is random, so `seed` has no effect."""
    return float((_variances(model, images if inputs is None else inputs) > ACTIVE_VARIANCE).sum().item())


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same with `units`, how many there are, and `variances`, of the mean of each over the images."""
    variances = _variances(model, evidence.inputs)
    active = float((variances > ACTIVE_VARIANCE).sum().item())
    return Measurement(value=active, details={"units": len(variances), "variances": variances.tolist()})


def _variances(model: Model, images: Tensor) -> Tensor:
    means, _ = _posterior.posteriors(model, images)
    return means.var(dim=0)
