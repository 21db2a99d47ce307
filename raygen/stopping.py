"""Early stopping: which trials of a search are not worth the rest of their epochs.

Trials are compared at equal epochs, each by the best value that it has shown up to there, with every trial that has
come as far, in whichever attempt or extension of the search that was. Nothing is kept beside these curves.

What starts slowly may be the best in the end. So when a search has no new trials left, those of the stopped ones that
were ahead of its best trial at the same epoch are promoted: they go on, until they fall behind it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from raygen.spec import SearchOptions

MEDIAN_OF_AT_LEAST = 3
"""Trials that a median is taken of at least."""


class EarlyStopping:
    """What a search's options say about stopping trials early; `direction` is that of the objective."""

    def __init__(self, search: SearchOptions, *, epochs: int, direction: Literal["min", "max"]) -> None:
        self._search = search
        self._best = max if direction == "max" else min
        self.rungs = rungs(search, epochs)

    def should_stop(self, curve: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
        """Whether a trial should stop at the epoch that it has reached; a curve is the objective, epoch by epoch."""
        epoch = len(curve)
        if epoch not in self.rungs:
            return False
        own = self._best(curve)
        shown = [self._best(other[:epoch]) for other in others if len(other) >= epoch]
        better = sum(1 for value in shown if self._is_better(value, own))
        if self._search.scheduler == "median":
            return len(shown) >= MEDIAN_OF_AT_LEAST and self._is_better(statistics.median(shown), own)
        return better >= max(1, (len(shown) + 1) // self._search.reduction_factor)

    def should_stop_promoted(self, curve: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
        """Whether a promoted trial should stop at the epoch that it has reached: the best other was ahead of it."""
        epoch, shown = len(curve), [other for other in others if other]
        if epoch not in self.rungs or not shown:
            return False
        best = self._best(shown, key=self._best)
        return len(best) >= epoch and self._is_better(self._best(best[:epoch]), self._best(curve))

    def promotions(self, curves: Mapping[int, Sequence[float]], stopped: Collection[int]) -> list[int]:
        """The numbers of the stopped trials that deserve to go on: those that came furthest first, then by value."""
        shown = {number: curve for number, curve in curves.items() if curve}
        if not shown:
            return []
        best = self._best(shown.values(), key=self._best)
        values = {number: self._best(shown[number]) for number in stopped if number in shown}
        deserving = [
            number
            for number, value in values.items()
            if len(best) > len(shown[number]) and self._is_better(value, self._best(best[: len(shown[number])]))
        ]
        by_value = sorted(deserving, key=lambda number: values[number], reverse=self._best is max)
        return sorted(by_value, key=lambda number: -len(shown[number]))

    def _is_better(self, value: float, than: float) -> bool:
        return value != than and self._best(value, than) == value


def rungs(search: SearchOptions, epochs: int) -> list[int]:
    """The epochs at whose end a trial may be stopped, ascending.

    asha: the grace period times 1, η, η² … (Li et al. 2020, "A system for massively parallel hyperparameter tuning");
    median: every epoch from the grace period on (Golovin et al. 2017, "Google Vizier").
    """
    grace_epochs = math.ceil(search.grace_fraction * epochs)
    match search.scheduler:
        case "fifo":
            return []
        case "median":
            return list(range(grace_epochs, epochs))
        case "asha":
            found = []
            while grace_epochs < epochs:
                found.append(grace_epochs)
                grace_epochs *= search.reduction_factor
            return found
