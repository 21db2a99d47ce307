"""Modes on stacked digits: how many of the 1,000 numbers that three digits can make are among the samples.

A classifier of digits reads the red, green and blue digit of each of 26,000 samples. The card adds the KL
divergence of the samples' modes from the uniform distribution, 0 at best (Srivastava et al. 2017, "VEEGAN",
section 4; Lin et al. 2018, "PacGAN", section 4.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raygen import data
from raygen.errors import DataError
from raygen.metrics import Evidence, Measurement, _classifier, _features
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler
MODES = 1000
SAMPLES = 26_000
SOURCE = "stacked-digits"


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Number of modes in 1..1000; raises DataError for another data set than stacked-digits."""
    if evidence.dataset.name != SOURCE:
        raise DataError(f"val_modes counts the modes of {SOURCE}, not of {evidence.dataset.name}; leave it out")
    side = evidence.images.shape[-1]
    digits = data.load(data.DataOptions(source="digits", image_size=None if side == data.SMALLEST_SIDE else side))
    classifier = _classifier.trained_on(digits)
    found = [modes(chunk, classifier) for chunk in _features.samples(model, SAMPLES, evidence.seed)]
    covered, kl = coverage(torch.cat(found))
    details = {"kl_to_uniform_nats": kl, "samples": SAMPLES, "digit_accuracy": classifier.accuracy}
    return Measurement(value=float(covered), details=details)


def modes(images: Tensor, classifier: _classifier.Classifier) -> Tensor:
    """The number 0..999 [N] that images [N, 3, H, W] in [0, 1] show, its hundreds in red; on the CPU."""
    hundreds, tens, ones = (classifier.classes(images[:, channel : channel + 1]) for channel in range(3))
    return (100 * hundreds + 10 * tens + ones).cpu()


def coverage(found: Tensor) -> tuple[int, float]:
    """How many of 1,000 modes occur in `found` [N] (0..999), and their KL divergence in nats from uniform."""
    shares = found.bincount(minlength=MODES).double() / len(found)
    present = shares[shares > 0]
    return len(present), float((present * present.log()).sum()) + math.log(MODES)
