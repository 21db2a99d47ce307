"""What a search showed of its parameters: how much each one mattered, and where the best trials lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raygen.errors import RECURRING, InputError, RunError
from raygen.record.documents import ENDED
from raygen.record.view import Trial, TrialRecord, View
from raygen.space import Choice, Distribution
from raygen.spec import SearchOptions, TuneSpec

BEST_FRACTION = 1 / 4
"""Part of the trials, the best, whose values are a parameter's best range."""

FEWEST_TRIALS = 4
ROUGH_BELOW = 20
"""Trials below which importances change much from one search to another."""

GONE_WRONG = RECURRING - {InputError.cause}
"""Causes of a trial without a value that are its configuration's fault, and no accident."""


@dataclass(frozen=True, kw_only=True)
class ParameterInsight:
    """One parameter: its part of what made trials differ, 0 to 1, and its values in the best trials.

    `best` holds the lowest and the highest value of a range, or the choices among them in the space's order.
    """

    name: str
    importance: float
    distribution: Distribution
    best: tuple[Any, ...]

    @property
    def is_choice(self) -> bool:
        """Whether the space lists its values."""
        return isinstance(self.distribution, Choice)

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        best = "best_values" if self.is_choice else "best_range"
        return {"parameter": self.name, "importance": self.importance, best: list(self.best)}


@dataclass(frozen=True, kw_only=True)
class SearchInsight:
    """The parameters, the most important first; of how many trials, the best of them, and those that tell nothing."""

    parameters: tuple[ParameterInsight, ...]
    trials: int
    best_trials: int
    left_out: int

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON."""
        return {**vars(self), "parameters": [parameter.as_json() for parameter in self.parameters]}


def of_run(view: View) -> SearchInsight:
    """What a search's ended trials tell, replicates aside; those that diverged before they had a value are the worst.

    Raises RunError if the run is no search, too few trials have a value, or all have the same.
    """
    search = search_of(view)
    ended = [trial for trial in view.configurations if trial.state in ENDED]
    ranked = _ranked(view, ended)
    if len(ranked) < FEWEST_TRIALS:
        raise RunError(
            f"--why takes {FEWEST_TRIALS} ended trials or more, and {view.name} has {len(ranked)}; "
            f"`raygen tune --extend {view.name} --trials 16` adds some"
        )
    records, ranks = zip(*ranked, strict=True)
    if len(set(ranks)) == 1:
        raise RunError(f"--why: the ended trials of {view.name} are all alike in {view.objective}; there is no reason")
    # Optuna is slow to import, and not needed to draw a picture.
    from raygen import study

    importances = study.importances(search.space, [record.parameters for record in records], ranks)
    best = best_trials(records)
    found = [
        ParameterInsight(
            name=name,
            importance=importances[name],
            distribution=distribution,
            best=span(distribution, [record.parameters[name] for record in best]),
        )
        for name, distribution in search.space.parameters.items()
    ]
    return SearchInsight(
        parameters=tuple(sorted(found, key=lambda parameter: -parameter.importance)),
        trials=len(records),
        best_trials=len(best),
        left_out=len(ended) - len(records),
    )


def search_of(view: View) -> SearchOptions:
    """The search that a run is; raises RunError if it is a single training."""
    spec = view.spec()
    if not isinstance(spec, TuneSpec):
        raise RunError(f"{view.name} is one training, and --why tells of a search: name a run of `raygen tune`")
    return spec.search


def best_trials(records: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """The best quarter, two at least, of records in the order best first."""
    return records[: max(2, round(BEST_FRACTION * len(records)))]


def span(distribution: Distribution, values: Sequence[Any]) -> tuple[Any, ...]:
    """The lowest and the highest of a range's values, or the choices among them in the space's order."""
    if not isinstance(distribution, Choice):
        return min(values), max(values)
    # A list-valued choice is a tuple in the space, and a list in a record.
    taken = [tuple(value) if isinstance(value, list) else value for value in values]
    return tuple(value for value in distribution.choice if value in taken)


def _ranked(view: View, trials: Sequence[Trial]) -> list[tuple[TrialRecord, float]]:
    """The trials, the best first, each with its rank from 0; equal values have equal ranks.

    Without a value, one that diverged is the last, and others are left out. Ranks, as the value of one trial that went
    very wrong would leave no variance for the others.
    """
    sign = -1 if view.direction == "max" else 1
    scored = []
    for trial in trials:
        record = trial.record(view.objective)
        if record.objective is not None:
            scored.append((record, sign * record.objective))
        elif record.state == "finished" or trial.progress.cause in GONE_WRONG:
            scored.append((record, math.inf))
    scored.sort(key=lambda pair: pair[1])
    order = sorted({score for _, score in scored})
    return [(record, float(order.index(score))) for record, score in scored]
