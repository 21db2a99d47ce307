"""What becomes of a job, by what is known of its attempt."""

from __future__ import annotations

import errno
import itertools
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raygen.queue.client import Submitted
from raygen.queue.job import Job, JobState
from raygen.queue.verdict import Facts, judge, unreadable
from raygen.record.documents import Status
from raygen.record.reading import WITHOUT_A_WORD
from raygen.storage import reason

RUNNING = Status(state="running")
CUT_OFF = Status(state="interrupted", reason=WITHOUT_A_WORD)
STOPPED = Status(state="interrupted", reason="stopped on request; what was trained is kept")
LOST = Status(state="failed", reason="a node was lost", cause="lost")
WAITING = Status(state="waiting")
FAILED = Status(state="failed", reason="as it had to")
FINISHED = Status(state="finished")
ENDED = Submitted("ended")


def job(**values: Any) -> Job:
    defaults: dict[str, Any] = {
        **dict.fromkeys(("name", "storage", "kind", "model", "data", "objective", "user", "cluster", "token"), "job"),
        **{
            "processes": 1,
            "fewest_processes": 1,
            "gpus_each": 0.0,
            "cpus_each": 1,
            "retries": 2,
            "id": 1,
            "attempt": 1,
        },
        **{"state": JobState.RUNNING, "reason": "", "losses": 0, "restarts": 0, "owner": 1, "submitted_at": 0.0},
        **dict.fromkeys(("ended_at", "best_value", "cancelled_at", "held_at", "started_at", "unplaced_since")),
        **{"not_before": 0.0, "ran_s": 0.0, "places": {}, "pending": 0},
    }
    return Job(**{**defaults, **values})


@pytest.mark.parametrize("status", [RUNNING, CUT_OFF, LOST])
def test_cluster_restarts_count_after_the_first_while_a_job_ran(status: Status) -> None:
    first = judge(job(), Facts(status=status, submitted=None))
    assert (first.to, first.losses, first.restarts) == (JobState.RECOVERING, 0, 1)
    second = judge(job(restarts=1), Facts(status=status, submitted=None))
    assert (second.to, second.losses, second.restarts) == (JobState.RECOVERING, 1, 2)
    assert second.reason == "the cluster was restarted 2 times while it ran"
    last = judge(job(restarts=3, losses=2), Facts(status=status, submitted=None))
    assert last.to is JobState.FAILED
    assert last.reason == "lost 3 times, the last time because the cluster was restarted 4 times while it ran"


@pytest.mark.parametrize("status", [WAITING, STOPPED])
def test_what_did_not_run_as_the_cluster_was_restarted_is_no_reason_for_it(status: Status) -> None:
    after = judge(job(restarts=7), Facts(status=status, submitted=None))
    assert (after.to, after.losses, after.restarts) == (JobState.RECOVERING, 0, 7)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_a_storage_had_no_room_for_costs_no_attempt(number: int) -> None:
    why = reason.of_folder(OSError(number, os.strerror(number)))
    told = f"1 of 3 trials lost, the last one because: cannot write /runs/x: {why}"
    status = Status(state="failed", reason=told, cause="lost")
    for before in (0, 2):
        after = judge(job(losses=before, retries=2), Facts(status=status, submitted=ENDED))
        assert (after.to, after.losses, after.reason) == (JobState.RECOVERING, before, told)


def test_a_process_that_was_killed_for_memory_is_named_and_counts() -> None:
    told = "a process was killed, as happens if memory runs out: Job entrypoint command failed with exit code -9"
    lost = judge(job(losses=2), Facts(status=CUT_OFF, submitted=Submitted("ended", told)))
    assert (lost.to, lost.losses) == (JobState.FAILED, 3)
    assert lost.reason == f"lost 3 times, the last time because its processes were ended ({told})"


@pytest.mark.parametrize(
    ("limit_s", "told"),
    [(7200, "2 h"), (5400, "1 h 30 min"), (90, "1 min 30 s"), (0.2, "0 s")],
)
def test_a_job_that_has_run_for_as_long_as_it_may_has_ended(limit_s: float, told: str) -> None:
    over = judge(job(time_limit_s=limit_s), Facts(status=STOPPED, submitted=ENDED, ran_s=limit_s))
    assert over.to is JobState.CANCELLED
    assert over.reason == f"reached its time limit of {told}"


@pytest.mark.parametrize("status", [STOPPED, CUT_OFF, LOST, WAITING])
def test_before_its_time_limit_an_attempt_is_followed_by_another(status: Status) -> None:
    assert judge(job(time_limit_s=100), Facts(status=status, submitted=ENDED, ran_s=99)).to is JobState.RECOVERING


@pytest.mark.parametrize("ran_s", [0.0, 1000.0])
def test_what_ended_by_itself_is_judged_by_that_and_not_by_its_time_limit(ran_s: float) -> None:
    limited = job(time_limit_s=100)
    assert judge(limited, Facts(status=FINISHED, submitted=ENDED, ran_s=ran_s)).to is JobState.SUCCEEDED
    failed = judge(limited, Facts(status=FAILED, submitted=ENDED, ran_s=ran_s))
    assert (failed.to, failed.reason) == (JobState.FAILED, "as it had to")


def test_a_run_that_nobody_can_read_fails_its_job_unless_that_was_cancelled() -> None:
    assert unreadable(job(), "it is damaged").to is JobState.FAILED
    cancelled = unreadable(job(cancelled_at=1.0), "it is damaged")
    assert (cancelled.to, cancelled.reason) == (
        JobState.CANCELLED,
        "on request; its run cannot be read: it is damaged",
    )


STATUSES = [RUNNING, CUT_OFF, STOPPED, LOST, WAITING, FAILED, FINISHED]
facts = st.builds(
    Facts,
    status=st.sampled_from(STATUSES),
    submitted=st.sampled_from([None, ENDED, Submitted("ended", "the node died")]),
    ran_s=st.floats(0, 200),
    unplaced_s=st.none() | st.floats(0, 100),
    storage_was_away=st.booleans(),
)


@given(facts, st.booleans(), st.integers(0, 3), st.none() | st.floats(1, 100))
def test_every_verdict_is_one_that_may_follow(
    seen: Facts, is_cancelled: bool, retries: int, limit_s: float | None
) -> None:
    judged = job(retries=retries, cancelled_at=1.0 if is_cancelled else None, time_limit_s=limit_s)
    verdict = judge(judged, seen)
    assert (verdict.to is JobState.SUCCEEDED) == (seen.status.state == "finished")
    assert 0 <= verdict.losses - judged.losses <= 1
    assert 0 <= verdict.restarts - judged.restarts <= 1
    assert verdict.reason or verdict.to is JobState.SUCCEEDED
    if is_cancelled:
        assert verdict.to in (JobState.SUCCEEDED, JobState.CANCELLED)
    if verdict.to is JobState.RECOVERING:
        assert verdict.wait_s > 0
        assert limit_s is None or seen.ran_s < limit_s


@given(st.integers(0, 5), st.lists(facts.filter(lambda each: not each.storage_was_away), min_size=60, max_size=60))
def test_no_job_that_ran_each_time_is_lost_for_ever(retries: int, seen: list[Facts]) -> None:
    """Of attempts that ran and were lost, `retries` and one restart more are the most."""
    judged = job(retries=retries)
    ran = [each for each in seen if each.status in (RUNNING, CUT_OFF, LOST) and each.unplaced_s is None]
    for number, each in zip(itertools.count(1), ran, strict=False):
        verdict = judge(judged, each)
        if verdict.to is not JobState.RECOVERING:
            assert number <= retries + 2
            return
        judged = job(retries=retries, losses=verdict.losses, restarts=verdict.restarts)
    assert len(ran) <= retries + 1
