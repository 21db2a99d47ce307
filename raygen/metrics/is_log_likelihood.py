"""Importance-sampled log-likelihood in nats per image: a tighter bound than the ELBO.

ln p(x) ≥ E [ln 1/K Σₖ p(x|zₖ) p(zₖ) / q(zₖ|x)], zₖ from the posterior (Burda et al. 2016, "Importance weighted
autoencoders", equation 8; Rezende et al. 2014, appendix E). It rises with K, so values compare at one K only: a
training is judged with 64, an evaluation says how many. A Bernoulli likelihood is one of pixels 0 and 1; of grey
pixels it takes the values as probabilities, which is no normalised likelihood, so the card says which it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raygen.metrics import Evidence, Measurement, _chunks
from raygen.models._base import LatentVariableModel, Model, derived_seed

DIRECTION = "max"
REQUIRES = LatentVariableModel
MEAN_OVER_IMAGES = True
TRAINING_SAMPLES = 64
CHUNK_IMAGES = 50
BLOCK_NUMBERS = 2**22  # pixels decoded at a time: 16 MiB in float32


def compute(model: Model, images: Tensor, seed: int, inputs: Tensor | None = None) -> float:
    """Mean over images [N, C, H, W] in [0, 1], with 64 importance samples for each."""
    return log_likelihoods(model, images, seed, TRAINING_SAMPLES, inputs).mean().item()


def measure(model: Model, evidence: Evidence) -> Measurement:
    """The same with as many samples as the evidence says; the standard error is that of the mean over images."""
    images = evidence.images
    found = log_likelihoods(model, images, evidence.seed, evidence.is_samples, evidence.inputs)
    details = {
        "importance_samples": evidence.is_samples,
        "pixels": "binarised" if ((images == 0) | (images == 1)).all() else "grey",
        "standard_error_nats": found.std().item() / math.sqrt(len(found)),
    }
    return Measurement(value=found.mean().item(), details=details)


def log_likelihoods(model: Model, images: Tensor, seed: int, samples: int, inputs: Tensor | None = None) -> Tensor:
    """The bound [N] in nats for each of images [N, C, H, W] in [0, 1], in float64 on the CPU.

    The latents are drawn from the posteriors of `inputs`, of the same shape; of the images themselves if None.
    """
    assert isinstance(model, LatentVariableModel)
    per_block = max(1, BLOCK_NUMBERS // (CHUNK_IMAGES * images[0].numel()))
    encoded = images if inputs is None else inputs
    found = []
    for index, (chunk, seen) in enumerate(_chunks.on_device(model.device, CHUNK_IMAGES, images, encoded)):
        first = index * CHUNK_IMAGES
        total = torch.full((len(chunk),), -math.inf, dtype=torch.float64)
        for start in range(0, samples, per_block):
            noise = _noise(seed, first, start, (min(per_block, samples - start), len(chunk), model.latent_dim))
            weights = _log_weights(model, chunk, seen, noise.to(chunk.device)).double().cpu()
            total = torch.logaddexp(total, weights.logsumexp(dim=0))
        found.append(total - math.log(samples))
    return torch.cat(found)


def _noise(seed: int, first_image: int, first_sample: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal numbers, drawn on the CPU so that one seed means the same on every device."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "importance", first_image, first_sample))
    return torch.randn(shape, generator=generator)


def _log_weights(model: LatentVariableModel, images: Tensor, inputs: Tensor, noise: Tensor) -> Tensor:
    """Log-weights ln p(x|z) p(z) / q(z|x) [K, B] for images and inputs [B, C, H, W] and posterior noise [K, B, D]."""
    mean, log_variance = model.posterior(inputs)
    latents = mean + noise * (0.5 * log_variance).exp()
    # ln p(z) − ln q(z|x): the factors (2π)^(-D/2) cancel, and (z − μ) / σ is the noise.
    prior_ratio = 0.5 * (noise.square() + log_variance - latents.square()).sum(dim=2)
    repeated = images.expand(len(noise), *images.shape).flatten(0, 1)
    return model.log_likelihood(repeated, latents.flatten(0, 1)).reshape(prior_ratio.shape) + prior_ratio
