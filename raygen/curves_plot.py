"""One picture of trainings side by side: a panel for each metric, a mean over seeds with its band for each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raygen import metrics, plotting
from raygen.training_curves import Against, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {"epoch": "epoch", "time": "seconds of training", "images": "images seen"}
SEEDS_ALPHA, BAND_ALPHA = 0.25, 0.15


def save(found: Sequence[Group], names: Sequence[str], against: Against, path: Path) -> None:
    """Write the picture as a PNG, whole or not at all; raises RunError if no file can be written."""
    figure, panels = plotting.panels(len(names))
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, found, name, against)
    plotting.save(figure, path)


def _draw(axes: Axes, found: Sequence[Group], name: str, against: Against) -> None:
    """Mean and standard deviation over the seeds of each group, each seed thinly behind them."""
    direction = metrics.find(name).direction
    seen: list[float] = []
    for place, group in enumerate(found):
        curves = group.of(name, against)
        if not curves:
            continue
        colour = f"C{place % 10}"
        for costs, values in curves:
            seen += values
            axes.plot(costs, values, color=colour, linewidth=0.8, alpha=SEEDS_ALPHA)
        costs, mean, spread = group.band(name, against)
        low, high = ([value + sign * width for value, width in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(costs, low, high, color=colour, alpha=BAND_ALPHA, linewidth=0)
        seeds = f", {len(curves)} seeds" if len(curves) > 1 else ""
        axes.plot(costs, mean, color=colour, linewidth=2, label=plotting.plain(group.name) + seeds)
    plotting.limit(axes, seen, direction)
    axes.legend(fontsize=8, framealpha=0.6)
    axes.set(xlabel=LABELS[against], ylabel=f"{metrics.short(name)} {'↑' if direction == 'max' else '↓'}")
