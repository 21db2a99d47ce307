"""Trials are in the order of their numbers, also past 999, whose keys sort as text before those of smaller ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygen.collection import collect_best
from raygen.record import ranking
from raygen.record.summary import summary
from raygen.record.trial import TrialWriter, newest_progress
from raygen.report import Report
from raygen.spec import TuneSpec
from raygen.storage import Storage
from tests.searches import begin, create, run_of

NUMBERS = st.one_of(st.integers(1, 20), st.integers(95, 110), st.integers(990, 1010), st.integers(9990, 10_010))


@given(
    earlier=st.sets(NUMBERS, max_size=6),
    later=st.sets(NUMBERS, max_size=6),
    model=st.sampled_from(["ae", "vae"]),
    value=st.sampled_from([None, 0.5]),
)
@settings(max_examples=10)
def test_trials_of_equal_values_are_in_the_order_of_their_numbers(
    earlier: set[int], later: set[int], model: str, value: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Those that an attempt began with, and those that it made."""
    storage = Storage(tmp_path_factory.mktemp("runs"))
    spec = TuneSpec.search_over(model, model, {"search.trials": 12})
    run = create(storage, spec, name="run")
    objective = run.look().objective
    epoch = {"epoch": 1, "step": 3, "metrics": {objective: value}, "train_s": 1.0, "is_best": True}
    for numbers in (earlier, later - earlier):
        attempt = begin(run)
        for number in numbers:
            attempt.new_trial(number, {}, spec)
            attempt.change_trial(
                number,
                lambda progress: progress.model_validate(
                    {**progress.model_dump(), "state": "finished", "epochs": [] if value is None else [epoch]}
                ),
            )
    view = run_of(attempt).look()
    expected = sorted(earlier | later)
    assert [trial.number for trial in view.trials] == expected
    assert [record.number for record in ranking.records(view)] == expected
    assert [trial.number for trial in ranking.best_trials(view)] == expected
    assert [record.number for record in Report(view, "here").records] == expected
    assert [record["number"] for record in summary(view)["trials"]] == expected
    assert collect_best(attempt) is None, "without checkpoints there is nothing to collect"


def test_starts_of_trial_1000_are_not_those_of_trial_100(place: Storage) -> None:
    attempt = begin(create(place, TuneSpec.search_over("ae", "ae", {}), name="run"))
    spec = attempt.look().spec()
    for number in (100, 1000):
        attempt.new_trial(number, {}, spec)
    for _ in range(3):
        TrialWriter.begin(attempt.place(1000)).close()
    TrialWriter.begin(attempt.place(100)).close()
    attempt.set_trial_state(100, "failed", "here")
    assert [(trial.number, trial.state) for trial in attempt.look().trials] == [(100, "failed"), (1000, "waiting")]
    assert newest_progress(place, attempt.place(1000)).state == "waiting"
