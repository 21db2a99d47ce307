"""Variational autoencoder: a latent-variable model trained on the evidence lower bound.

Kingma & Welling 2014, "Auto-encoding variational Bayes"; with beta Higgins et al. 2017, "beta-VAE".
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import ModelOptions


class VariationalAutoencoder(Model):
    """Gaussian encoder, standard normal prior, Bernoulli or Gaussian likelihood."""

    class Options(ModelOptions, frozen=True, extra="forbid"):
        name: Literal["vae"] = "vae"
        likelihood: Literal["bernoulli", "gaussian"] = Field(
            "bernoulli", description="of a pixel given the latents; grey values count as probabilities"
        )
        sigma: float = Field(0.1, gt=0, description="standard deviation of the Gaussian likelihood")
        beta: float = Field(1.0, ge=0, description="weight of the KL divergence in the loss")

    recipe = {"evaluation": {"objective": "val_elbo", "metrics": ["val_mse"]}}

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.likelihood = options.likelihood
        self.sigma = options.sigma
        self.beta = options.beta
        self.encoder = _blocks.encoder(
            options, shape, 2 * options.latent_dim, _blocks.named_activation(options.activation)
        )
        self.decoder = _blocks.decoder(options, shape, _blocks.named_activation(options.activation))

    def encode(self, images: Tensor) -> Tensor:
        """Means [B, D] of the approximate posterior of images [B, C, H, W]."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Mean images [B, C, H, W] in [0, 1] given latents [B, D]."""
        logits: Tensor = self.decoder(latents)
        return logits.sigmoid()

    def sample(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def elbo(self, images: Tensor, noise: Tensor, inputs: Tensor | None = None) -> Tensor:
        log_likelihood, kl = self._bound(images, noise, images if inputs is None else inputs)
        return log_likelihood - kl

    def phases(self) -> list[Phase]:
        return [Phase(name="vae", params=list(self.parameters()), loss=self._negative_elbo)]

    def _negative_elbo(self, batch: Batch) -> tuple[Tensor, Metrics]:
        noise = batch.noise.normal("posterior", self.latent_dim)
        log_likelihood, kl = (term.mean() for term in self._bound(batch.images, noise, batch.inputs))
        loss = self.beta * kl - log_likelihood
        return loss, {"reconstruction": -log_likelihood, "kl": kl}

    def _bound(self, images: Tensor, noise: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Single-sample log-likelihood [B] and KL divergence to the prior [B], in nats (paper, appendix B)."""
        mean, log_variance = self.posterior(inputs)
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
        return self.log_likelihood(images, mean + noise * (0.5 * log_variance).exp()), kl

    def log_likelihood(self, images: Tensor, latents: Tensor) -> Tensor:
        logits = self.decoder(latents).float()
        if self.likelihood == "bernoulli":
            log_probability = -F.binary_cross_entropy_with_logits(logits, images, reduction="none")
        else:
            error = (images - logits.sigmoid()) / self.sigma
            log_probability = -0.5 * error.square() - math.log(self.sigma * math.sqrt(2 * math.pi))
        return log_probability.flatten(1).sum(dim=1)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, D] of the approximate posterior."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        # Outside these bounds exp() loses all precision in float32, and one early step can reach them.
        return mean, log_variance.clamp(-20, 20)
