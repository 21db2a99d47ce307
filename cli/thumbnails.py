"""Images in the terminal: two pixels in each character, the upper half block's colour above its background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

from cli import console
from raygen.runs import Run

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_SIDE = 16
"""Characters that one thumbnail is wide: four go into 80 columns."""

ROWS = 2


def show(run: Run) -> None:
    """Draw the first images of the best checkpoint's picture; nothing where standard output shows no colours."""
    screen = console.data()
    if not screen.is_terminal or screen.color_system is None:
        return
    from PIL import Image

    path, shape = run.best_picture()
    with Image.open(path) as picture:
        thumbnails = shrunk(picture.convert("RGB"), shape, screen.width)
    screen.print(half_blocks(thumbnails), no_wrap=True, overflow="crop")


def shrunk(picture: Image, shape: Sequence[int], columns: int) -> Image:
    """The upper left images of a grid, as many as fit `columns` characters, each at most 16 pixels wide.

    `shape` is that of one image, (C, H, W); the result is of an even height.
    """
    from PIL import Image

    from raygen import pictures

    cell_width, cell_height = pictures.cell(shape)
    width = min(LARGEST_SIDE, shape[2], columns)
    height = 2 * max(1, round(width * shape[1] / shape[2] / 2))
    across = min(picture.width // cell_width, (columns + 1) // (width + 1))
    down = min(picture.height // cell_height, ROWS)
    sheet = Image.new("RGB", (across * (width + 1) - 1, down * (height + 2) - 2))
    for row in range(down):
        for column in range(across):
            left, top = column * cell_width, row * cell_height
            image = picture.crop((left + 1, top + 1, left + cell_width - 1, top + cell_height - 1))
            small = image.resize((width, height), Image.Resampling.BOX)
            sheet.paste(small, (column * (width + 1), row * (height + 2)))
    return sheet


def half_blocks(picture: Image) -> Text:
    """An RGB picture of even height as lines of half blocks, a character for each column of two pixels."""
    lines = []
    for top in range(0, picture.height, 2):
        line = Text()
        for left in range(picture.width):
            upper, lower = (Color.from_rgb(*_pixel(picture, left, top + below)) for below in (0, 1))
            line.append("▀", Style(color=upper, bgcolor=lower))
        lines.append(line)
    return Text("\n").join(lines)


def _pixel(picture: Image, left: int, top: int) -> tuple[int, int, int]:
    red, green, blue = picture.getpixel((left, top))  # type: ignore[misc]
    return red, green, blue
