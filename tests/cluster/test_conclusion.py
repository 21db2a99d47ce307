"""What an attempt at a search comes to, by the states of its trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygen.cluster.driver import conclude
from raygen.errors import JobFailedError, ProcessLostError
from raygen.plan import Plan
from raygen.runs import Run, Status
from raygen.spec import TuneSpec

FINISHED = Status("finished")
LOST = Status("failed", "The actor died because its node died.", cause="lost")
NOT_FINITE = Status("failed", "the ae loss is not finite at step 3", cause="non-finite loss")


def search(storage: Path, *statuses: Status) -> Run:
    spec = TuneSpec.search_over("ae", "ae", {"search.trials": len(statuses)})
    plan = Plan(concurrent=1, workers=1, gpus_per_worker=0, cpus_per_worker=1)
    run = Run.create(storage, "tune", spec, plan, "min")
    for number, status in enumerate(statuses, start=1):
        run.new_trial(number, {}, spec).set_status(status.state, status.reason, status.cause)
    return run


def test_a_search_that_lost_a_trial_is_not_finished_and_goes_on_with_that_one(tmp_path: Path) -> None:
    run = search(tmp_path, FINISHED, LOST, NOT_FINITE)
    with pytest.raises(ProcessLostError, match="1 of 3 trials lost, the last one because: The actor died"):
        conclude(run)
    assert run.status().state != "finished"
    run.reopen(only=ProcessLostError.cause)
    assert [trial.status().state for trial in run.trials()] == ["finished", "interrupted", "failed"]


def test_trials_that_fail_by_themselves_do_not_keep_a_search_from_being_finished(tmp_path: Path) -> None:
    run = search(tmp_path, NOT_FINITE, FINISHED)
    conclude(run)
    assert run.status().state == "finished"


def test_a_search_without_any_result_has_failed(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="every trial failed, the last one because: the ae loss") as caught:
        conclude(search(tmp_path, NOT_FINITE, NOT_FINITE))
    assert caught.value.cause == "non-finite loss"
