"""Which images each step sees, in which order and changed in which way: the same on any number of devices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raygen import augmentation, corruption
from raygen.errors import SpecError
from raygen.models._base import Batch, Noise, derived_seed
from raygen.spec import TrainSpec
from raygen.training import order
from raygen.training.distributed import Group


class Batches:
    """One rank's part of every batch, indexed from uint8 images that stay in memory; no work per image.

    Changed at random if the spec says so, and with what a model sees of them that learns to restore them. With
    `labels` [N] each class comes equally often.
    """

    def __init__(self, images: Tensor, spec: TrainSpec, group: Group, *, labels: Tensor | None = None) -> None:
        self.batch_size = spec.training.batch_size
        self.per_epoch = len(images) // self.batch_size
        together = spec.model.images_judged_together
        if not group.world_size * together <= self.batch_size <= len(images):
            each = f", {together} images for each" if together > 1 else ""
            raise SpecError(
                f"training.batch_size: {self.batch_size} does not fit: it must lie between the number of processes "
                f"({group.world_size}{each}) and the number of training images ({len(images)})"
            )
        self._seed = spec.seed
        self._options = spec.data
        self._rows = group.rows(self.batch_size, together=together)
        self._images = images.to(group.device)
        self._members = None if labels is None else order.by_class(labels)
        self._generator = torch.Generator(group.device)

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches of the epoch that `step` is in, from `step` on; the last incomplete batch is left out."""
        epoch, done = divmod(step, self.per_epoch)
        positions = self._order(epoch).to(self._images.device)
        for index in range(done, self.per_epoch):
            first = index * self.batch_size
            rows = positions[first + self._rows.start : first + self._rows.stop]
            noise = self._noise(epoch * self.per_epoch + index)
            images = self._images.index_select(0, rows).to(torch.float32).div_(255)
            images = augmentation.augmented(self._options, images, noise)
            yield Batch(images=images, noise=noise, corrupted=corruption.corrupted(self._options, images, noise))

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "order", epoch))
        if self._members is None:
            return torch.randperm(len(self._images), generator=generator)
        return order.balanced(self._members, self.per_epoch * self.batch_size, generator)

    def _noise(self, step: int) -> Noise:
        return Noise(
            seed=self._seed, step=step, batch_size=self.batch_size, rows=self._rows, generator=self._generator
        )
