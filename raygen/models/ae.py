"""Autoencoder: reconstructs images through a narrow latent vector.

Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygen.models import _blocks
from raygen.models._base import Batch, ImageShape, Metrics, Model, Phase
from raygen.models._options import ModelOptions, Sizes


class Autoencoder(Model):
    """Encoder and decoder trained on the reconstruction error."""

    class Options(ModelOptions, frozen=True, extra="forbid"):
        name: Literal["ae"] = "ae"
        latent_dim: int = Field(32, ge=1, le=65_536, description="size of the bottleneck")
        hidden: Sizes = Field(
            (128, 64), description="dense layer sizes, image inwards; [] leaves only the bottleneck (arch mlp)"
        )
        loss: Literal["mse", "bce"] = Field("mse", description="squared error, or cross-entropy on logits")
        latent_activation: Literal["none", "relu", "sigmoid", "tanh"] = Field(
            "none", description="on the bottleneck itself"
        )

        @property
        def prior_name(self) -> None:
            return None

    recipe = {"evaluation": {"objective": "val_mse"}}

    def __init__(self, options: Options, shape: ImageShape) -> None:
        super().__init__(options, shape)
        self.loss = options.loss
        self.encoder = _blocks.encoder(
            options, shape, options.latent_dim, _blocks.named_activation(options.activation)
        )
        if options.latent_activation != "none":
            self.encoder.append(_blocks.named_activation(options.latent_activation))
        self.decoder = _blocks.decoder(options, shape, _blocks.named_activation(options.activation))

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.decoder(latents)
        return logits.sigmoid()

    def phases(self) -> list[Phase]:
        return [Phase(name="reconstruction", params=list(self.parameters()), loss=self._reconstruction_loss)]

    def _reconstruction_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        logits = self.decoder(self.encode(batch.inputs)).float()
        if self.loss == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, batch.images)
        else:
            loss = F.mse_loss(logits.sigmoid(), batch.images)
        return loss, {}
