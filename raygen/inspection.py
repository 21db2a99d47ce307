"""Looking closely at a trained model: reconstructions, interpolations, latents, anomaly scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raygen import data, models
from raygen.data import Dataset, Split
from raygen.data.image_names import Names
from raygen.errors import RunError
from raygen.metrics import _anomaly
from raygen.metrics._chunks import on_device
from raygen.models._base import Reconstructor, Sampler
from raygen.results import TrainedModel

CHUNK_IMAGES = 500
CHOICE_SEED = 0

PARTS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some images of the data set `source`, uint8 [N, C, H, W], with what is known of each.

    `positions` [N] are those in the source, `parts` [N] the indices in PARTS of those that they are in, `labels` [N]
    the classes if the source has some, `source_names` the names by their position there, if it is a folder.
    """

    source: str
    images: Tensor
    positions: Tensor
    parts: Tensor
    labels: Tensor | None
    source_names: Names | None = None

    @property
    def part_names(self) -> list[Split]:
        """The part that each image is in, by its name."""
        return [PARTS[index] for index in self.parts.tolist()]

    def names(self) -> list[str] | None:
        """The path of each image in its folder; None if the source has no names. Raises DataError if they are gone."""
        return None if self.source_names is None else self.source_names.at(self.positions.tolist())

    def rows(self, rows: Tensor) -> Selection:
        """The images of these rows, in their order."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(
            self, images=self.images[rows], positions=self.positions[rows], parts=self.parts[rows], labels=labels
        )


class Reconstructions(NamedTuple):
    """Images of the data set `source` and what a model makes of them, each [N, C, H, W] in [0, 1]."""

    images: Tensor
    reconstructions: Tensor
    source: str


def select(dataset: Dataset, split: Split | Literal["all"]) -> Selection:
    """The images of one part, or of all of them, in the order of the source; raises DataError if there are none."""
    if split != "all":
        dataset.part(split)
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if part]
    positions = data.source_positions(dataset)
    part_of = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part.images) for part in parts]))
    rows = torch.argsort(positions)
    if split != "all":
        rows = rows[part_of[rows] == PARTS.index(split)]
    # Gathered from the parts one after the other: all together may be larger than memory.
    images = dataset.train.images.new_empty(len(rows), *dataset.shape)
    first = 0
    for index, part in enumerate(parts):
        is_here = part_of[rows] == index
        images[is_here] = part.images[rows[is_here] - first]
        first += len(part.images)
    known = [part.labels for part in parts if part.labels is not None]
    labels = torch.cat(known)[rows] if len(known) == len(parts) else None
    return Selection(
        source=dataset.name,
        images=images,
        positions=positions[rows],
        parts=part_of[rows],
        labels=labels,
        source_names=dataset.names,
    )


def some(chosen: Selection, count: int) -> Selection:
    """The same images, or if there are more than `count` so many of them, drawn by chance and left in their order."""
    order = torch.randperm(len(chosen.images), generator=torch.Generator().manual_seed(CHOICE_SEED))
    return chosen.rows(order[:count].sort().values)


def require_encoder(trained: TrainedModel, instead: str = "") -> Reconstructor:
    """The model as one that encodes images; raises RunError naming the families that can, and what to do `instead`."""
    if isinstance(trained.model, Reconstructor):
        return trained.model
    able = ", ".join(name for name in models.names() if issubclass(models.find(name), Reconstructor))
    hint = f"; {instead}" if instead else ""
    raise RunError(f"{trained.spec.model.name} has no encoder to look at images with; {able} have one{hint}")


def encode(trained: TrainedModel, images: Tensor) -> Tensor:
    """Latents [N, D], on the CPU, of images uint8 [N, C, H, W], a posterior's means.

    Raises RunError without an encoder.
    """
    encoder = require_encoder(trained)
    with trained.at_work():
        return torch.cat([encoder.encode(chunk).float().cpu() for chunk in _chunks(trained, images)])


def reconstruct(trained: TrainedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, C, H, W] and their reconstructions, each in [0, 1] on the CPU.

    Raises RunError without an encoder.
    """
    encoder = require_encoder(trained)
    with trained.at_work():
        rebuilt = [encoder.decode(encoder.encode(chunk)).float().cpu() for chunk in _chunks(trained, images)]
    return images.float().div_(255), torch.cat(rebuilt)


def score(trained: TrainedModel, images: Tensor, seed: int) -> tuple[str, Tensor]:
    """The anomaly score's name, and its value [N] for each of images uint8 [N, C, H, W], higher for stranger ones.

    Negative ELBO in nats, or mean squared error per pixel, on the CPU; raises RunError without an encoder.
    """
    require_encoder(trained)
    with trained.at_work():
        return _anomaly.score_name(trained.model), _anomaly.scores(trained.model, images, seed)


def interpolate(trained: TrainedModel, images: Tensor | None, steps: int, rows: int, seed: int) -> Tensor:
    """Images [rows · steps, C, H, W] in [0, 1], each row leading from one point of the latent space to another.

    They are on the CPU. Along great circles between draws of a Gaussian prior, which stay where such a prior has its
    mass (White 2016, "Sampling generative networks"); in straight lines between the encodings of `images`, uint8 [N,
    C, H, W], if a model has no prior.
    """
    fractions = torch.linspace(0, 1, steps)[None, :, None]
    if trained.prior is None:
        model = require_encoder(trained)
        assert images is not None, "a model without a prior is interpolated between images"
        chosen = torch.randint(len(images), (rows, 2), generator=torch.Generator().manual_seed(seed))
        ends = encode(trained, images[chosen.flatten()]).unflatten(0, (rows, 2))
        latents = torch.lerp(ends[:, :1], ends[:, 1:], fractions)
        return _decoded(trained, latents.flatten(0, 1), model.decode)
    sampler = trained.prior.sampler
    assert isinstance(sampler, Sampler)
    ends = torch.randn(rows, 2, sampler.latent_dim, generator=torch.Generator().manual_seed(seed))
    latents = spherical(ends[:, :1], ends[:, 1:], fractions)
    return _decoded(trained, latents.flatten(0, 1), sampler.sample)


def _decoded(trained: TrainedModel, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function of the model makes of latents [N, D], on the CPU."""
    with trained.at_work():
        chunks = on_device(trained.device, CHUNK_IMAGES, latents)
        return torch.cat([decode(chunk).float().cpu() for (chunk,) in chunks])


def spherical(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    """Points at `fraction` in [0, 1] on the great circle between vectors [..., D]; a line where they are parallel."""
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    on_circle = (((1 - fraction) * angle).sin() * first + (fraction * angle).sin() * second) / sine
    return torch.where(sine > 1e-4, on_circle, torch.lerp(first, second, fraction))


def _chunks(trained: TrainedModel, images: Tensor) -> Iterator[Tensor]:
    """Images uint8 [N, C, H, W] as float ones in [0, 1] on the model's device, some at a time."""
    return (chunk.float().div_(255) for (chunk,) in on_device(trained.device, CHUNK_IMAGES, images))
