"""Trainings of several configurations side by side, epoch by epoch: how good, how fast, how much by chance.

It reads what the runs wrote down while they trained, and judges nothing anew.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from raygen import metrics
from raygen.errors import Ailment, SpecError
from raygen.metrics import Direction
from raygen.record import ranking
from raygen.record.documents import EpochRecord
from raygen.record.view import Trial, View

Against = Literal["epoch", "time", "images"]
GRID_POINTS = 200
"""Places at which a mean over seeds is taken."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training: its seed, its epochs as the record has them, and what ailed it, if something did."""

    seed: int
    batch_size: int
    epochs: Sequence[EpochRecord]
    ailment: Ailment | None

    def points(self, metric: str, against: Against) -> tuple[list[float], list[float]]:
        """The costs of the epochs at which a metric has a finite value, and these values.

        Costs are epochs, seconds of training, or images that the training has seen.
        """
        known = [line for line in self.epochs if math.isfinite(line.metrics.get(metric, math.nan))]
        return [self._cost(line, against) for line in known], [line.metrics[metric] for line in known]

    def _cost(self, line: EpochRecord, against: Against) -> float:
        costs = {"epoch": line.epoch, "time": line.train_s, "images": line.step * self.batch_size}
        return float(costs[against])


@dataclass(frozen=True, kw_only=True)
class Group:
    """All trainings of one configuration, which differ by their seeds alone."""

    name: str
    curves: Sequence[Curve]

    def of(self, metric: str, against: Against) -> list[tuple[list[float], list[float]]]:
        """The points of each of its curves that has some."""
        found = [curve.points(metric, against) for curve in self.curves]
        return [points for points in found if points[0]]

    def band(self, metric: str, against: Against) -> tuple[list[float], list[float], list[float]]:
        """Costs, mean over seeds and sample standard deviation there (0 for a single seed).

        A training that has ended keeps its last value, so that one that collapsed goes on counting as it was left.
        """
        found = self.of(metric, against)
        first, last = max(costs[0] for costs, _ in found), max(costs[-1] for costs, _ in found)
        grid = np.linspace(first, last, GRID_POINTS)
        values = np.stack([np.interp(grid, costs, shown) for costs, shown in found])
        spread = values.std(axis=0, ddof=1) if len(found) > 1 else np.zeros(GRID_POINTS)
        return grid.tolist(), values.mean(axis=0).tolist(), spread.tolist()


@dataclass(frozen=True, kw_only=True)
class Stability:
    """What one metric of a configuration came to over its seeds.

    `best` is the mean of the seeds' best values and `spread` their sample standard deviation; `reached` seeds came to
    the level, at the mean cost `cost`; `average` is the area under the curve over its length, between the costs that
    all configurations have; `collapsed` seeds were stopped for an ailment.
    """

    name: str
    seeds: int
    best: float
    spread: float | None
    reached: int
    cost: float | None
    average: float
    collapsed: int

    def as_json(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return asdict(self)


def groups(views: Iterable[View], against: Against) -> list[Group]:
    """The trainings of these runs by their configuration, in the runs' order; of a search its best one's.

    Each group is called as its family is, or as its first run is if several groups are of one family.
    """
    found: dict[str, list[Curve]] = {}
    names: dict[str, str] = {}
    families: dict[str, str] = {}
    for view in views:
        for trial in _trainings(view):
            spec = trial.spec()
            # What it was trained on cannot change a result, but how long it took.
            devices = spec.resources.model_dump_json() if against == "time" else ""
            key = f"{spec.configuration()} {devices}"
            ailment = trial.progress.cause
            curve = Curve(
                seed=spec.seed,
                batch_size=spec.training.batch_size,
                epochs=trial.epochs,
                ailment=ailment if ailment in get_args(Ailment) else None,  # type: ignore[arg-type]
            )
            found.setdefault(key, []).append(curve)
            names.setdefault(key, view.name)
            families[key] = spec.model.name
    once = {family for family in families.values() if list(families.values()).count(family) == 1}
    return [
        Group(name=families[key] if families[key] in once else names[key], curves=curves)
        for key, curves in found.items()
    ]


def _trainings(view: View) -> list[Trial]:
    """A training's only trial; a search's best configuration, and it on fresh seeds."""
    best = next((record for record in ranking.records(view) if record.replicate_of is None), None)
    if best is None:
        return []
    original = view.trial(best.number)
    return [original, *view.replicates(original)]


def known_metrics(found: Sequence[Group], wanted: Sequence[str]) -> list[str]:
    """Those of the wanted metrics that some training wrote down; raises SpecError naming those there are if none."""
    told = {name for group in found for curve in group.curves for line in curve.epochs for name in line.metrics}
    known = [name for name in wanted if name in told]
    if known:
        return known
    there = ", ".join(metrics.short(name) for name in sorted(told) if name in metrics.names()) or "no metric"
    raise SpecError(
        f"--metrics: no training wrote {', '.join(map(metrics.short, wanted))} down, epoch by epoch; there is: {there}"
    )


def level(found: Sequence[Group], metric: str) -> float:
    """A level that at least half of the seeds of every configuration reach: the worst of the groups' median bests."""
    direction = metrics.find(metric).direction
    medians = [statistics.median(_bests(group, metric, direction)) for group in _with(found, metric)]
    return min(medians) if direction == "max" else max(medians)


def stability(found: Sequence[Group], metric: str, against: Against, level: float) -> list[Stability]:
    """Each configuration that has the metric, the best first."""
    direction = metrics.find(metric).direction
    able = _with(found, metric)
    first = max(costs[0] for group in able for costs, _ in group.of(metric, against))
    last = min(max(costs[-1] for costs, _ in group.of(metric, against)) for group in able)
    told = [_stability(group, metric, against, level, direction, (first, max(first, last))) for group in able]
    return sorted(told, key=lambda each: each.best, reverse=direction == "max")


def _stability(
    group: Group, metric: str, against: Against, level: float, direction: Direction, span: tuple[float, float]
) -> Stability:
    found = group.of(metric, against)
    bests = _bests(group, metric, direction)
    costs = [
        next((cost for cost, value in zip(*points, strict=True) if _is_at(value, level, direction)), None)
        for points in found
    ]
    reached = [cost for cost in costs if cost is not None]
    grid = np.linspace(*span, GRID_POINTS)
    return Stability(
        name=group.name,
        seeds=len(found),
        best=statistics.fmean(bests),
        spread=statistics.stdev(bests) if len(bests) > 1 else None,
        reached=len(reached),
        cost=statistics.fmean(reached) if reached else None,
        average=float(np.mean([np.interp(grid, *points) for points in found])),
        collapsed=sum(curve.ailment is not None for curve in group.curves),
    )


def _is_at(value: float, level: float, direction: Direction) -> bool:
    return value >= level if direction == "max" else value <= level


def _bests(group: Group, metric: str, direction: Direction) -> list[float]:
    best = max if direction == "max" else min
    return [best(values) for _, values in group.of(metric, "epoch")]


def _with(found: Sequence[Group], metric: str) -> list[Group]:
    return [group for group in found if group.of(metric, "epoch")]
