"""Mean squared error of samples to their nearest training images, per pixel in [0, 1]: is a generator copying?

Near 0, its samples are training images. What else is low is told by held-out images (`real` on the card). Below them
lie copies, and smooth samples, which are near to much: of these `nearest_ssim` is low too, of copies it is high. A
value above them says nothing of quality, as noise is far from every image. Over all training images of the data set
that the model is judged on, for up to 2,000 samples.
"""

from __future__ import annotations

from torch import Tensor

from raygen.metrics import Evidence, Measurement, _nearest
from raygen.models._base import Model, Sampler

DIRECTION = "max"
REQUIRES = Sampler


def measure(model: Model, evidence: Evidence) -> Measurement:
    """Mean in [0, 1]."""
    return _nearest.measured(model, evidence, errors, lowest_is_closest=True)


def errors(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared error [N] of each of images [N, C, H, W] in [0, 1] to its counterpart."""
    return (first - second).square().flatten(1).mean(dim=1)
