"""Which trials are better, what is left to do, and what a run came to."""

from __future__ import annotations

import json

import pytest

from raygen.record import ranking
from raygen.record.attempt import Attempt
from raygen.record.documents import PaceRecord, TrialState
from raygen.record.view import TrialRecord
from raygen.spec import TrainSpec, TuneSpec
from raygen.storage import Storage
from tests.searches import add_trial, begin, create, run_of


def attempt_at(folder: Storage, model: str = "ae") -> Attempt:
    return begin(create(folder, TrainSpec.create(model, {"training.epochs": 5}), name="run"))


def test_a_record_holds_the_best_epoch_and_the_last(folder: Storage) -> None:
    pace = PaceRecord(epoch=4, step=38, steps=50, train_s=3.8, images_per_s=1234.5)
    trial = add_trial(attempt_at(folder), {"optimizer.lr": 0.01}, [0.5, 0.2, 0.3], state="running", pace=pace)
    assert trial.record("val_mse") == TrialRecord(
        number=1,
        parameters={"optimizer.lr": 0.01},
        state="running",
        reason="",
        epoch=3,
        epochs=5,
        train_s=3.8,
        objective=0.2,
        epoch_objective=0.2,
        best_epoch=2,
        metrics={"val_mse": 0.2},
        images_per_s=1234.5,
        fraction=38 / 50,
    )


def test_a_record_of_a_trial_that_has_nothing_yet(folder: Storage) -> None:
    found = add_trial(attempt_at(folder), {}, [], state="waiting").record("val_mse")
    assert (found.objective, found.best_epoch, found.epoch, found.train_s, found.fraction) == (None, None, 0, 0, 0)


@pytest.mark.parametrize(("model", "order"), [("ae", [3, 1, 4, 2]), ("vae", [4, 1, 3, 2])])
def test_records_are_sorted_by_the_objective(model: str, order: list[int], folder: Storage) -> None:
    """val_mse is best at its lowest, val_elbo at its highest; a trial without a value comes last."""
    attempt = attempt_at(folder, model)
    for values in ([-3.0, 0.5, -3.0], [], [-40.0], [20.0]):  # its best epoch counts, not its last
        add_trial(attempt, {}, values)
    assert [record.number for record in run_of(attempt).records()] == order
    assert [trial.number for trial in ranking.best_trials(attempt.look())] == order
    assert ranking.best_value(attempt.look()) == {"ae": -40.0, "vae": 20.0}[model]


def test_zero_is_a_value(folder: Storage) -> None:
    attempt = attempt_at(folder)
    for values in ([0.5], [0.0], []):
        add_trial(attempt, {}, values)
    assert [record.number for record in run_of(attempt).records()] == [2, 1, 3]


def test_without_a_value_there_is_no_best(folder: Storage) -> None:
    attempt = attempt_at(folder)
    assert ranking.best_value(attempt.look()) is None
    add_trial(attempt, {}, [])
    assert ranking.best_value(attempt.look()) is None


@pytest.mark.parametrize(("state", "is_complete"), [("finished", True), ("failed", True), ("interrupted", False)])
def test_a_training_is_complete_once_it_has_ended(state: TrialState, is_complete: bool, folder: Storage) -> None:
    attempt = attempt_at(folder)
    assert not ranking.is_complete(attempt.look())
    add_trial(attempt, {}, [0.5], state=state)
    assert ranking.is_complete(attempt.look()) == is_complete


def test_a_search_is_complete_with_all_its_trials_and_replicates(folder: Storage) -> None:
    spec = TuneSpec.search_over("ae", "ae", {"search.trials": 2, "search.replicates": 1, "search.keep_best": 5})
    attempt = begin(create(folder, spec, name="run"))
    assert ranking.number_of_trials(attempt.look()) == 4, "no more than there are configurations are run again"
    for value in (0.5, 0.4):
        assert not ranking.is_complete(attempt.look())
        add_trial(attempt, {"optimizer.lr": value}, [value])
    assert not ranking.is_complete(attempt.look())
    attempt.add_replicates()
    assert not ranking.is_complete(attempt.look())
    for number in (3, 4):
        attempt.set_trial_state(number, "finished")
    assert ranking.is_complete(attempt.look())


def test_the_summary_is_what_the_record_says(folder: Storage) -> None:
    spec = TrainSpec.create("vae", {"data.source": "mnist"})
    attempt = begin(create(folder, spec, name="run"))
    add_trial(attempt, {}, [1.0])
    add_trial(attempt, {}, [2.0], state="failed")
    attempt.set_status("finished")
    summary = json.loads(json.dumps(run_of(attempt).summary()))
    assert (summary["run"], summary["model"], summary["data"]) == ("run", "vae", "mnist")
    assert (summary["kind"], summary["state"]) == ("train", "finished")
    assert [(trial["number"], trial["objective"]) for trial in summary["trials"]] == [(2, 2.0), (1, 1.0)]
    assert (summary["best"], summary["test"]) == ([], None)
