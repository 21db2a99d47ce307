"""The options that every model has, free of torch so that a spec can be read without it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator


def _as_sequence(value: object) -> object:
    return [value] if isinstance(value, int) else value


Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_as_sequence)]
"""Layer sizes; one number stands for one layer."""

Activation = Literal["relu", "leaky-relu", "elu", "gelu", "silu", "tanh"]
"""What may stand between two layers."""


class ModelOptions(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The options every model has; each family adds its own."""

    name: str
    arch: Literal["mlp", "conv"] = Field("mlp", description="dense layers or strided convolutions")
    latent_dim: int = Field(20, ge=1, le=65_536, description="size of the latent vector (noise dimension)")
    hidden: Sizes = Field((400,), description="dense layer sizes, from the image inwards (arch mlp)")
    decoder_hidden: Sizes | None = Field(
        None,
        description="dense layer sizes of the decoder or generator, from the latents outwards (arch mlp); "
        "none: those of `hidden`, backwards",
    )
    width: int = Field(32, ge=1, le=4096, description="channels of the outermost convolution (arch conv)")
    activation: Activation = Field(
        "relu", description="between the layers of encoder and decoder, or of the generator"
    )

    @field_validator("decoder_hidden")
    @classmethod
    def _check_decoder(cls, sizes: Sizes | None, info: ValidationInfo) -> Sizes | None:
        if sizes is not None and info.data.get("arch") == "conv":
            raise ValueError("convolutions go backwards as they came; leave it out, or set model.arch=mlp")
        return sizes

    @property
    def decoder_sizes(self) -> Sizes:
        """Dense layer sizes of the decoder or generator, from the latents outwards (arch mlp)."""
        return self.hidden[::-1] if self.decoder_hidden is None else self.decoder_hidden

    @property
    def contradiction(self) -> str | None:
        """What is wrong with these options together, and what to type instead; None if they go together."""
        return None

    @property
    def prior_name(self) -> str | None:
        """What latents are drawn from to make samples; None if nothing trains latents and images to suit a prior."""
        return "standard normal"

    @property
    def images_judged_together(self) -> int:
        """Images that a loss looks at as one, so that a batch is split over processes in multiples of it."""
        return 1

    @property
    def learns_to_reconstruct(self) -> bool:
        """Whether what is decoded of an encoded image is compared with the image."""
        return True

    @property
    def differentiates_twice(self) -> str | None:
        """The name of what in these options takes the gradient of a gradient, if anything does."""
        return None


class AdversarialOptions(ModelOptions, frozen=True, extra="forbid"):
    """Those of the families that have a discriminator."""

    discriminator_activation: Activation = Field(
        "leaky-relu", description="between the discriminator's layers; leaky-relu has a slope of 0.2 below 0"
    )
