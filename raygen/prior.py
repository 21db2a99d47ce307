"""A prior for models that have none: a Gaussian mixture fitted over the latents of the training images.

Ghosh et al. 2020, "From variational to deterministic autoencoders", section 4: a density fitted over the latents after
the training, there a mixture of 10 Gaussians with full covariances.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from raygen.data import Dataset
from raygen.errors import RunError, SpecError
from raygen.inspection import encode, require_encoder
from raygen.models._base import Model, Phase, Reconstructor
from raygen.protocol import COMPONENTS
from raygen.results import Prior, TrainedModel

FIT_SEED = 0
MOST_IMAGES = 20_000  # of the training images, at most, to fit the mixture on
RIDGE = 1e-6  # added to the covariances' diagonals, in units of the latents' mean variance


class MixtureSampler(Model):
    """Draws images from a mixture over a trained model's latents; its own latents are standard normal.

    One number of each latent [D + 1] chooses the component, through the normal's distribution function; the other D
    are the component's. So it is a `Sampler` like any other, and one seed means the same samples everywhere.
    """

    edges: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, trained: TrainedModel, weights: Tensor, means: Tensor, factors: Tensor) -> None:
        """Of a mixture with weights [K], means [K, D] and lower Cholesky factors [K, D, D] of the covariances."""
        super().__init__(trained.spec.model, trained.model.shape)
        self.latent_dim += 1
        self.decoder = trained.model
        for name, tensor in (("edges", weights.cumsum(0)[:-1].contiguous()), ("means", means), ("factors", factors)):
            self.register_buffer(name, tensor)

    def phases(self) -> list[Phase]:
        """None: nothing is left to train."""
        return []

    def latents(self, normal: Tensor) -> Tensor:
        """Latents [B, D] of the decoder from standard normal numbers [B, D + 1]."""
        component = torch.searchsorted(self.edges, torch.special.ndtr(normal[:, 0].contiguous()))
        spread = torch.einsum("bij,bj->bi", self.factors[component], normal[:, 1:])
        return self.means[component] + spread

    def sample(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] from standard normal numbers [B, D + 1]."""
        assert isinstance(self.decoder, Reconstructor)
        return self.decoder.decode(self.latents(latents))


def with_mixture(trained: TrainedModel, dataset: Dataset, components: int = COMPONENTS) -> TrainedModel:
    """The trained model, to be sampled from a mixture over its latents of training images; the same each time.

    The mixture is fitted on the CPU, and lies on the model's device.

    Raises RunError where it has no encoder or its latents are not finite, SpecError for more components than images.
    """
    require_encoder(trained, "leave out --prior gmm")
    images = dataset.train.images[:MOST_IMAGES]
    if components > len(images):
        raise SpecError(f"--components {components}: {dataset.name} has only {len(images)} training images to fit")
    latents = encode(trained, images).double()
    if not latents.isfinite().all():
        raise RunError("a mixture cannot be fitted over latents that are not finite: train with a lower --lr")
    sampler = MixtureSampler(trained, *(part.float() for part in _fitted(latents, components)))
    sampler.to(trained.device).eval().requires_grad_(False)
    return replace(trained, fitted=Prior(f"gmm of {components}", sampler))


def _fitted(latents: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [K], means [K, D] and Cholesky factors [K, D, D] of a mixture fitted to latents [N, D] in float64."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    # In units of their spread, so that the ridge means the same whatever the scale of the latents.
    scale = math.sqrt(latents.var(dim=0, correction=0).mean().item()) or 1.0
    mixture = GaussianMixture(components, reg_covar=RIDGE, random_state=FIT_SEED)
    with warnings.catch_warnings():
        # A mixture that has not converged, or has more components than distinct latents, is still one to sample.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit((latents / scale).numpy())
    weights, means, covariances = (
        torch.from_numpy(part) for part in (mixture.weights_, mixture.means_, mixture.covariances_)
    )
    return weights, scale * means, scale * torch.linalg.cholesky(covariances)
