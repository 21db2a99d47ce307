"""One picture of a run: its trials' curves, the objective against each varied parameter, and against the cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygen import plotting
from raygen.errors import RunError
from raygen.metrics import PREFIX
from raygen.record.documents import ENDED
from raygen.record.view import Trial, TrialRecord, View
from raygen.search_insight import best_trials, span
from raygen.space import Choice, Distribution, IntUniform
from raygen.spec import SearchOptions, TuneSpec
from raygen.stopping import rungs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST_COLOUR, BAND_COLOUR, RUNG_COLOUR = "#d9480f", "#ffe8cc", "#868e96"
COLOURS = {"finished": "#1c7ed6", "stopped": "#868e96", "failed": "#e03131", "running": "#0ca678"}
OTHER_COLOUR = "#868e96"


def save(view: View, path: Path) -> None:
    """Write the picture as a PNG, whole or not at all; raises RunError if no epoch has a value yet, or no file."""
    plotting.save(_figure(_Drawing(view)), path)


class _Drawing:
    """What all panels share: a run's configurations, and their values of the objective."""

    def __init__(self, view: View) -> None:
        spec = view.spec()
        self.view = view
        self.epochs = spec.training.epochs
        self.search = spec.search if isinstance(spec, TuneSpec) else None
        self.label = f"{view.objective.removeprefix(PREFIX)} {'↑' if view.direction == 'max' else '↓'}"
        self.trials = view.configurations
        records = [trial.record(view.objective) for trial in self.trials]
        sign = -1 if view.direction == "max" else 1
        valued = [record for record in records if record.objective is not None]
        self.valued = sorted(valued, key=lambda record: sign * (record.objective or 0.0))
        self.without_value = [record for record in records if record.objective is None and record.state in ENDED]
        self.states = {record.number: record.state for record in records}
        if not valued:
            raise RunError(f"{view.name} has no epoch with a value of {view.objective} to draw yet")

    def curve(self, trial: Trial) -> list[tuple[int, float]]:
        """The epochs of a trial, each with its value, if that is finite."""
        values = [(each.epoch, each.metrics[self.view.objective]) for each in trial.epochs]
        return [(epoch, value) for epoch, value in values if math.isfinite(value)]

    def colour(self, record: TrialRecord) -> str:
        """The best one's own, else that of its state."""
        return BEST_COLOUR if record is self.valued[0] else COLOURS.get(record.state, OTHER_COLOUR)

    def limit(self, axes: Axes, values: Sequence[float]) -> tuple[float, float]:
        """Let all but the worst values of the objective fill the height; returns the lowest and highest in sight."""
        return plotting.limit(axes, values, self.view.direction)


def _figure(drawing: _Drawing) -> Figure:
    parameters = drawing.search.space.parameters if drawing.search else {}
    figure, panels = plotting.panels(len(parameters) + 2)
    axes = iter(panels)
    count = len(drawing.trials)
    figure.suptitle(f"{drawing.view.name}: {count} trial{'' if count == 1 else 's'}")
    _draw_curves(next(axes), drawing)
    _draw_cost(next(axes), drawing)
    for name, distribution in parameters.items():
        _draw_parameter(next(axes), drawing, name, distribution)
    return figure


def _draw_curves(axes: Axes, drawing: _Drawing) -> None:
    """The objective by epoch, a line for each trial, the best one's over all others."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    labels = {f"trial {drawing.valued[0].number}, the best": BEST_COLOUR}
    seen = []
    for record in reversed(drawing.valued):
        points = drawing.curve(drawing.view.trial(record.number))
        seen += [value for _, value in points]
        is_best = record is drawing.valued[0]
        width, alpha = (2.2, 1.0) if is_best else (1.0, 0.7)
        axes.plot(*zip(*points, strict=True), ".-", color=drawing.colour(record), linewidth=width, alpha=alpha)
        if not is_best:
            labels.setdefault(record.state, drawing.colour(record))
    drawing.limit(axes, seen)
    handles = [Line2D([], [], color=colour, label=label) for label, colour in labels.items()]
    lines = [
        axes.axvline(epoch, color=RUNG_COLOUR, linestyle=":", linewidth=1, zorder=0, label=label)
        for epoch, label in (_rungs(drawing.search, drawing.epochs) if drawing.search else ())
    ]
    handles += lines[:1]
    axes.legend(handles=handles, fontsize=8, framealpha=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=drawing.label)


def _rungs(search: SearchOptions, epochs: int) -> list[tuple[int, str]]:
    """The epochs to mark, each with a label: all rungs, but of a median's, which are all epochs, the first."""
    found = rungs(search, epochs)
    return [(found[0], "median from here")] if search.scheduler == "median" else [(epoch, "rung") for epoch in found]


def _draw_cost(axes: Axes, drawing: _Drawing) -> None:
    """The best value so far against the epochs trained till then, had the trials been run one after another."""
    pick = max if drawing.view.direction == "max" else min
    costs: list[float] = []
    reached: list[float] = []
    first, trained = 0, 0
    for trial in drawing.trials:
        for epoch, value in drawing.curve(trial):
            reached.append(pick(value, reached[-1]) if reached else value)
            costs.append((trained + epoch) / drawing.epochs)
        first = first or len(reached)
        trained += max((each.epoch for each in trial.epochs), default=0)
    axes.step(costs, reached, where="post", color=BEST_COLOUR, linewidth=2.2)
    drawing.limit(axes, reached[first - 1 :] if reached[first - 1] != reached[-1] else reached)
    axes.set_xlim(left=0)
    axes.set(xlabel=f"cost in trainings of {drawing.epochs} epochs", ylabel=f"best so far, {drawing.label}")


def _draw_parameter(axes: Axes, drawing: _Drawing, name: str, distribution: Distribution) -> None:
    """Each trial's best value against one parameter, what the best quarter spans behind it in colour.

    What lies beyond the axis is drawn hollow at its edge, and a trial that failed without a value as a cross there.
    """
    records = drawing.valued
    best = span(distribution, [record.parameters[name] for record in best_trials(records)])
    position = _prepare_axis(axes, distribution, best)
    low, high = drawing.limit(axes, [record.objective for record in records if record.objective is not None])
    worst = low if drawing.view.direction == "max" else high
    for record in reversed(records):
        value, colour = record.objective or 0.0, drawing.colour(record)
        inside = min(max(value, low), high)
        filled = colour if inside == value else "none"
        axes.scatter(position(record.parameters[name]), inside, facecolors=filled, edgecolors=colour, s=22, alpha=0.8)
    for record in drawing.without_value:
        axes.scatter(position(record.parameters[name]), worst, color=drawing.colour(record), marker="x", s=26)
    axes.set(xlabel=name, ylabel=drawing.label)


def _prepare_axis(axes: Axes, distribution: Distribution, best: tuple[Any, ...]) -> Callable[[Any], float]:
    """Scale, ticks and coloured span of a parameter's axis; returns what gives a value its position."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if isinstance(distribution, Choice):
        choices = list(distribution.choice)
        for choice in best:
            axes.axvspan(choices.index(choice) - 0.4, choices.index(choice) + 0.4, color=BAND_COLOUR, zorder=0)
        axes.set_xticks(range(len(choices)), [_text(choice) for choice in choices])
        axes.set_xlim(-0.6, len(choices) - 0.4)
        return lambda value: choices.index(tuple(value) if isinstance(value, list) else value)
    low, high = distribution.bounds
    axes.axvspan(*best, color=BAND_COLOUR, zorder=0)
    if distribution.is_log and high > plotting.WIDE_RATIO * low:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = (high / low) ** 0.03
        axes.set_xlim(low / margin, high * margin)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=isinstance(distribution, IntUniform)))
        margin = 0.03 * (high - low)
        axes.set_xlim(low - margin, high + margin)
    return lambda value: value


def _text(choice: Any) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)
