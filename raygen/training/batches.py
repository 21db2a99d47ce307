"""Which images each step sees, in which order and changed in which way: the same on any number of devices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from raygen import augmentation, corruption
from raygen.errors import SpecError
from raygen.models._base import Batch, HeldNoise, Noise, derived_seed
from raygen.spec import TrainSpec
from raygen.training import order
from raygen.training.distributed import Group
from raygen.training.images import Images, OnDevice, OnHost


class Batches:
    """One rank's part of every batch, from uint8 images that stay where they are; no work per image.

    Changed at random if the spec says so, and with what a model sees of them that learns to restore them. With
    `labels` [N] each class comes equally often.
    """

    def __init__(self, images: Tensor, spec: TrainSpec, group: Group, *, labels: Tensor | None = None) -> None:
        self.batch_size = spec.training.batch_size
        self.per_epoch = len(images) // self.batch_size
        self.size_bytes = images.nbytes
        together = spec.model.images_judged_together
        if not group.world_size * together <= self.batch_size <= len(images):
            each = f", {together} images for each" if together > 1 else ""
            raise SpecError(
                f"training.batch_size: {self.batch_size} does not fit: it must lie between the number of processes "
                f"({group.world_size}{each}) and the number of training images ({len(images)})"
            )
        self._seed = spec.seed
        self._options = spec.data
        self._format = torch.channels_last if spec.training.channels_last else torch.contiguous_format
        self._rows = group.rows(self.batch_size, together=together)
        self._source = images
        self._device = group.device
        self.place(on_device=group.device.type == "cpu")
        self._members = None if labels is None else order.by_class(labels)
        self._generator = torch.Generator(group.device)

    def place(self, *, on_device: bool) -> None:
        """Take batches from images that lie on the device, or that stay on the host; that is where they are at first.

        On a CPU, where both are one, they are taken as if they were on the device.
        """
        kind = OnDevice if on_device else OnHost
        self._images: Images = kind(self._source, self._device)

    @property
    def are_on_device(self) -> bool:
        """Whether all images lie on the device."""
        return isinstance(self._images, OnDevice)

    def pixels_from(self, step: int) -> Iterator[Tensor]:
        """The images of the batches of the epoch that `step` is in, from `step` on, uint8 [b, C, H, W] on the device.

        The last incomplete batch is left out; each holds until the next is asked for.
        """
        epoch, done = divmod(step, self.per_epoch)
        positions = self._order(epoch)[: self.per_epoch * self.batch_size].view(self.per_epoch, self.batch_size)
        yield from self._images.batches(positions[done:, self._rows])

    def batch(self, pixels: Tensor, noise: Noise) -> Batch:
        """What a model is given of images uint8 [b, C, H, W] in a step with this noise."""
        images = pixels.to(torch.float32, memory_format=self._format).div_(255)
        images = augmentation.augmented(self._options, images, noise)
        return Batch(images=images, noise=noise, corrupted=corruption.corrupted(self._options, images, noise))

    def noise(self, step: int) -> Noise:
        """The random numbers of a step."""
        return Noise(
            seed=self._seed, step=step, batch_size=self.batch_size, rows=self._rows, generator=self._generator
        )

    def held_noise(self) -> HeldNoise:
        """The same, of one step after the other, in tensors that stay in place."""
        return HeldNoise(seed=self._seed, batch_size=self.batch_size, rows=self._rows, generator=self._generator)

    def blank(self) -> Tensor:
        """The pixels uint8 [b, C, H, W] of a black batch, on the device."""
        shape = (self._rows.stop - self._rows.start, *self._source.shape[1:])
        return torch.zeros(shape, dtype=torch.uint8, device=self._device)

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "order", epoch))
        if self._members is None:
            return torch.randperm(len(self._source), generator=generator)
        return order.balanced(self._members, self.per_epoch * self.batch_size, generator)
