"""Images in the terminal: two pixels in each character, the upper half block's colour above its background."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style

from cli import console
from raygen import film
from raygen.errors import RunError
from raygen.history import History

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.text import Text

LARGEST_SIDE = 16
"""Characters that one thumbnail is wide: four go into 80 columns."""

ROWS = 2


def show(found: History) -> None:
    """Draw images of the best model, then how they came about, if standard output shows colours.

    Raises RunError if there is neither a best model nor a picture of a training.
    """
    screen = console.data()
    if not screen.is_terminal or screen.color_system is None:
        return
    best = film.of_best(found.run)
    if best is not None:
        picture, shape = best
        _draw(shrunk(picture.convert("RGB"), shape, screen.width), screen)
    try:
        pictures = film.pictured(found.run)
    except RunError:
        if best is None:
            raise
    else:
        _show_progress(pictures, screen)


def _show_progress(found: film.Pictures, screen: console.Screen) -> None:
    """The same images after some of the epochs, a column for each: the first, the last, and what fits between."""
    epochs = spaced(found.epochs, (screen.width + 1) // (LARGEST_SIDE + 1))
    pictures = {epoch: picture for epoch in epochs if (picture := found.read(epoch))}
    if not pictures:
        return
    header = "".join(str(epoch).ljust(LARGEST_SIDE + 1) for epoch in pictures)
    for line in (f"trial {found.trial.number} after epoch", header):
        screen.print(line, highlight=False, no_wrap=True, overflow="crop")
    _draw(first_column(list(pictures.values())), screen)


def _draw(picture: Image, screen: console.Screen) -> None:
    screen.print(half_blocks(picture), no_wrap=True, overflow="crop")


def shrunk(picture: Image, shape: Sequence[int], columns: int) -> Image:
    """The upper left images of a grid, as many as fit `columns` characters, each at most 16 pixels wide.

    `shape` is that of one image, (C, H, W); the result is of an even height.
    """
    from raygen import pictures

    cell_width, cell_height = cell = pictures.cell(shape)
    width = min(LARGEST_SIDE, shape[2], columns)
    across = min(picture.width // cell_width, (columns + 1) // (width + 1))
    down = min(picture.height // cell_height, ROWS)
    return _tiled([[_cut(picture, cell, row, column) for column in range(across)] for row in range(down)], width)


def first_column(pictures: Sequence[Image]) -> Image:
    """The uppermost images on the left of each of some 8×8 grids, a column for each grid; of an even height."""
    from raygen.training.drawing import SIDE

    cell = pictures[0].width // SIDE, pictures[0].height // SIDE
    return _tiled(
        [[_cut(picture.convert("RGB"), cell, row, 0) for picture in pictures] for row in range(ROWS)], LARGEST_SIDE
    )


def spaced(epochs: Sequence[int], most: int) -> list[int]:
    """At most so many of the epochs at like distances in their list, the last always, the first if there is room."""
    if len(epochs) <= most:
        return list(epochs)
    step = (len(epochs) - 1) / max(most - 1, 1)
    return [epochs[-1 - round(step * place)] for place in reversed(range(max(most, 1)))]


def _cut(picture: Image, cell: tuple[int, int], row: int, column: int) -> Image:
    """One image of a grid, without its border."""
    width, height = cell
    left, top = column * width, row * height
    return picture.crop((left + 1, top + 1, left + width - 1, top + height - 1))


def _tiled(rows: Sequence[Sequence[Image]], width: int) -> Image:
    """RGB images of one size in rows, each shrunk to `width` pixels and an even height."""
    from PIL import Image

    height = 2 * max(1, round(width * rows[0][0].height / rows[0][0].width / 2))
    sheet = Image.new("RGB", (len(rows[0]) * (width + 1) - 1, len(rows) * (height + 2) - 2))
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            small = image.resize((width, height), Image.Resampling.BOX)
            sheet.paste(small, (across * (width + 1), down * (height + 2)))
    return sheet


def half_blocks(picture: Image) -> Text:
    """An RGB picture of even height as lines of half blocks, a character for each column of two pixels."""
    lines = []
    for top in range(0, picture.height, 2):
        colours = (
            [Color.from_rgb(*_pixel(picture, left, top + below)) for below in (0, 1)] for left in range(picture.width)
        )
        lines.append(console.text(*(("▀", Style(color=upper, bgcolor=lower)) for upper, lower in colours)))
    return console.lines(*lines)


def _pixel(picture: Image, left: int, top: int) -> tuple[int, int, int]:
    red, green, blue = picture.getpixel((left, top))  # type: ignore[misc]
    return red, green, blue
