"""Images that stand in rows in one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raygen import pictures
from raygen.errors import RunError


def numbered(count: int, channels: int = 1, height: int = 32, width: int = 32) -> Tensor:
    """Images of which each is filled with its own grey value."""
    values = torch.arange(1, count + 1) / 255
    return values[:, None, None, None].expand(count, channels, height, width)


@pytest.mark.parametrize(
    ("count", "columns", "rows_and_columns"),
    [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (64, None, (8, 8)), (7, 7, (1, 7)), (7, 3, (3, 3))],
)
def test_images_stand_in_rows(count: int, columns: int | None, rows_and_columns: tuple[int, int]) -> None:
    rows, across = rows_and_columns
    pixels = np.asarray(pictures.grid(numbered(count), columns))
    assert pixels.shape == (rows * 34, across * 34)
    centres = pixels[17::34, 17::34].flatten().tolist()
    assert centres == [*range(1, count + 1), *[0] * (rows * across - count)]
    # A border of one pixel around each keeps them apart.
    assert (pixels[::34] == 0).all()
    assert (pixels[:, ::34] == 0).all()


@pytest.mark.parametrize(
    ("side", "shown"), [(8, 32), (9, 36), (14, 28), (16, 32), (28, 28), (32, 32), (64, 64), (178, 178)]
)
def test_small_images_are_enlarged_by_a_whole_factor(side: int, shown: int) -> None:
    assert pictures.grid(numbered(1, height=side, width=side)).size == (shown + 2, shown + 2)


def test_colours_and_sides_stay_where_they_are() -> None:
    image = torch.zeros(1, 3, 32, 48)
    image[:, 0, :, :24] = 1.0
    image[:, 2, :, 24:] = 0.5
    picture = pictures.grid(image)
    assert (picture.mode, picture.size) == ("RGB", (50, 34))
    assert picture.getpixel((5, 5)) == (255, 0, 0)
    assert picture.getpixel((40, 5)) == (0, 0, 128)


def test_values_beyond_the_range_are_cut_off() -> None:
    image = torch.tensor([-0.5, 1.5, math.inf]).view(3, 1, 1, 1).expand(3, 1, 32, 32)
    assert np.asarray(pictures.grid(image, columns=3))[17, 17::34].tolist() == [0, 255, 255]


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    picture = pictures.grid(numbered(1))
    pictures.save(picture, tmp_path / "grid.picture")
    with Image.open(tmp_path / "grid.picture") as written:
        assert written.format == "PNG"
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/no/grid.png: No such file or directory"):
        pictures.save(picture, tmp_path / "no" / "grid.png")
