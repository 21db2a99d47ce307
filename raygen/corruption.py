"""Damaged images for models that learn to restore them: Gaussian noise, a masked block, or a lower resolution.

Denoising autoencoders (Vincent et al. 2008, "Extracting and composing robust features with denoising autoencoders")
encode a corrupted image and are compared with the clean one. What a VAE is trained on then is still a lower bound on
the log-likelihood of the clean image, with a posterior of the corrupted one (Im et al. 2017, "Denoising criterion for
variational auto-encoding framework").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from raygen.data import DataOptions
from raygen.models._base import Noise, derived_seed

CHUNK_IMAGES = 500


def corrupted(options: DataOptions, images: Tensor, noise: Noise) -> Tensor | None:
    """What a model sees of images [B, C, H, W] in [0, 1], of the same shape and range; None if that is the images."""
    match options.corruption:
        case None:
            return None
        case "noise":
            return (images + options.corruption_std * noise.normal("input", *images.shape[1:])).clamp(0, 1)
        case "mask":
            return _masked(images, options.corruption_mask, noise.uniform("mask", 2))
        case "downsample":
            return enlarged(downsampled(images, options.corruption_factor), images.shape[2], images.shape[3])


@torch.no_grad()
def corrupted_for_judging(options: DataOptions, images: Tensor, seed: int) -> Tensor | None:
    """The same with noise that follows from `seed` and an image's place alone, drawn on the CPU for all devices."""
    if options.corruption is None:
        return None
    seen = torch.empty_like(images)
    for index, chunk in enumerate(images.split(CHUNK_IMAGES)):
        noise = Noise(
            seed=derived_seed(seed, "judged inputs"),
            step=index,
            batch_size=len(chunk),
            rows=slice(None),
            generator=torch.Generator(),
        )
        found = corrupted(options, chunk.cpu(), noise)
        assert found is not None
        seen[index * CHUNK_IMAGES : index * CHUNK_IMAGES + len(chunk)] = found
    return seen


def downsampled(images: Tensor, factor: int) -> Tensor:
    """Images [B, C, H, W] as means over blocks, [B, C, H // factor, W // factor]."""
    height, width = images.shape[2:]
    return F.adaptive_avg_pool2d(images, (height // factor, width // factor))


def enlarged(images: Tensor, height: int, width: int) -> Tensor:
    """Images [B, C, h, w] with each pixel repeated, [B, C, height, width]."""
    return F.interpolate(images, size=(height, width), mode="nearest-exact")


def _masked(images: Tensor, part: float, places: Tensor) -> Tensor:
    """Images [B, C, H, W] with a black block of their form over `part` of them, at places [B, 2] in [0, 1)."""
    height, width = images.shape[2:]
    block_height, block_width = (min(max(round(side * math.sqrt(part)), 1), side - 1) for side in (height, width))
    top = (places[:, 0] * (height - block_height + 1)).floor()[:, None]
    left = (places[:, 1] * (width - block_width + 1)).floor()[:, None]
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    in_rows = (rows >= top) & (rows < top + block_height)
    in_columns = (columns >= left) & (columns < left + block_width)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
