"""Autoencoding GAN: an encoder, a generator that is also its decoder, and a discriminator of images or of pairs.

Judging images: reconstruction and adversarial losses for images, and the latents are drawn to the prior by a
discriminator of their own (Makhzani et al. 2016, "Adversarial autoencoders"; with a GAN of images as in Lazarou
2020, "Autoencoding generative adversarial networks"). Beside real images it sees samples G(z), reconstructions
G(E(x)), or both, as in Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric". Judging
pairs: one discriminator tells (x, E(x)) from (G(z), z), which draws both to the same joint distribution, and so the
latents to the prior (Dumoulin et al. 2017, "Adversarially learned inference"; Donahue et al. 2017, "Adversarial
feature learning"); the reconstruction loss beside it is that of Li et al. 2017, "ALICE: towards understanding
adversarial learning for joint distribution matching", and without it (reconstruction 0) this is a BiGAN.

Samples are autoencoded too if `cycle` weighs |E(G(z)) - z|², as in Srivastava et al. 2017, "VEEGAN: reducing mode
collapse in GANs using implicit variational learning".
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
        latent_judge: bool = Field(
            True, description="a second discriminator draws the latents to the prior (judges images)"
        )
        adversarial: Literal["samples", "reconstructions", "both"] = Field(
            "samples",
            description="what the discriminator of images sees beside real ones: G(z), G(E(x)), or as many of each",
        )
        loss: Literal["non-saturating", "minimax"] = Field(
            "non-saturating", description="adversarial loss of encoder and generator"
        )
        reconstruction: float = Field(
            50.0, ge=0, description="weight of the mean squared reconstruction error beside the adversarial losses"
        )
        cycle: float = Field(
            0.0, ge=0, description="weight of the mean squared error of samples' latents, E(G(z)) against z; 0: none"
        )
        pair_features: int = Field(
            256,
            ge=0,
            le=65_536,
            description="numbers that are made of an image before it is joined with its latents (judges pairs); "
            "0: its pixels are joined",
        )
        latent_hidden: Sizes = Field(
            (256,), description="dense layer sizes of the discriminator where it looks at latents"
        )

        @property
        def learns_to_reconstruct(self) -> bool:
            return self.reconstruction > 0

        @property
        def prior_name(self) -> str | None:
            """None if neither samples nor latents are judged, so that nothing fits decoder and prior to each other."""
            if self.adversarial == "reconstructions" and not self.latent_judge:
                return None
            return "uniform" if self.prior == "uniform" else super().prior_name

        @property
        def contradiction(self) -> str | None:
            if not (self.latent_judge or self.reconstruction or self.cycle) and self.adversarial == "samples":
                return "model.reconstruction: with 0, and no judge of latents, nothing trains the encoder; train a gan"
            one_judge = (
                "one discriminator judges (x, E(x)) against (G(z), z); leave it out, or set model.judges=images"
            )
            no_samples = "neither samples nor latents are judged; leave it out, or set model.adversarial=both"
            unused = {
                "latent_judge": (self.judges == "pairs", one_judge),
                "adversarial": (self.judges == "pairs", one_judge),
                "prior": (self.prior_name is None, no_samples),
                "cycle": (self.prior_name is None, no_samples),
                "latent_hidden": (not self.latent_judge, "nothing judges latents; leave out model.latent_judge=false"),
                "pair_features": (self.judges == "images", "nothing judges pairs; set model.judges=pairs"),
            }
            for name, (is_unused, reason) in unused.items():
                if is_unused and getattr(self, name) != type(self).model_fields[name].default:
                    return f"model.{name}: {reason}"
            return None

    recipe = {
        "optimizer": {"beta1": 0.5},
        "training": {"ema_half_life_images": 10_000},
        "evaluation": {"objective": "val_frechet", "metrics": ["val_mse"]},
    }

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.options = options
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
        return self.decode(_blocks.from_prior(self.options.prior, latents))

    def phases(self) -> list[Phase]:
        autoencoder = [*self.encoder.parameters(), *self.generator.parameters()]
        return [
            Phase(name="discriminator", params=list(self.discriminator.parameters()), loss=self._discriminator_loss),
            Phase(name="autoencoder", params=autoencoder, loss=self._autoencoder_loss),
        ]

    def discriminator_loss_range(self) -> tuple[float, float]:
        return 0.0, 2 * math.log(2)

    def _discriminator_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy of telling encoded pairs (x, E(x)) from generated ones (G(z), z), or G(E(x)) for G(z)."""
        with torch.no_grad():
            codes, latents = self.encode(batch.inputs).float(), self._prior_latents(batch, "discriminator")
            fakes = [images.float() for images in self._fakes(codes, latents).values()]
        encoded = self.discriminator(batch.images, codes)
        generated = torch.cat([self.discriminator(images, latents) for images in fakes])
        loss = F.softplus(-encoded).mean() + F.softplus(generated).mean()
        return loss, {"encoded_logit": encoded.mean(), "generated_logit": generated.mean()}

    def _autoencoder_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Reconstruction errors of images and of samples' latents, and both kinds of pair mistaken for the other."""
        codes, latents = self.encode(batch.inputs), self._prior_latents(batch, "autoencoder")
        fakes = self._fakes(codes, latents)
        generated = torch.cat([self.discriminator(images, latents) for images in fakes.values()])
        # The first logit depends on the image, the last on the latents; for pairs there is one that does on both.
        loss = self._deceived(generated[:, 0])
        if self.options.latent_judge:
            loss = loss + self._deceived(-self.discriminator(batch.images, codes)[:, -1])
        reconstructions = fakes["reconstructions"] if "reconstructions" in fakes else self.decode(codes)
        errors = {"reconstruction": F.mse_loss(reconstructions.float(), batch.images)}
        loss = loss + self.options.reconstruction * errors["reconstruction"]
        if self.options.cycle > 0:
            samples = fakes["samples"] if "samples" in fakes else self.decode(latents)
            errors["cycle"] = F.mse_loss(self.encode(samples).float(), latents)
            loss = loss + self.options.cycle * errors["cycle"]
        return loss, errors

    def _prior_latents(self, batch: Batch, phase: str) -> Tensor:
        """Latents [B, D] drawn from the prior."""
        return _blocks.from_prior(self.options.prior, batch.noise.normal(f"{phase} latents", self.latent_dim))

    def _fakes(self, codes: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """By name, the images [B, C, H, W] that are shown beside real ones: decoded codes [B, D], latents [B, D]."""
        decoded = {"samples": latents, "reconstructions": codes}
        shown = decoded if self.options.adversarial == "both" else (self.options.adversarial,)
        return {name: self.decode(decoded[name]) for name in shown}

    def _deceived(self, logits: Tensor) -> Tensor:
        """The loss of those who want logits [N] that are low in truth to be high."""
        return -F.softplus(logits).mean() if self.options.loss == "minimax" else F.softplus(-logits).mean()


class _Marginals(nn.Module):
    """Judges images, and latents if the options say so, each by itself."""

    def __init__(self, options: AutoencodingGAN.Options, shape: ImageShape) -> None:
        super().__init__()
        activation = _blocks.named_activation(options.discriminator_activation)
        self.images = _blocks.encoder(options, shape, 1, activation)
        self.latents: nn.Module | None = None
        if options.latent_judge:
            self.latents = _blocks.dense([options.latent_dim, *options.latent_hidden, 1], activation)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits [B, 1 or 2], high for encoded images and for their latents: images [B, C, H, W], latents [B, D]."""
        logits: Tensor = self.images(2 * images - 1)
        return logits.float() if self.latents is None else torch.cat([logits, self.latents(latents)], dim=1).float()


class _Pairs(nn.Module):
    """Judges images together with their latents."""

    def __init__(self, options: AutoencodingGAN.Options, shape: ImageShape) -> None:
        super().__init__()
        activation = _blocks.named_activation(options.discriminator_activation)
        features = options.pair_features or math.prod(shape)
        self.images = nn.Sequential(nn.Flatten())
        if options.pair_features:
            self.images = nn.Sequential(_blocks.encoder(options, shape, features, activation), activation)
        self.pairs = _blocks.dense([features + options.latent_dim, *options.latent_hidden, 1], activation)

    def forward(self, images: Tensor, latents: Tensor) -> Tensor:
        """Logits [B, 1], high for encoded pairs, of images [B, C, H, W] in [0, 1] and latents [B, D]."""
        logits: Tensor = self.pairs(torch.cat([self.images(2 * images - 1), latents], dim=1))
        return logits.float()
