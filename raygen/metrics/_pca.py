"""PCA with as many components as a model has latents: what a linear autoencoder of the same size reaches.

The best linear encoder and decoder under a squared error (Baldi & Hornik 1989, "Neural networks and principal
component analysis: learning from examples without local minima"), fitted on clean training images. It encodes what the
model encodes: beside a model that restores corrupted images, the corrupted ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raygen.metrics import Baseline, Evidence, Measurement
from raygen.models._base import Model

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

NAME = "PCA"
SEED = 0


class LinearAutoencoder:
    """A fitted PCA as a `Reconstructor` of images of one shape (C, H, W); scikit-learn's, so it works on the CPU."""

    device = torch.device("cpu")

    def __init__(self, fitted: PCA, shape: torch.Size) -> None:
        self._fitted = fitted
        self._shape = shape

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to their first principal components [B, D]."""
        return torch.from_numpy(self._fitted.transform(images.flatten(1).numpy())).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Components [B, D] to images [B, C, H, W], cut off at 0 and 1."""
        flat = torch.from_numpy(self._fitted.inverse_transform(latents.numpy())).to(latents)
        return flat.clamp(0, 1).reshape(-1, *self._shape)


def fitted(evidence: Evidence, components: int) -> LinearAutoencoder | None:
    """PCA of the first training images; None if these or their pixels are fewer than the components."""
    from sklearn.decomposition import PCA

    flat = evidence.fitted_images.flatten(1).cpu().numpy()
    if components > min(flat.shape):
        return None
    with np.errstate(invalid="ignore"):  # images that are all the same have no variance to explain
        found = PCA(components, random_state=SEED).fit(flat)
    return LinearAutoencoder(found, evidence.images.shape[1:])


def beside(compute: Callable[..., float], model: Model, evidence: Evidence) -> Measurement:
    """What `compute` gives for the model's reconstructions, and for those of PCA of the model's size."""

    def value(judged: Model | LinearAutoencoder) -> float:
        return compute(judged, evidence.images, evidence.seed, evidence.inputs)

    return Measurement(value=value(model), baseline=baseline(value, model, evidence))


def baseline(value: Callable[[LinearAutoencoder], float], model: Model, evidence: Evidence) -> Baseline | None:
    """What `value` gives for PCA of the model's size; None if there are too few images or pixels for one."""
    components = model.latent_dim
    linear = evidence.once(f"PCA of {components}", lambda: fitted(evidence, components))
    return None if linear is None else Baseline(name=NAME, value=value(linear), fitted_on=len(evidence.fitted_images))
