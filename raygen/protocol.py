"""What trained models are judged on and sampled from. Importing this imports neither numpy nor torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raygen.data import Split
from raygen.metrics import HeldOut

Network = Literal["random", "classifier", "inception"]
"""Of whose features samples are compared by."""

FittedPrior = Literal["gmm"]
COMPONENTS = 10
"""Gaussians of a fitted mixture, unless given."""

IS_SAMPLES = 5000
"""Importance samples for each image, unless given."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What models are judged on, the same for all that are compared.

    On the first `images` of the part `split`, all unless given. Metrics that compare samples with real images take all
    images of the part `reference` if one is named, else those `images`, and draw `samples` samples, else as many as
    those. They compare features of `network`; `fid_weights` is a file with the weights of `inception`. `is_samples`
    are importance samples for each image, 5,000 unless given; as they take minutes, the metric that draws them is left
    out unless they are given or it is named. `normal_class` is the label that is no anomaly, that of the training
    unless given.
    """

    split: HeldOut = "validation"
    images: int | None = None
    samples: int | None = None
    reference: Split | None = None
    network: Network = "random"
    seed: int = 0
    is_samples: int | None = None
    normal_class: int | None = None
    fid_weights: Path | None = None
