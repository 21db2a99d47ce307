"""VAE/GAN: a variational autoencoder that measures its reconstructions in a discriminator's features.

Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric", algorithm 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import AdversarialOptions, Sizes

FIRST_DENSE = 3
"""Modules up to the first dense layer's activation: flattening, the layer, its activation."""


class VariationalAutoencoderGAN(Model):
    """Gaussian encoder, decoder that is a GAN's generator, and a discriminator whose hidden layer compares images.

    That layer is the last convolution (arch conv), as in the paper, or the first dense one, as deeper ones have too
    few numbers to tell one image from another. Each of the three networks minimises its own loss and gets no gradient
    of the others'. The feature error is a sum over thousands of features whose scale the discriminator chooses, so
    with the paper's weight of 1 the KL divergence counts for little on small images, and samples from the prior are
    worse than reconstructions: hence the higher `beta`.
    """

    class Options(AdversarialOptions, frozen=True, extra="forbid"):
        name: Literal["vaegan"] = "vaegan"
        arch: Literal["mlp", "conv"] = Field("conv", description="dense layers or strided convolutions")
        latent_dim: int = Field(32, ge=1, le=65_536, description="size of the latent vector")
        hidden: Sizes = Field((512, 256), description="dense layer sizes, from the image inwards (arch mlp)")
        beta: float = Field(
            20.0, ge=0, description="weight of the KL divergence against the feature error, for the encoder; paper: 1"
        )
        gamma: float = Field(
            0.1, ge=0, description="weight of the feature error against the adversarial loss, for the decoder"
        )

    recipe = {
        "optimizer": {"beta1": 0.5},
        "training": {"ema_half_life_images": 10_000},
        "evaluation": {"objective": "val_frechet", "metrics": ["val_mse"]},
    }

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.beta = options.beta
        self.gamma = options.gamma
        self.encoder = _blocks.encoder(
            options, shape, 2 * options.latent_dim, _blocks.named_activation(options.activation)
        )
        self.decoder = _blocks.decoder(options, shape, _blocks.named_activation(options.activation))
        discriminator = _blocks.encoder(options, shape, 1, _blocks.named_activation(options.discriminator_activation))
        last = len(discriminator) - 1
        compared = min(FIRST_DENSE, last) if options.arch == "mlp" else last
        self.features, self.verdict = discriminator[:compared], discriminator[compared:]

    def encode(self, images: Tensor) -> Tensor:
        """Means [B, D] of the approximate posterior of images [B, C, H, W] in [0, 1]."""
        return self.posterior(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of latents [B, D]."""
        logits: Tensor = self.decoder(latents)
        return logits.sigmoid()

    def sample(self, latents: Tensor) -> Tensor:
        return self.decode(latents)

    def phases(self) -> list[Phase]:
        discriminator = [*self.features.parameters(), *self.verdict.parameters()]
        return [
            Phase(name="discriminator", params=discriminator, loss=self._discriminator_loss),
            Phase(name="decoder", params=list(self.decoder.parameters()), loss=self._decoder_loss),
            Phase(name="encoder", params=list(self.encoder.parameters()), loss=self._encoder_loss),
        ]

    def discriminator_loss_range(self) -> tuple[float, float]:
        return 0.0, 3 * math.log(2)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """-L_GAN (algorithm 1): real images against reconstructions and samples."""
        with torch.no_grad():
            reconstructions, samples = self._made(batch, "discriminator")
        real = self._judge(self._seen(batch.images))
        rebuilt, fake = (self._judge(self._seen(made)) for made in (reconstructions, samples))
        loss = (F.softplus(-real) + F.softplus(rebuilt) + F.softplus(fake)).mean()
        return loss, {"real_logit": real.mean(), "fake_logit": fake.mean()}

    def _decoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """γ L_llike - L_GAN (algorithm 1), the latter in the form that does not saturate (Goodfellow et al. 2014)."""
        reconstructions, samples = (self._seen(made) for made in self._made(batch, "decoder"))
        adversarial = (F.softplus(-self._judge(reconstructions)) + F.softplus(-self._judge(samples))).mean()
        return self.gamma * self._feature_error(batch.images, reconstructions) + adversarial, {}

    def _encoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """L_prior + L_llike (algorithm 1): KL divergence to the prior plus feature error, in nats."""
        mean, log_variance = self.posterior(batch.inputs)
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1).mean()
        latents = _drawn(mean, log_variance, batch.noise.normal("encoder posterior", self.latent_dim))
        error = self._feature_error(batch.images, self._seen(self.decode(latents)))
        return self.beta * kl + error, {"kl": kl, "feature_error": error}

    def _made(self, batch: Batch, phase: str) -> tuple[Tensor, Tensor]:
        """Reconstructions of the batch, and as many samples from the prior; each [B, C, H, W] in [0, 1]."""
        noise = batch.noise.normal(f"{phase} posterior", self.latent_dim)
        latents = _drawn(*self.posterior(batch.inputs), noise)
        return self.decode(latents), self.sample(batch.noise.normal(f"{phase} latents", self.latent_dim))

    def _seen(self, images: Tensor) -> Tensor:
        """The discriminator's features [B, F] of images [B, C, H, W] in [0, 1]."""
        features: Tensor = self.features(2 * images - 1)
        return features

    def _judge(self, features: Tensor) -> Tensor:
        """The discriminator's logits [B] for features [B, F]."""
        logits: Tensor = self.verdict(features).float()
        return logits.squeeze(1)

    def _feature_error(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        """L_llike: negative log-likelihood of the images' features under N(`reconstructed`, 1), less its constant."""
        with torch.no_grad():
            features = self._seen(images).float()
        return 0.5 * (features - reconstructed.float()).square().sum(dim=1).mean()

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, D] of the approximate posterior of images [B, C, H, W] in [0, 1]."""
        mean, log_variance = self.encoder(images).float().chunk(2, dim=1)
        # Outside these bounds exp() loses all precision in float32, and one early step can reach them.
        return mean, log_variance.clamp(-20, 20)


def _drawn(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Latents [B, D] of a Gaussian with this mean and log-variance [B, D], from standard normal noise [B, D]."""
    return mean + noise * (0.5 * log_variance).exp()
