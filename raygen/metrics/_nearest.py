"""The nearest training image of each sample, by squared error over pixels: is a generator copying?

A distance to it means something only beside that of held-out images, which no training has seen, and not much even so:
a copy moved by a pixel is far from its original (Theis et al. 2016, "A note on the evaluation of generative models").
The search is exact, over all training images, some at a time; it is made once for all metrics that ask for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raygen import interruption
from raygen.metrics import AgainstTraining, Evidence, Measurement, _features
from raygen.models._base import Model

MOST_SAMPLES = 2000
CHUNK_IMAGES = 2000
LOW_QUANTILE = 0.05


def measured(
    model: Model, evidence: Evidence, compare: Callable[[Tensor, Tensor], Tensor], *, lowest_is_closest: bool
) -> Measurement:
    """The mean over samples of `compare`, which takes them and their nearest images [N, C, H, W] and gives [N].

    Beside it stands that over as many held-out images, and of both how close the closest 5 percent are, as a mean
    shows little of a few copies. `lowest_is_closest` says which end of the values they are at.
    """
    made, real = evidence.once("nearest training images", lambda: pairs(model, evidence))
    of_samples, of_real = (compare(*each).double() for each in (made, real))
    quantile = LOW_QUANTILE if lowest_is_closest else 1 - LOW_QUANTILE
    closest = {
        "closest_5_percent": of_samples.quantile(quantile).item(),
        "closest_5_percent_of_real": of_real.quantile(quantile).item(),
    }
    return Measurement(
        value=of_samples.mean().item(),
        details=closest,
        against_training=AgainstTraining(
            samples=len(of_samples),
            train_images=len(evidence.dataset.train.images),
            real=of_real.mean().item(),
            real_samples=len(of_real),
        ),
    )


def pairs(model: Model, evidence: Evidence) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Samples and their nearest training images, and held-out images and theirs: [N, C, H, W] in [0, 1] each."""
    train = evidence.dataset.train.images
    count = min(evidence.samples, MOST_SAMPLES)
    made = torch.cat(list(_features.samples(model, count, evidence.seed)))
    found = []
    for images in (made, evidence.images[:MOST_SAMPLES].to(made.device)):
        rows = nearest(images, train)
        found.append((images, train[rows.cpu()].to(images) / 255))
    first, second = found
    return first, second


def nearest(images: Tensor, train: Tensor) -> Tensor:
    """The row [N] in `train`, uint8 [M, C, H, W], of what is nearest to each of images [N, C, H, W] in [0, 1].

    The least ‖b‖² − 2⟨a, b⟩ in single precision, so that of two that are as near to rounding either may be found.
    Raises RunInterruptedError if it is not wanted any more (raygen.interruption).
    """
    flat = images.flatten(1)
    least = flat.new_full((len(flat),), torch.inf)
    rows = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for index, chunk in enumerate(train.split(CHUNK_IMAGES)):
        interruption.check()
        candidates = chunk.flatten(1).to(flat).div_(255)
        distances = torch.addmm(candidates.square().sum(dim=1), flat, candidates.T, alpha=-2)
        found = distances.min(dim=1)
        closer = found.values < least
        least = torch.where(closer, found.values, least)
        rows = torch.where(closer, index * CHUNK_IMAGES + found.indices, rows)
    return rows
