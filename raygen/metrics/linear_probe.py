"""Linear probe: the share of held-out images whose class a logistic regression over their latents tells.

How much of the classes lies in the latents in plain sight (Alain & Bengio 2017, "Understanding intermediate layers
using linear classifier probes"). It is scikit-learn's, with its L2 penalty, over standardised latents, fitted on the
first 10,000 training images. A model that restores corrupted images encodes corrupted ones here too.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from raygen.errors import DataError
from raygen.metrics import Evidence, Measurement, _chunks, _classifier, _pca
from raygen.models._base import Model, Reconstructor

DIRECTION = "max"
REQUIRES = Reconstructor
CHUNK_IMAGES = 500
MOST_STEPS = 300


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Accuracy in [0, 1] with that over PCA of as many components; raises DataError without labels of two classes."""
    if evidence.labels is None or not _classifier.has_classes(evidence.dataset):
        raise DataError(
            f"val_linear_probe needs labels of two classes or more, below 10,000, in all parts of "
            f"{evidence.dataset.name} that this model was trained for; leave it out"
        )
    assert isinstance(model, Reconstructor)
    return Measurement(
        value=accuracy(model, model.device, evidence),
        baseline=_pca.baseline(lambda linear: accuracy(linear, linear.device, evidence), model, evidence),
        details={"fitted_on": len(evidence.fitted_images)},
    )


def accuracy(encoder: Reconstructor, device: torch.device, evidence: Evidence) -> float:
    """The share of the images whose class the probe tells, in [0, 1]; NaN if a latent is not finite.

    `device` is the encoder's.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = evidence.dataset.train.labels
    assert labels is not None, "a data set without labels is refused before"
    assert evidence.labels is not None
    seen, held_out = (_latents(encoder, device, inputs) for inputs in (evidence.fitted_inputs, evidence.inputs))
    if not (seen.isfinite().all() and held_out.isfinite().all()):
        return math.nan
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_STEPS))
    with warnings.catch_warnings():
        # A probe that could still improve a little after so many steps is one all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(seen.numpy(), labels[: len(seen)].numpy())
    return float(probe.score(held_out.numpy(), evidence.labels.numpy()))


def _latents(encoder: Reconstructor, device: torch.device, inputs: Tensor) -> Tensor:
    """Latents [N, D] of images [N, C, H, W] in [0, 1], in float64 on the CPU."""
    chunks = _chunks.on_device(device, CHUNK_IMAGES, inputs)
    return torch.cat([encoder.encode(chunk).double().cpu() for (chunk,) in chunks])
