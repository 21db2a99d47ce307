"""Generative adversarial network: a generator trained against a discriminator.

Goodfellow et al. 2014, "Generative adversarial nets" (minimax: equation 1; and the non-saturating loss); Mao et al.
2017, "Least squares GANs"; Lim & Ye 2017, "Geometric GAN" (hinge); Gulrajani et al. 2017, "Improved training of
Wasserstein GANs" (wgan-gp). The convolutional form follows Radford et al. 2016 (DCGAN) with GroupNorm in place of
BatchNorm.

Against instability: Miyato et al. 2018, "Spectral normalization"; Mescheder et al. 2018, "Which training methods for
GANs do actually converge?" (R1), lazily as in Karras et al. 2020 (StyleGAN2); Heusel et al. 2017, "GANs trained by
a two time-scale update rule". Against lost modes: Lin et al. 2018, "PacGAN".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import AdversarialOptions, Sizes


class GenerativeAdversarialNetwork(Model):
    """Generator from normal or uniform latents to images, and the discriminator that judges them."""

    class Options(AdversarialOptions, frozen=True, extra="forbid"):
        name: Literal["gan"] = "gan"
        arch: Literal["mlp", "conv"] = Field("conv", description="dense layers or strided convolutions (DCGAN)")
        latent_dim: int = Field(64, ge=1, le=65_536, description="noise dimension")
        prior: Literal["normal", "uniform"] = Field(
            "normal", description="of the latents: standard normal, or uniform in (-1, 1)"
        )
        hidden: Sizes = Field((512, 256), description="dense layer sizes, from the image inwards (arch mlp)")
        loss: Literal["non-saturating", "minimax", "lsgan", "hinge", "wgan-gp"] = Field(
            "non-saturating", description="adversarial loss"
        )
        real_label: float = Field(
            0.9, gt=0, le=1, description="one-sided label smoothing (losses non-saturating, minimax and lsgan)"
        )
        gradient_penalty: float | None = Field(
            None, ge=0, description="weight of the gradient penalty, with any loss; none: 10 for wgan-gp, else 0"
        )
        r1: float = Field(0.0, ge=0, description="weight (gamma) of the R1 penalty on real images; 0: none")
        r1_every: int = Field(16, ge=1, description="steps from one R1 penalty to the next, which counts for all")
        spectral_norm: bool = Field(
            False, description="spectral norm on the discriminator's layers, in place of GroupNorm"
        )
        pack: int = Field(
            1, ge=1, le=64, description="images that the discriminator judges at once (PacGAN); divides the batch size"
        )
        discriminator_steps: int | None = Field(
            None, ge=1, description="discriminator steps for one generator step; none: 5 for wgan-gp, else 1"
        )
        discriminator_lr_scale: float = Field(
            1.0, gt=0, description="discriminator's learning rate, in units of the generator's (two time-scales)"
        )

        @property
        def prior_name(self) -> str | None:
            return "uniform" if self.prior == "uniform" else super().prior_name

        @property
        def learns_to_reconstruct(self) -> bool:
            return False

        @property
        def images_judged_together(self) -> int:
            return self.pack

        @property
        def penalty_weight(self) -> float:
            """The weight of the gradient penalty in force."""
            if self.gradient_penalty is None:
                return 10.0 if self.loss == "wgan-gp" else 0.0
            return self.gradient_penalty

        @property
        def differentiates_twice(self) -> str | None:
            if self.penalty_weight > 0:
                return "wgan-gp" if self.loss == "wgan-gp" else "gradient_penalty"
            return "r1" if self.r1 > 0 else None

    recipe = {
        "optimizer": {"beta1": 0.5},
        "training": {"ema_half_life_images": 10_000},
        "evaluation": {"objective": "val_frechet"},
    }

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.options = options
        self.generator = _blocks.decoder(options, shape, _blocks.named_activation(options.activation))
        pack_shape = shape._replace(channels=options.pack * shape.channels)
        self.discriminator = _blocks.encoder(
            options,
            pack_shape,
            1,
            _blocks.named_activation(options.discriminator_activation),
            normalised=not options.spectral_norm,
        )
        if options.spectral_norm:
            _blocks.add_spectral_norm(self.discriminator)

    def sample(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.generator(_blocks.from_prior(self.options.prior, latents))
        return logits.sigmoid()

    def phases(self) -> list[Phase]:
        steps = self.options.discriminator_steps or (5 if self.options.loss == "wgan-gp" else 1)
        discriminator = Phase(
            name="discriminator",
            params=list(self.discriminator.parameters()),
            loss=self._discriminator_loss,
            lr_scale=self.options.discriminator_lr_scale,
        )
        generator = Phase(
            name="generator", params=list(self.generator.parameters()), loss=self._generator_loss, every=steps
        )
        if self.options.r1 == 0:
            return [discriminator, generator]
        # The discriminator's own optimizer: one of its own would, being Adam, take no notice of the weight.
        every = self.options.r1_every
        r1 = replace(discriminator, name="r1", loss=self._r1_loss, every=every, optimizer_of="discriminator")
        return [discriminator, generator, r1]

    def discriminator_loss_range(self) -> tuple[float, float] | None:
        label = self.options.real_label
        match self.options.loss:
            case "non-saturating" | "minimax":
                entropy = -label * math.log(label) - (1 - label) * math.log1p(-label) if label < 1 else 0.0
                return entropy, 2 * math.log(2)
            case "lsgan":
                return 0.0, label**2 / 4
            case "hinge":
                return 0.0, 2.0
            case "wgan-gp":
                return None

    def _packs(self, images: Tensor) -> Tensor:
        """Packs [B/pack, pack·C, H, W] of neighbouring images [B, C, H, W], joined along the channels (PacGAN)."""
        return images.reshape(-1, self.options.pack * self.shape.channels, *images.shape[2:])

    def _judge(self, packs: Tensor) -> Tensor:
        """Discriminator logits [B/pack] of packs [B/pack, pack·C, H, W] of images in [0, 1]."""
        return self._logits(2 * packs - 1)

    def _logits(self, pixels: Tensor) -> Tensor:
        """Discriminator logits [N] of packs [N, pack·C, H, W] as it sees them, in [-1, 1]."""
        logits: Tensor = self.discriminator(pixels).float()
        return logits.squeeze(1)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            samples = self.sample(batch.noise.normal("discriminator latents", self.latent_dim)).float()
        reals, fakes = self._packs(batch.images), self._packs(samples)
        real, fake = self._judge(reals), self._judge(fakes)
        match self.options.loss:
            case "non-saturating" | "minimax":
                labels = torch.full_like(real, self.options.real_label)
                loss = F.binary_cross_entropy_with_logits(real, labels) + F.softplus(fake).mean()
            case "lsgan":
                loss = 0.5 * ((real - self.options.real_label).square() + fake.square()).mean()
            case "hinge":
                loss = (F.relu(1 - real) + F.relu(1 + fake)).mean()
            case "wgan-gp":
                loss = (fake - real).mean()
        if self.options.penalty_weight > 0:
            loss = loss + self.options.penalty_weight * self._gradient_penalty(batch, reals, fakes)
        return loss, {"real_logit": real.mean(), "fake_logit": fake.mean()}

    def _generator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        samples = self.sample(batch.noise.normal("generator latents", self.latent_dim))
        fake = self._judge(self._packs(samples))
        match self.options.loss:
            case "non-saturating":
                loss = F.softplus(-fake).mean()
            case "minimax":
                # log(1 - D(G(z))), which is flat as long as the discriminator sees through the generator.
                loss = -F.softplus(fake).mean()
            case "lsgan":
                loss = 0.5 * (fake - 1).square().mean()
            case "hinge" | "wgan-gp":
                loss = -fake.mean()
        return loss, {}

    def _gradient_penalty(self, batch: Batch, reals: Tensor, fakes: Tensor) -> Tensor:
        """Mean squared distance of the gradient's norm from 1, between real and fake packs (Gulrajani, eq. 3)."""
        # Of the images of a pack the first decides, so that real and fake are mixed alike in all of it.
        mix = batch.noise.uniform("interpolation", 1, 1, 1)[:: self.options.pack]
        penalty: Tensor = (self._slope(torch.lerp(fakes, reals, mix)).norm(dim=1) - 1).square().mean()
        return penalty

    def _r1_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """γ/2 times the mean squared norm of the gradient at real images (Mescheder's R1), for all steps since."""
        squared_slope = self._slope(self._packs(batch.images)).square().sum(dim=1).mean()
        return 0.5 * self.options.r1 * self.options.r1_every * squared_slope, {"squared_slope": squared_slope}

    def _slope(self, packs: Tensor) -> Tensor:
        """Gradient of the logits of packs [N, pack·C, H, W] in [0, 1], flat: [N, pack·C·H·W].

        With respect to pixels in [-1, 1], as the published weights of these penalties mean it: half of the gradient
        with respect to pixels in [0, 1].
        """
        pixels = (2 * packs - 1).detach().requires_grad_()
        [gradient] = torch.autograd.grad(self._logits(pixels).sum(), pixels, create_graph=True)
        return gradient.flatten(1)
