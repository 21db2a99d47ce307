"""The adapters through which Ray Tune asks a search what comes next, on run folders of searches that went on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from raygen.cluster.search import PromotionSearcher, RunFolderSearcher, RungScheduler, RunSearcher
from raygen.runs import STOPPED_EARLY, Run
from raygen.spec import TuneSpec
from raygen.training.loop import Epoch
from tests.searches import add_trial, search

SPACE = '"model.latent_dim" = { int = [2, 64] }\n'
RATES = [-float(number) for number in range(8)]
"""Values of eight trials that are on record, the best first."""


def adapters(run: Run) -> tuple[RunSearcher, RungScheduler]:
    spec = run.spec()
    assert isinstance(spec, TuneSpec)
    searcher = RunSearcher(run, spec)
    return searcher, RungScheduler(run, spec, searcher)


def started(searcher: RunFolderSearcher, name: str) -> int:
    """The number of the trial that Tune starts under this name."""
    suggested = searcher.suggest(name)
    assert isinstance(suggested, dict)
    number: int = suggested["number"]
    return number


def verdicts(run: Run, scheduler: RungScheduler, name: str, number: int, values: Sequence[float]) -> list[str]:
    """What the scheduler says after each epoch that a trial runs from where it is."""
    found = []
    for value in values:
        epoch = len(run.trial(number).epochs()) + 1
        metrics = {run.objective: value}
        run.trial(number).record_epoch(Epoch(epoch=epoch, step=epoch, metrics=metrics, train_s=1.0, is_best=False))
        tune_trial: Any = SimpleNamespace(trial_id=name)
        found.append(scheduler.on_trial_result(None, tune_trial, {"epoch": epoch, run.objective: value}))
    return found


@pytest.fixture
def resumed(tmp_path: Path) -> Run:
    """A search of ten trials, of which eight ended before its process was gone; rungs after epochs 1 and 4."""
    run = search(tmp_path / "storage", SPACE, epochs=10, trials=10)
    for number, value in enumerate(RATES):
        add_trial(run, {"model.latent_dim": 20 + number}, [value] * 10)
    return run


GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_new_trials_are_judged_by_what_earlier_ones_showed_at_the_same_epoch(resumed: Run) -> None:
    searcher, scheduler = adapters(resumed)
    good, bad = started(searcher, "good"), started(searcher, "bad")
    assert (good, bad) == (9, 10)
    assert verdicts(resumed, scheduler, "good", good, [0.5] * 5) == [GO_ON] * 5
    assert verdicts(resumed, scheduler, "bad", bad, [-6.5]) == [STOP]
    assert searcher.suggest("more") == Searcher.FINISHED


def test_the_defaults_run_to_their_end_however_they_start(tmp_path: Path) -> None:
    run = search(tmp_path / "storage", SPACE, epochs=10, trials=10)
    searcher, scheduler = adapters(run)
    number = started(searcher, "defaults")
    assert run.trial(number).parameters == {"model.latent_dim": 20}
    for value in RATES:
        add_trial(run, {"model.latent_dim": 30}, [value] * 10)
    assert verdicts(run, scheduler, "defaults", number, [-99.0] * 9) == [GO_ON] * 9


def test_a_trial_that_was_extended_is_not_stopped_at_its_first_new_epoch(tmp_path: Path) -> None:
    """Of 30 epochs the twelfth ends at a rung."""
    run = search(tmp_path / "storage", SPACE, epochs=11, trials=10, grace_fraction=0.1)
    for number, value in enumerate(RATES):
        add_trial(run, {"model.latent_dim": 20 + number}, [value] * 11)
    run.extend(run.spec().with_settings({"training.epochs": 30}))
    searcher, scheduler = adapters(Run(run.folder))
    names = {started(searcher, str(index)): str(index) for index in range(8)}
    assert set(names) == set(range(1, 9)), "what was extended comes before new trials"
    best_first = sorted(names)
    told = {number: verdicts(run, scheduler, names[number], number, [RATES[number - 1]]) for number in best_first}
    assert told == {number: [GO_ON] for number in best_first}
    fresh = started(searcher, "fresh")
    assert verdicts(run, scheduler, "fresh", fresh, [-6.5] * 3) == [GO_ON, GO_ON, STOP]


def test_unfinished_trials_go_on_before_new_ones_begin(resumed: Run) -> None:
    resumed.trial(3).set_status("interrupted")
    searcher, _ = adapters(resumed)
    assert [started(searcher, name) for name in "abc"] == [3, 9, 10]


def test_a_trial_that_never_had_a_value_tells_the_search_so(resumed: Run) -> None:
    searcher, _ = adapters(resumed)
    number = started(searcher, "diverged")
    resumed.trial(number).set_status("failed", "the loss is not finite")
    searcher.on_trial_complete("diverged", {"done": True})
    assert started(searcher, "next") == number + 1


@pytest.fixture
def all_ended(tmp_path: Path) -> Run:
    """A search with rungs after epochs 1, 3 and 9; trials 2, 4 and 6 were stopped early, 3 and 5 for their health."""
    run = search(tmp_path / "storage", SPACE, epochs=20, trials=6)
    curves = [[-9.0 + number for number in range(20)], [-8.5], [-1.0], [-9.5], [-2.0], [-8.0]]
    for number, curve in enumerate(curves):
        add_trial(run, {"model.latent_dim": 20 + number}, curve, state="finished" if number == 0 else "stopped")
    for number in (2, 4, 6):
        run.trial(number).set_status("stopped", STOPPED_EARLY)
    for number in (3, 5):
        run.trial(number).set_status("stopped", "mode collapse", "mode collapse")
    return run


def test_stopped_trials_that_were_ahead_of_the_best_go_on_until_they_fall_behind(all_ended: Run) -> None:
    spec = all_ended.spec()
    assert isinstance(spec, TuneSpec)
    searcher = PromotionSearcher(all_ended, spec)
    scheduler = RungScheduler(all_ended, spec, searcher)
    assert [trial.number for trial in searcher.promotions()] == [6, 2], "neither the ill ones nor one that was behind"
    assert started(searcher, "promising") == 6
    assert verdicts(all_ended, scheduler, "promising", 6, [-7.5, -7.1]) == [GO_ON, STOP]
    all_ended.trial(6).set_status("stopped", STOPPED_EARLY)
    assert started(searcher, "next") == 2, "each goes on once"
    assert verdicts(all_ended, scheduler, "next", 2, [-7.0] + [20.0] * 18) == [GO_ON] * 19
    all_ended.trial(2).set_status("finished")
    assert searcher.suggest("more") == Searcher.FINISHED


def test_a_promoted_trial_whose_process_was_lost_goes_on_as_one(all_ended: Run) -> None:
    all_ended.trial(6).promote()
    searcher, scheduler = adapters(all_ended)
    assert started(searcher, "again") == 6
    assert verdicts(all_ended, scheduler, "again", 6, [-7.5, -6.5]) == [GO_ON, GO_ON]
    assert searcher.suggest("more") == Searcher.FINISHED
