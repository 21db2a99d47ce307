"""Generative adversarial network: a generator trained against a discriminator.

Goodfellow et al. 2014, "Generative adversarial nets" (non-saturating loss); Mao et al. 2017, "Least squares
GANs"; Lim & Ye 2017, "Geometric GAN" (hinge); Gulrajani et al. 2017, "Improved training of Wasserstein GANs"
(wgan-gp). The convolutional form follows Radford et al. 2016 (DCGAN) with GroupNorm in place of BatchNorm.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import ModelOptions, Sizes


class GenerativeAdversarialNetwork(Model):
    """Generator from standard normal latents to images, and the discriminator that judges them."""

    class Options(ModelOptions, frozen=True, extra="forbid"):
        name: Literal["gan"] = "gan"
        arch: Literal["mlp", "conv"] = Field("conv", description="dense layers or strided convolutions (DCGAN)")
        latent_dim: int = Field(64, ge=1, le=65_536, description="noise dimension")
        hidden: Sizes = Field((512, 256), description="dense layer sizes, from the image inwards (arch mlp)")
        loss: Literal["non-saturating", "lsgan", "hinge", "wgan-gp"] = Field(
            "non-saturating", description="adversarial loss"
        )
        real_label: float = Field(
            0.9, gt=0, le=1, description="one-sided label smoothing (losses non-saturating and lsgan)"
        )
        gradient_penalty: float = Field(10.0, ge=0, description="weight of the gradient penalty (loss wgan-gp)")
        discriminator_steps: int | None = Field(
            None, ge=1, description="discriminator steps for one generator step; none: 5 for wgan-gp, else 1"
        )

    recipe = {
        "optimizer": {"lr": 2e-4, "beta1": 0.5},
        "training": {"ema_half_life_images": 10_000},
        "evaluation": {"objective": "val_frechet"},
    }

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.options = options
        self.generator = _blocks.decoder(options, shape, nn.ReLU())
        self.discriminator = _blocks.encoder(options, shape, 1, nn.LeakyReLU(0.2))

    def sample(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.generator(latents)
        return logits.sigmoid()

    def phases(self) -> list[Phase]:
        steps = self.options.discriminator_steps or (5 if self.options.loss == "wgan-gp" else 1)
        return [
            Phase(
                name="discriminator",
                params=list(self.discriminator.parameters()),
                loss=self._discriminator_loss,
            ),
            Phase(
                name="generator",
                params=list(self.generator.parameters()),
                loss=self._generator_loss,
                every=steps,
            ),
        ]

    def _judge(self, images: Tensor) -> Tensor:
        """Discriminator logits [B] of images [B, C, H, W] in [0, 1]."""
        logits: Tensor = self.discriminator(2 * images - 1).float()
        return logits.squeeze(1)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            fakes = self.sample(batch.noise.normal("discriminator latents", self.latent_dim)).float()
        real, fake = self._judge(batch.images), self._judge(fakes)
        match self.options.loss:
            case "non-saturating":
                labels = torch.full_like(real, self.options.real_label)
                loss = F.binary_cross_entropy_with_logits(real, labels) + F.softplus(fake).mean()
            case "lsgan":
                loss = 0.5 * ((real - self.options.real_label).square() + fake.square()).mean()
            case "hinge":
                loss = (F.relu(1 - real) + F.relu(1 + fake)).mean()
            case "wgan-gp":
                penalty = self._gradient_penalty(batch, fakes)
                loss = (fake - real).mean() + self.options.gradient_penalty * penalty
        return loss, {"real_logit": real.mean(), "fake_logit": fake.mean()}

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        fake = self._judge(self.sample(batch.noise.normal("generator latents", self.latent_dim)))
        match self.options.loss:
            case "non-saturating":
                loss = F.softplus(-fake).mean()
            case "lsgan":
                loss = 0.5 * (fake - 1).square().mean()
            case "hinge" | "wgan-gp":
                loss = -fake.mean()
        return loss, {}

    def _gradient_penalty(self, batch: Batch, fakes: Tensor) -> Tensor:
        """Mean squared distance of the gradient's norm from 1, between real and fake (Gulrajani, eq. 3)."""
        mix = batch.noise.uniform("interpolation", 1, 1, 1)
        between = torch.lerp(fakes, batch.images, mix).requires_grad_()
        [gradient] = torch.autograd.grad(self._judge(between).sum(), between, create_graph=True)
        penalty: Tensor = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return penalty
