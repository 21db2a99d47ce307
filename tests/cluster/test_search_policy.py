"""The adapters through which Ray Tune asks a search what comes next, on records of searches that went on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raygen.cluster.search import (
    PromotionSearcher,
    RecordSearcher,
    ReplicateSearcher,
    RungScheduler,
    RunSearcher,
)
from raygen.record.attempt import Attempt
from raygen.record.documents import STOPPED_EARLY
from raygen.spec import TuneSpec
from tests.searches import PLAN, add_trial, begin, run_of, search

SPACE = '"model.latent_dim" = { int = [2, 64] }\n'
RATES = [-float(number) for number in range(8)]
"""Values of eight trials that are on record, the best first."""


def spec_of(attempt: Attempt) -> TuneSpec:
    spec = attempt.look().spec()
    assert isinstance(spec, TuneSpec)
    return spec


def adapters(attempt: Attempt) -> tuple[RunSearcher, RungScheduler]:
    spec = spec_of(attempt)
    searcher = RunSearcher(attempt, spec, PLAN)
    return searcher, RungScheduler(searcher, spec)


def started(searcher: RecordSearcher, name: str) -> int:
    """The number of the trial that Tune starts under this name."""
    suggested = searcher.suggest(name)
    assert isinstance(suggested, dict)
    number: int = suggested["place"]["trial"]
    return number


def verdicts(
    attempt: Attempt, searcher: RecordSearcher, scheduler: RungScheduler, name: str, values: Sequence[float]
) -> list[str]:
    """What the scheduler says after each epoch that a trial runs from where it is, as Tune tells of it."""
    found, view = [], attempt.look()
    done = len(view.trial(searcher.number(name)).epochs)
    for epoch, value in enumerate(values, start=done + 1):
        result = {"epoch": epoch, view.objective: value}
        tune_trial: Any = SimpleNamespace(trial_id=name)
        found.append(scheduler.on_trial_result(None, tune_trial, result))
        if found[-1] == GO_ON:
            searcher.on_trial_result(name, result)
    return found


@pytest.fixture
def resumed(tmp_path: Path) -> Attempt:
    """A search of ten trials, of which eight ended before its process was gone; rungs after epochs 1 and 4."""
    attempt = search(tmp_path / "storage", SPACE, epochs=10, trials=10)
    for number, value in enumerate(RATES):
        add_trial(attempt, {"model.latent_dim": 20 + number}, [value] * 10)
    return begin(run_of(attempt))


GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_new_trials_are_judged_by_what_earlier_ones_showed_at_the_same_epoch(resumed: Attempt) -> None:
    searcher, scheduler = adapters(resumed)
    assert (started(searcher, "good"), started(searcher, "bad")) == (9, 10)
    assert verdicts(resumed, searcher, scheduler, "good", [0.5] * 5) == [GO_ON] * 5
    assert verdicts(resumed, searcher, scheduler, "bad", [-6.5]) == [STOP]
    assert searcher.suggest("more") == Searcher.FINISHED


def test_the_defaults_run_to_their_end_however_they_start(tmp_path: Path) -> None:
    attempt = search(tmp_path / "storage", SPACE, epochs=10, trials=10)
    searcher, scheduler = adapters(attempt)
    assert started(searcher, "defaults") == 1
    assert attempt.look().trial(1).parameters == {"model.latent_dim": 20}
    for name, value in enumerate(RATES):
        started(searcher, str(name))
        verdicts(attempt, searcher, scheduler, str(name), [value])
    assert verdicts(attempt, searcher, scheduler, "defaults", [-99.0] * 9) == [GO_ON] * 9


def test_a_trial_that_was_extended_is_not_stopped_at_its_first_new_epoch(tmp_path: Path) -> None:
    """Of 30 epochs the twelfth ends at a rung."""
    before = search(tmp_path / "storage", SPACE, epochs=11, trials=10, grace_fraction=0.1)
    for number, value in enumerate(RATES):
        add_trial(before, {"model.latent_dim": 20 + number}, [value] * 11)
    run_of(before).request(reopens=False, spec=spec_of(before).with_settings({"training.epochs": 30}))
    attempt = begin(run_of(before))
    searcher, scheduler = adapters(attempt)
    names = {started(searcher, str(index)): str(index) for index in range(8)}
    assert set(names) == set(range(1, 9)), "what was extended comes before new trials"
    told = [verdicts(attempt, searcher, scheduler, names[number], [RATES[number - 1]]) for number in sorted(names)]
    assert told == [[GO_ON]] * 8
    started(searcher, "fresh")
    assert verdicts(attempt, searcher, scheduler, "fresh", [-6.5] * 3) == [GO_ON, GO_ON, STOP]


def test_unfinished_trials_go_on_before_new_ones_begin(resumed: Attempt) -> None:
    resumed.set_trial_state(3, "interrupted")
    searcher, _ = adapters(resumed)
    assert [started(searcher, name) for name in "abc"] == [3, 9, 10]


def test_a_trial_that_never_had_a_value_tells_the_search_so(resumed: Attempt) -> None:
    searcher, _ = adapters(resumed)
    number = started(searcher, "diverged")
    resumed.set_trial_state(number, "failed", "the loss is not finite")
    searcher.on_trial_complete("diverged", {"done": True})
    assert started(searcher, "next") == number + 1


def test_epochs_that_a_lost_actor_shows_again_take_the_place_of_those_before(resumed: Attempt) -> None:
    searcher, scheduler = adapters(resumed)
    number = started(searcher, "twice")
    for values in ([-1.0, -2.0, -3.0], [-1.5, -2.5]):  # the second time from the start
        verdicts(resumed, searcher, scheduler, "twice", values)
    assert searcher.curves[number] == [-1.5, -2.5]


@pytest.fixture
def all_ended(tmp_path: Path) -> Attempt:
    """A search with rungs after epochs 1, 3 and 9; trials 2, 4 and 6 were stopped early, 3 and 5 for their health."""
    attempt = search(tmp_path / "storage", SPACE, epochs=20, trials=6)
    curves = [[-9.0 + number for number in range(20)], [-8.5], [-1.0], [-9.5], [-2.0], [-8.0]]
    for number, curve in enumerate(curves):
        add_trial(attempt, {"model.latent_dim": 20 + number}, curve, state="finished" if number == 0 else "stopped")
    for number in (2, 4, 6):
        attempt.set_trial_state(number, "stopped", STOPPED_EARLY)
    for number in (3, 5):
        attempt.set_trial_state(number, "stopped", "mode collapse", "mode collapse")
    return attempt


def test_stopped_trials_that_were_ahead_of_the_best_go_on_until_they_fall_behind(all_ended: Attempt) -> None:
    spec = spec_of(all_ended)
    searcher = PromotionSearcher(all_ended, spec, PLAN)
    scheduler = RungScheduler(searcher, spec)
    assert [trial.number for trial in searcher.promotions()] == [6, 2], "neither the ill ones nor one that was behind"
    assert started(searcher, "promising") == 6
    assert verdicts(all_ended, searcher, scheduler, "promising", [-7.5, -7.1]) == [GO_ON, STOP]
    assert started(searcher, "next") == 2, "each goes on once"
    assert verdicts(all_ended, searcher, scheduler, "next", [-7.0] + [20.0] * 18) == [GO_ON] * 19
    assert searcher.suggest("more") == Searcher.FINISHED


def test_one_that_was_promoted_and_stopped_again_is_not_promoted_by_a_later_attempt(all_ended: Attempt) -> None:
    all_ended.promote(6)
    all_ended.set_trial_state(6, "stopped", STOPPED_EARLY)
    later = begin(run_of(all_ended))
    searcher = PromotionSearcher(later, spec_of(later), PLAN)
    assert [trial.number for trial in searcher.promotions()] == [2]


def test_a_promoted_trial_whose_process_was_lost_goes_on_as_one(all_ended: Attempt) -> None:
    all_ended.promote(6)
    later = begin(run_of(all_ended))
    searcher, scheduler = adapters(later)
    assert started(searcher, "again") == 6
    assert verdicts(later, searcher, scheduler, "again", [-7.5, -6.5]) == [GO_ON, GO_ON]
    assert searcher.suggest("more") == Searcher.FINISHED


def test_replicates_that_were_begun_go_on_and_none_is_made_twice(tmp_path: Path) -> None:
    attempt = search(tmp_path / "storage", SPACE, epochs=3, trials=3, keep_best=2, replicates=2)
    for number, value in enumerate([-1.0, -3.0, -2.0]):
        add_trial(attempt, {"model.latent_dim": 20 + number}, [value] * 3)
    searcher = ReplicateSearcher(attempt, PLAN)
    assert [started(searcher, name) for name in "abcd"] == [4, 5, 6, 7]
    assert searcher.suggest("more") == Searcher.FINISHED
    first = attempt.look()
    assert [trial.replicate_of for trial in first.trials] == [None] * 3 + [1, 1, 3, 3]
    assert [trial.document.spec["seed"] - first.trials[0].document.spec["seed"] for trial in first.trials[3:]] == [
        *(1, 2),
        *(1, 2),
    ]
    attempt.set_trial_state(4, "finished")
    again = ReplicateSearcher(begin(run_of(attempt)), PLAN)
    assert [started(again, name) for name in "abc"] == [5, 6, 7]
    assert again.suggest("more") == Searcher.FINISHED
