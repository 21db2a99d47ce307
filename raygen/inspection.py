"""Looking closely at a trained model: reconstructions, interpolations, latents, anomaly scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raygen import data, models
from raygen.data import Dataset
from raygen.errors import RunError
from raygen.metrics import _anomaly
from raygen.models._base import Reconstructor, Sampler
from raygen.results import TrainedModel, check_shape

CHUNK_IMAGES = 500

Split = Literal["held-out", "train", "all"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some images of a data set, uint8 [N, C, H, W], with what is known of each.

    `positions` [N] are those in the source, `held_out` [N] (bool) says which images no training sees, `labels` [N]
    are the classes where the source has some.
    """

    images: Tensor
    positions: Tensor
    held_out: Tensor
    labels: Tensor | None


def select(dataset: Dataset, split: Split) -> Selection:
    """The training images, the validation images (`held-out`), or those of all parts, in the order of the source."""
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    positions = data.source_positions(dataset)
    held_out = torch.arange(len(positions)) >= len(dataset.train.images)
    rows = torch.argsort(positions)
    if split != "all":
        first, count = len(dataset.train.images), len(dataset.validation.images)
        rows = rows[rows < first] if split == "train" else rows[(rows >= first) & (rows < first + count)]
    # Gathered from the parts one after the other: all together may be larger than memory.
    images = dataset.train.images.new_empty(len(rows), *dataset.shape)
    start = 0
    for part in parts:
        of_part = (rows >= start) & (rows < start + len(part.images))
        images[of_part] = part.images[rows[of_part] - start]
        start += len(part.images)
    known = [part.labels for part in parts if part.labels is not None]
    labels = torch.cat(known)[rows] if len(known) == len(parts) else None
    return Selection(images=images, positions=positions[rows], held_out=held_out[rows], labels=labels)


def require_encoder(trained: TrainedModel, instead: str = "") -> Reconstructor:
    """The model as one that encodes images; raises RunError naming the families that can, and what to do `instead`."""
    if isinstance(trained.model, Reconstructor):
        return trained.model
    able = ", ".join(name for name in models.names() if issubclass(models.find(name), Reconstructor))
    hint = f"; {instead}" if instead else ""
    raise RunError(f"{trained.spec.model.name} has no encoder to look at images with; {able} have one{hint}")


@torch.no_grad()
def encode(trained: TrainedModel, images: Tensor) -> Tensor:
    """Latents [N, D] of images uint8 [N, C, H, W], a posterior's means; raises RunError without an encoder."""
    encoder = require_encoder(trained)
    return torch.cat([encoder.encode(chunk).to(torch.float32) for chunk in _chunks(images)])


@torch.no_grad()
def reconstruct(trained: TrainedModel, dataset: Dataset, count: int) -> tuple[Tensor, Tensor]:
    """The first held-out images and their reconstructions, each [N, C, H, W] in [0, 1].

    Raises RunError without an encoder, SpecError for images of another shape.
    """
    encoder = require_encoder(trained)
    check_shape(trained, dataset)
    chunks = list(_chunks(dataset.validation.images[:count]))
    rebuilt = [encoder.decode(encoder.encode(chunk)).float() for chunk in chunks]
    return torch.cat(chunks), torch.cat(rebuilt)


@torch.no_grad()
def score(trained: TrainedModel, images: Tensor, seed: int) -> tuple[str, Tensor]:
    """The anomaly score's name, and its value [N] for each of images uint8 [N, C, H, W], higher for stranger ones.

    Negative ELBO in nats, or mean squared error per pixel; raises RunError without an encoder.
    """
    require_encoder(trained)
    return _anomaly.score_name(trained.model), _anomaly.scores(trained.model, images, seed)


@torch.no_grad()
def interpolate(trained: TrainedModel, held_out: Tensor | None, steps: int, rows: int, seed: int) -> Tensor:
    """Images [rows · steps, C, H, W] in [0, 1], each row leading from one point of the latent space to another.

    Along great circles between draws of a Gaussian prior, which stay where such a prior has its mass (White 2016,
    "Sampling generative networks"); in straight lines between the encodings of held-out images, uint8
    [N, C, H, W], where a model has no prior.
    """
    fractions = torch.linspace(0, 1, steps)[None, :, None]
    if trained.prior is None:
        model = require_encoder(trained)
        assert held_out is not None, "a model without a prior is interpolated between images"
        chosen = torch.randint(len(held_out), (rows, 2), generator=torch.Generator().manual_seed(seed))
        ends = encode(trained, held_out[chosen.flatten()]).unflatten(0, (rows, 2))
        latents = torch.lerp(ends[:, :1], ends[:, 1:], fractions)
        return torch.cat([model.decode(chunk).float() for chunk in latents.flatten(0, 1).split(CHUNK_IMAGES)])
    sampler = trained.prior.sampler
    assert isinstance(sampler, Sampler)
    ends = torch.randn(rows, 2, sampler.latent_dim, generator=torch.Generator().manual_seed(seed))
    latents = spherical(ends[:, :1], ends[:, 1:], fractions)
    return torch.cat([sampler.sample(chunk).float() for chunk in latents.flatten(0, 1).split(CHUNK_IMAGES)])


def spherical(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    """Points at `fraction` in [0, 1] on the great circle between vectors [..., D]; a line where they are parallel."""
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    on_circle = (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * second) / sine
    return torch.where(sine > 1e-4, on_circle, torch.lerp(first, second, fraction))


def _chunks(images: Tensor) -> Iterator[Tensor]:
    """Images uint8 [N, C, H, W] as float ones in [0, 1], some at a time."""
    return (chunk.float().div_(255) for chunk in images.split(CHUNK_IMAGES))
