"""What all pictures made of panels share: their size, their values' axis, and how they are written."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raygen import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
PANEL_INCHES = (4.6, 3.4)
PIXELS_PER_INCH = 120
WORST_FRACTION = 0.2
"""Part of the values, the worst, that may lie beyond an axis: the first epochs would flatten all that follow."""

WIDE_RATIO = 10
"""Ends of a range further apart than this stand on a logarithmic axis if what lies between them does so too."""


def panels(count: int, size_inches: tuple[float, float] = PANEL_INCHES) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of this size (width, height), row after row."""
    # Without pyplot, which would look for a screen, and keep every figure.
    from matplotlib.figure import Figure

    rows, columns = math.ceil(count / COLUMNS), min(COLUMNS, count)
    size = (columns * size_inches[0], rows * size_inches[1])
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file, whole or not at all; raises RunError if none can be written."""
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may have letters that no font here has
        figure.savefig(drawn, format="png")
    with files.whole(path) as partial:
        partial.write_bytes(drawn.getvalue())


def plain(text: str) -> str:
    """A text as it is, for titles and legends: a $ begins no formula, and nothing unprintable is drawn."""
    return files.printable(text).replace("$", r"\$")


def limit(axes: Axes, values: Sequence[float], direction: Literal["min", "max"]) -> tuple[float, float]:
    """Let all but the worst values fill the height; returns the lowest and the highest value in sight."""
    ordered = sorted(values, reverse=direction == "max")
    kept = ordered[: max(2, math.ceil((1 - WORST_FRACTION) * len(ordered)))]
    low, high = min(kept), max(kept)
    if low > 0 and high > WIDE_RATIO * low:
        axes.set_yscale("log")
        margin = (high / low) ** 0.06
        axes.set_ylim(low / margin, high * margin)
    elif high > low:
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    return low, high
