"""Images as PNG grids."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raygen.errors import RunError

SMALLEST_SIDE = 32
"""Smaller images are enlarged by a whole factor to about this many pixels, so that one can see them."""


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Images [N, C, H, W] in [0, 1] side by side, row after row, as close to a square as `columns` allows."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, round(SMALLEST_SIDE / min(images.shape[-2:])))
    pixels = images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    pixels = F.pad(pixels, (1, 1, 1, 1))
    rows = math.ceil(len(pixels) / columns)
    pixels = torch.cat([pixels, pixels.new_zeros(rows * columns - len(pixels), *pixels.shape[1:])])
    _, channels, height, width = pixels.shape
    sheet = pixels.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return Image.fromarray((sheet if channels == 3 else sheet[..., 0]).cpu().numpy())


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; raises RunError naming the path where that cannot be done."""
    try:
        picture.save(path, format="PNG")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
