"""Training images changed at random, for scarce data: mirrored, shifted, or cropped and enlarged again.

A model learns the changed images: what it samples is mirrored, shifted and cropped as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen.data import DataOptions
from raygen.models._base import Noise


def augmented(options: DataOptions, images: Tensor, noise: Noise) -> Tensor:
    """Images [B, C, H, W] in [0, 1], each changed by all that the options name; they themselves if that is nothing."""
    if "flip" in options.augment:
        is_flipped = noise.uniform("flip", 1, 1, 1) < 0.5
        images = torch.where(is_flipped, images.flip(3), images)
    if "shift" in options.augment:
        images = _shifted(images, options.augment_shift, noise.uniform("shift", 2))
    if "crop" in options.augment:
        images = _cropped(images, options.augment_crop, noise.uniform("crop", 3))
    return images


def _shifted(images: Tensor, part: float, places: Tensor) -> Tensor:
    """Images [B, C, H, W] moved by whole pixels, up to `part` of their sides, at places [B, 2] in [0, 1).

    What comes into sight repeats the pixels of its edge.
    """
    _, channels, height, width = images.shape
    rows, columns = (_origins(side, part, places[:, axis]) for axis, side in enumerate((height, width)))
    images = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def _origins(side: int, part: float, places: Tensor) -> Tensor:
    """The pixel that each of a side comes from, int64 [B, side], if it moves as places [B] in [0, 1) say."""
    most = max(1, round(part * side))
    steps = (places * (2 * most + 1)).floor().long() - most
    return (torch.arange(side, device=places.device) - steps[:, None]).clamp(0, side - 1)


def _cropped(images: Tensor, smallest: float, places: Tensor) -> Tensor:
    """A part of each image [B, C, H, W] in its form, of `smallest` to all of its sides, enlarged to [B, C, H, W].

    Its size and place follow from places [B, 3] in [0, 1); what is between pixels is interpolated linearly.
    """
    sizes = smallest + (1 - smallest) * places[:, :1]
    centres = (1 - sizes) * (2 * places[:, 1:] - 1)
    scales = torch.diag_embed(sizes.expand(-1, 2))
    where = F.affine_grid(torch.cat([scales, centres[:, :, None]], dim=2), list(images.shape), align_corners=False)
    # Rounding may lead beyond 1, and cross-entropy may not.
    return F.grid_sample(images, where, padding_mode="border", align_corners=False).clamp(0, 1)
