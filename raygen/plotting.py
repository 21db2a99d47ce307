"""What all pictures made of panels share: their size, their values' axis, and the bytes of the file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

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


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row after row."""
    # Without pyplot, which would look for a screen, and keep every figure.
    from matplotlib.figure import Figure

    rows, columns = math.ceil(count / COLUMNS), min(COLUMNS, count)
    size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
    figure = Figure(figsize=size, dpi=PIXELS_PER_INCH, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


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
