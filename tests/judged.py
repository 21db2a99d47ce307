"""What metrics are tried on: samplers whose samples are known, and images without a name or labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raygen.data import Dataset, Part
from raygen.models._base import ImageShape, Model, Phase
from raygen.models._options import ModelOptions


class Repeating(Model):
    """A sampler that returns given images [N, C, H, W] over and over, whatever the latents."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(ModelOptions(name="repeating"), ImageShape(*images.shape[1:]))
        self.images = nn.Parameter(images)
        self.made = 0

    def phases(self) -> list[Phase]:
        return []

    def sample(self, latents: Tensor) -> Tensor:
        rows = torch.arange(self.made, self.made + len(latents)) % len(self.images)
        self.made += len(latents)
        return self.images[rows]


def noise(train: Tensor, labels: Tensor | None = None) -> Dataset:
    """A data set called noise, with training images [N, C, H, W] in [0, 1] that are its validation images too."""
    part = Part((255 * train).round().byte(), labels)
    return Dataset("noise", part, part, None, "")
