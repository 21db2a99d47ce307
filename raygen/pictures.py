"""Images as PNG grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from raygen import files

SMALLEST_SIDE = 32
"""Smaller images are enlarged by a whole factor to about this many pixels, so that one can see them."""

LABEL_PIXELS = 14


def in_bytes(images: Tensor) -> Tensor:
    """Images of any shape in [0, 1] as uint8 in 0..255."""
    return images.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Images [N, C, H, W] in [0, 1] side by side, row after row, as close to a square as `columns` allows."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = _enlargement(*images.shape[-2:])
    pixels = in_bytes(images)
    pixels = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    pixels = F.pad(pixels, (1, 1, 1, 1))
    rows = math.ceil(len(pixels) / columns)
    pixels = torch.cat([pixels, pixels.new_zeros(rows * columns - len(pixels), *pixels.shape[1:])])
    _, channels, height, width = pixels.shape
    sheet = pixels.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return Image.fromarray((sheet if channels == 3 else sheet[..., 0]).cpu().numpy())


def pairs(above: Tensor, below: Tensor, columns: int) -> Image.Image:
    """Images [N, C, H, W] in [0, 1] in rows of `columns`, below each row its counterparts [N, C, H, W]."""
    missing = -len(above) % columns
    rows = [F.pad(images.float(), (0, 0, 0, 0, 0, 0, 0, missing)).split(columns) for images in (above, below)]
    return grid(torch.cat([row for pair in zip(*rows, strict=True) for row in pair]), columns)


def labelled(rows: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one height below each other, each with its label on the left."""
    font = ImageFont.load_default(LABEL_PIXELS)
    width = LABEL_PIXELS + max(math.ceil(font.getlength(label)) for label, _ in rows)
    sheet = Image.new("RGB", (width + max(row.width for _, row in rows), sum(row.height for _, row in rows)))
    pen = ImageDraw.Draw(sheet)
    top = 0
    for label, row in rows:
        pen.text((LABEL_PIXELS // 2, top + row.height // 2), label, fill="white", font=font, anchor="lm")
        sheet.paste(row, (width, top))
        top += row.height
    return sheet


def captioned(text: str, picture: Image.Image) -> Image.Image:
    """The picture in its own colours or greys, below a line of text."""
    font = ImageFont.load_default(LABEL_PIXELS)
    top = 2 * LABEL_PIXELS
    sheet = Image.new(picture.mode, (picture.width, top + picture.height))
    ImageDraw.Draw(sheet).text((LABEL_PIXELS // 2, top // 2), text, fill="white", font=font, anchor="lm")
    sheet.paste(picture, (0, top))
    return sheet


def cell(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height in pixels that one image of shape (C, H, W) takes in a grid, with its border."""
    _, height, width = shape
    factor = _enlargement(height, width)
    return factor * width + 2, factor * height + 2


def _enlargement(height: int, width: int) -> int:
    return max(1, round(SMALLEST_SIDE / min(height, width)))


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; raises RunError naming the path where that cannot be done."""
    with files.whole(path) as partial:
        picture.save(partial, format="PNG")
