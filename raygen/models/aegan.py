"""Autoencoding GAN: an encoder, a generator that is also its decoder, and a discriminator of images or of pairs.

Judging images: reconstruction and adversarial losses for images, and the latents are drawn to the prior by a
discriminator of their own (Makhzani et al. 2016, "Adversarial autoencoders"; with a GAN of images as in Lazarou
2020, "Autoencoding generative adversarial networks"). Judging pairs: one discriminator tells (x, E(x)) from
(G(z), z), which draws both to the same joint distribution, and so the latents to the prior (Dumoulin et al. 2017,
"Adversarially learned inference"; Donahue et al. 2017, "Adversarial feature learning"); the reconstruction loss
beside it is that of Li et al. 2017, "ALICE: towards understanding adversarial learning for joint distribution
matching", and without it (reconstruction 0) this is a BiGAN.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import AdversarialOptions, Sizes

FEATURES = 256
"""Size of what a discriminator of pairs takes from the image, before it is joined with the latents."""


class AutoencodingGAN(Model):
    """Deterministic encoder, generator from a normal or uniform prior, and their discriminator."""

    class Options(AdversarialOptions, frozen=True, extra="forbid"):
        name: Literal["aegan"] = "aegan"
        arch: Literal["mlp", "conv"] = Field("conv", description="dense layers or strided convolutions")
        latent_dim: int = Field(16, ge=1, le=65_536, description="size of the latent vector")
        prior: Literal["normal", "uniform"] = Field(
            "normal", description="of the latents: standard normal, or uniform in (-1, 1)"
        )
        hidden: Sizes = Field((512, 256), description="dense layer sizes, from the image inwards (arch mlp)")
        judges: Literal["images", "pairs"] = Field(
            "images", description="what the discriminator sees: images, or images with their latents (ALI, BiGAN)"
        )
        reconstruction: float = Field(
            50.0, ge=0, description="weight of the mean squared reconstruction error beside the adversarial losses"
        )
        latent_hidden: Sizes = Field(
            (256,), description="dense layer sizes of the discriminator where it looks at latents"
        )

        @property
        def learns_to_reconstruct(self) -> bool:
            return self.reconstruction > 0

        @property
        def prior_name(self) -> str:
            return "uniform" if self.prior == "uniform" else super().prior_name

    recipe = {
        "optimizer": {"beta1": 0.5},
        "training": {"ema_half_life_images": 10_000},
        "evaluation": {"objective": "val_frechet", "metrics": ["val_mse"]},
    }

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.prior = options.prior
        self.reconstruction = options.reconstruction
        self.encoder = _blocks.encoder(
            options, shape, options.latent_dim, _blocks.named_activation(options.activation)
        )
        self.generator = _blocks.decoder(options, shape, _blocks.named_activation(options.activation))
        judge = _Pairs if options.judges == "pairs" else _Marginals
        self.discriminator = judge(options, shape)

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.generator(latents)
        return logits.sigmoid()

    def sample(self, latents: Tensor) -> Tensor:
        return self.decode(_blocks.from_prior(self.prior, latents))

    def phases(self) -> list[Phase]:
        autoencoder = [*self.encoder.parameters(), *self.generator.parameters()]
        return [
            Phase(name="discriminator", params=list(self.discriminator.parameters()), loss=self._discriminator_loss),
            Phase(name="autoencoder", params=autoencoder, loss=self._autoencoder_loss),
        ]

    def discriminator_loss_range(self) -> tuple[float, float]:
        return 0.0, 2 * math.log(2)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of telling encoded pairs (x, E(x)) from generated ones (G(z), z)."""
        latents = _blocks.from_prior(self.prior, batch.noise.normal("discriminator latents", self.latent_dim))
        with torch.no_grad():
            codes, samples = self.encode(batch.inputs).float(), self.decode(latents).float()
        encoded, generated = self.discriminator(batch.images, codes), self.discriminator(samples, latents)
        loss = (F.softplus(-encoded) + F.softplus(generated)).mean()
        return loss, {"encoded_logit": encoded.mean(), "generated_logit": generated.mean()}

    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Reconstruction error, and both kinds of pair mistaken for the other, in the form that does not saturate."""
        latents = _blocks.from_prior(self.prior, batch.noise.normal("autoencoder latents", self.latent_dim))
        codes = self.encode(batch.inputs)
        error = F.mse_loss(self.decode(codes).float(), batch.images)
        generated = self.discriminator(self.decode(latents), latents)
        encoded = self.discriminator(batch.images, codes)
        # The first logit depends on the image, the last on the latents; for pairs there is one that does on both.
        adversarial = (F.softplus(-generated[:, 0]) + F.softplus(encoded[:, -1])).mean()
        return self.reconstruction * error + adversarial, {"reconstruction": error}


class _Marginals(nn.Module):
    """Judges images and latents each by itself."""

    def __init__(self, options: AutoencodingGAN.Options, shape: ImageShape) -> None:
        super().__init__()
        activation = _blocks.named_activation(options.discriminator_activation)
        self.images = _blocks.encoder(options, shape, 1, activation)
        self.latents = _blocks.dense([options.latent_dim, *options.latent_hidden, 1], activation)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits [B, 2], high for encoded images and for their latents: images [B, C, H, W], latents [B, D]."""
        return torch.cat([self.images(2 * images - 1), self.latents(latents)], dim=1).float()


class _Pairs(nn.Module):
    """Judges images together with their latents."""

    def __init__(self, options: AutoencodingGAN.Options, shape: ImageShape) -> None:
        super().__init__()
        activation = _blocks.named_activation(options.discriminator_activation)
        self.images = nn.Sequential(_blocks.encoder(options, shape, FEATURES, activation), activation)
        self.pairs = _blocks.dense([FEATURES + options.latent_dim, *options.latent_hidden, 1], activation)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits [B, 1], high for encoded pairs, of images [B, C, H, W] in [0, 1] and latents [B, D]."""
        logits: Tensor = self.pairs(torch.cat([self.images(2 * images - 1), latents], dim=1))
        return logits.float()
