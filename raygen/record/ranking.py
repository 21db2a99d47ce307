"""Which of a run's trials are better, and what is left to do: pure functions over what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raygen.metrics import reported
from raygen.record.documents import ENDED
from raygen.record.view import Trial, TrialRecord, View, spread


def records(view: View) -> list[TrialRecord]:
    """What is known of every trial: the best models in their order, then the better first, without a value last."""
    places = {facts.get("configuration"): place for place, facts in enumerate(view.best)}
    found = [trial.record(view.objective) for trial in view.trials]
    found = [replace(record, **_over_fresh_seeds(record, found)) for record in found]
    return sorted(found, key=lambda record: (places.get(record.number, len(places)), rank(view, record)))


def rank(view: View, record: TrialRecord) -> tuple[bool, float]:
    """What sorts the better trials before the worse, and those without a value last."""
    sign = -1 if view.direction == "max" else 1
    return record.objective is None, sign * (record.objective or 0.0)


def best_value(view: View) -> float | None:
    """The best value of the objective so far."""
    values = [record.objective for record in sorted(records(view), key=lambda record: rank(view, record))]
    return values[0] if values else None


def best_trials(view: View) -> list[Trial]:
    """Its trials, the one that the best model is of first, then the better before the worse."""
    first = [view.best[0]["trial"]] if view.best else []
    return [view.trial(number) for number in dict.fromkeys(first + [record.number for record in records(view)])]


def number_of_trials(view: View) -> int:
    """The trials that were asked for, those that run a configuration again among them."""
    trials: int = view.search["trials"]
    replicates: int = view.search["replicates"] * min(view.search["keep_best"], trials)
    return trials + replicates


def lacking_replicates(view: View) -> list[tuple[Trial, int]]:
    """The best configurations' trials, each with a seed that it has not been run on and is to be."""
    fresh = view.search["replicates"]
    if fresh == 0:
        return []
    # By what epochs showed, as that is known of all of them: of an extended search some were judged further.
    sign = -1 if view.direction == "max" else 1
    values = [(trial.record(view.objective).epoch_objective, trial) for trial in view.configurations]
    valued = sorted(
        ((sign * value, trial) for value, trial in values if value is not None),
        key=lambda pair: (pair[0], pair[1].number),
    )
    return [
        (trial, trial.document.spec["seed"] + number)
        for _, trial in valued[: view.search["keep_best"]]
        for number in range(len(view.replicates(trial)) + 1, fresh + 1)
    ]


def is_complete(view: View) -> bool:
    """Whether every trial that was asked for has ended."""
    ended = all(trial.state in ENDED for trial in view.trials)
    return len(view.configurations) >= view.search["trials"] and ended and not lacking_replicates(view)


def over_seeds(view: View, original: Trial) -> dict[str, dict[str, Any]]:
    """Mean, spread and number of what a configuration's fresh seeds reached, by the name of the value."""
    fresh = [trial.record(view.objective) for trial in view.replicates(original)]
    return {
        view.objective: spread([record.objective for record in fresh]),
        reported(view.objective, "test"): spread([record.test for record in fresh]),
    }


def _over_fresh_seeds(record: TrialRecord, found: Sequence[TrialRecord]) -> dict[str, Any]:
    """Mean and spread of the trials that run this one's configuration again, as a TrialRecord has them."""
    return spread([other.objective for other in found if other.replicate_of == record.number])
