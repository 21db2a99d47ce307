"""What a model is: networks, the phases that train them, and what may be asked of the trained result.

Shapes: B images in a batch, C channels, H height, W width, D latent dimensions.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from raygen.errors import SpecError
from raygen.models._options import ModelOptions

Metrics = dict[str, Tensor]
"""Named scalars, each a mean over the batch."""

SMALLEST_SIDE = 8
"""Height and width below which no model here can work, in pixels."""


class ImageShape(NamedTuple):
    """The shape of one image, in pixels."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}×{self.width} with {self.channels} channel{'s' if self.channels > 1 else ''}"


class Noise:
    """Random numbers of one training step that do not depend on how many devices share the batch.

    Every rank draws the numbers of the whole global batch from (seed, step, purpose) and keeps its own rows.
    """

    def __init__(self, *, seed: int, step: int, batch_size: int, rows: slice, generator: torch.Generator) -> None:
        self._seed = seed
        self._step = step
        self._batch_size = batch_size
        self._rows = rows
        self._generator = generator

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers [B, *shape]; one `purpose` gives the same numbers each time in a step."""
        return self._drawn(Tensor.normal_, purpose, shape)[self._rows]

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) of shape [B, *shape]; one `purpose` gives the same numbers each time in a step."""
        return self._drawn(Tensor.uniform_, purpose, shape)[self._rows]

    def _drawn(self, fill: Callable[..., Tensor], purpose: str, shape: tuple[int, ...]) -> Tensor:
        """The numbers [global B, *shape] that a method of tensors fills in."""
        numbers = torch.empty(self._batch_size, *shape, device=self._generator.device)
        return fill(numbers, generator=self._seeded(purpose))

    def _seeded(self, purpose: str) -> torch.Generator:
        return self._generator.manual_seed(derived_seed(self._seed, self._step, purpose))


class HeldNoise(Noise):
    """The same numbers in tensors that stay in place from step to step, so that what reads them can be recorded.

    What a part of a step asks for is known once it has asked; from then on `begin` draws it before the step.
    """

    def __init__(self, *, seed: int, batch_size: int, rows: slice, generator: torch.Generator) -> None:
        super().__init__(seed=seed, step=0, batch_size=batch_size, rows=rows, generator=generator)
        self._held: dict[str, dict[tuple[Callable[..., Tensor], str, tuple[int, ...]], Tensor]] = {}
        self._part = ""

    def begin(self, step: int, parts: Sequence[str]) -> None:
        """Draw what these parts of a step are known to ask for."""
        self._step = step
        for part in parts:
            for (fill, purpose, _), numbers in self._held.get(part, {}).items():
                fill(numbers, generator=self._seeded(purpose))

    def asked_by(self, part: str) -> HeldNoise:
        """This noise, which the part of that name asks from now on."""
        self._part = part
        return self

    def _drawn(self, fill: Callable[..., Tensor], purpose: str, shape: tuple[int, ...]) -> Tensor:
        held = self._held.setdefault(self._part, {})
        asked = (fill, purpose, shape)
        if asked not in held:
            held[asked] = super()._drawn(fill, purpose, shape)
        return held[asked]


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on every part, and is the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's part of a global batch: images [B, C, H, W] in [0, 1] and the step's noise.

    `corrupted` is what a model sees of the images that it learns to restore; None if it sees them as they are.
    """

    images: Tensor
    noise: Noise
    corrupted: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What is encoded, [B, C, H, W] in [0, 1], and compared with `images` once it is decoded."""
        return self.images if self.corrupted is None else self.corrupted


Loss = Callable[[Batch], tuple[Tensor, Metrics]]
"""What is minimised, a mean over the images of a batch, and metrics that are such means too."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer and the loss it minimises.

    `loss` is a mean over the images of the batch (the loop weighs ranks by their number of images) and
    comes with metrics that are such means too. The phase runs on every `every`-th step. `optimizer_of` names
    the phase, of the same parameters, whose optimizer and moments this one uses; none: the phase has its own.
    """

    name: str
    params: Sequence[nn.Parameter]
    loss: Loss
    every: int = 1
    lr_scale: float = 1.0
    optimizer_of: str | None = None


class Model(nn.Module, ABC):
    """A family of generative models; the subclass says what to minimise, the training loop says how.

    Raises SpecError where it cannot take images of `shape`.
    """

    Options: ClassVar[type[ModelOptions]]
    recipe: ClassVar[Mapping[str, Any]] = {}
    """The parts of a TrainSpec that this family starts from instead of the spec's own defaults."""

    def __init__(self, options: ModelOptions, shape: ImageShape) -> None:
        super().__init__()
        if min(shape.height, shape.width) < SMALLEST_SIDE or shape.channels not in (1, 3):
            raise SpecError(
                f"{options.name} cannot take images of {shape}; it takes {SMALLEST_SIDE}×{SMALLEST_SIDE} and "
                "larger with 1 or 3 channels (--image-size resizes)"
            )
        self.shape = shape
        self.latent_dim = options.latent_dim

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU if it has none."""
        return next((weights.device for weights in self.parameters()), torch.device("cpu"))

    @abstractmethod
    def phases(self) -> list[Phase]:
        """What to minimise, in the order in which one step runs it."""


@runtime_checkable
class Reconstructor(Protocol):
    """A model that maps images to latents and back."""

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to latents [B, D]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, D] to images [B, C, H, W] in [0, 1]."""


@runtime_checkable
class Sampler(Protocol):
    """A model that draws images from a prior over its latents: standard normal, or a map of what is."""

    def sample(self, latents: Tensor) -> Tensor:
        """Standard normal numbers [B, D] to images [B, C, H, W] in [0, 1]."""


@runtime_checkable
class Adversarial(Protocol):
    """A model trained against a discriminator, whose phase is called `discriminator`."""

    def discriminator_loss_range(self) -> tuple[float, float] | None:
        """The discriminator's lowest possible loss, and that of a guess; none where a loss has no such bounds."""


@runtime_checkable
class LikelihoodModel(Protocol):
    """A model with a lower bound on the log-likelihood of an image."""

    def elbo(self, images: Tensor, noise: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Evidence lower bound [B] in nats, for images [B, C, H, W] and standard normal noise [B, D].

        The posterior is that of `inputs` [B, C, H, W], the images themselves unless given.
        """


@runtime_checkable
class GaussianEncoder(Protocol):
    """A model whose encoder gives a diagonal Gaussian posterior, to be compared with a standard normal prior."""

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, D] of the approximate posterior of images [B, C, H, W] in [0, 1]."""


@runtime_checkable
class LatentVariableModel(GaussianEncoder, Protocol):
    """A model that also says how likely an image is given its latents."""

    def log_likelihood(self, images: Tensor, latents: Tensor) -> Tensor:
        """Log-likelihood [B] in nats of images [B, C, H, W] in [0, 1] given latents [B, D]."""
