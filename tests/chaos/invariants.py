"""What holds of a queue whatever happens to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from raygen.queue.job import ACTIVE, ENDED, TRANSITIONS, WAITING, Job, JobState
from raygen.queue.schema import attempts, events
from raygen.queue.store import Store


@dataclass
class Fate:
    """What a job is to come to, by what happened to it since it was queued last."""

    retries: int
    losses: int = 0
    """How many attempts, at most, it has lost through no fault of its own."""
    may_fail: bool = False
    is_broken: bool = False
    """Whether its record was damaged for good."""
    is_unwanted: bool = False
    requeued: int = 0

    def begin_again(self) -> None:
        """Be queued again on request."""
        self.losses, self.may_fail, self.is_unwanted = 0, self.is_broken, False
        self.requeued += 1

    @property
    def ends(self) -> set[JobState]:
        """The states in which it may end."""
        allowed = {JobState.SUCCEEDED}
        if self.is_unwanted:
            allowed.add(JobState.CANCELLED)
        if self.may_fail or self.losses > self.retries:
            allowed.add(JobState.FAILED)
        return allowed


def check_queue(queue: Store, *, cpus: int) -> list[Job]:
    """Check all that can be told of a queue at any moment; returns its jobs."""
    jobs = list(queue.list())
    reasons = queue.reasons(jobs)
    for job in jobs:
        _check_job(job)
        # One that somebody has just started or ended meanwhile is not asked for.
        if job.state in WAITING and job.id not in reasons:
            assert queue.get(job.id).state not in WAITING, f"{job.name} waits, and nobody knows why"
    used = sum(job.cpus for job in jobs if job.state in ACTIVE and not job.is_over)
    assert used <= cpus, f"jobs hold {used} of {cpus} CPU cores"
    return jobs


def check_history(queue: Store) -> None:
    """Check that every job's story has no gaps: its events, and its attempts."""
    # In one transaction, so that all of it is of the same moment.
    with queue.engine.connect() as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        names = {"id": sa.column("id"), "name": sa.column("name")}
        jobs = connection.execute(
            sa.select(*names.values(), sa.column("state"), sa.column("attempt")).select_from(sa.table("jobs"))
        ).all()
        told = _by_job(connection.execute(sa.select(events).order_by(events.c.id)).all())
        tried = _by_job(connection.execute(sa.select(attempts).order_by(attempts.c.number)).all())
    for job in jobs:
        _check_events(job, told.get(job.id, []))
        _check_attempts(job, tried.get(job.id, []))


def check_ended_once(queue: Store, job: Job, *, requeued: int) -> None:
    """Check that a job has ended, once for each time that it was queued."""
    assert job.state in ENDED, f"{job.name} is {job.state}: {job.reason or queue.reasons([job])}"
    assert job.owner is None
    ends = Counter(
        event.to_state for event in queue.events(job) if event.to_state in ENDED and event.from_state not in ENDED
    )
    assert sum(ends.values()) == requeued + 1, f"{job.name} was queued {requeued + 1} times and ended {ends}"


def _check_job(job: Job) -> None:
    assert isinstance(job.state, JobState)
    where = f"{job.name} is {job.state}"
    assert (job.ended_at is not None) == (job.state in ENDED), f"{where}, and ended at {job.ended_at}"
    assert job.owner is None or job.state in ACTIVE, f"{where}, and looked after by {job.owner}"
    assert job.attempt > 0 or job.state in (JobState.QUEUED, JobState.CANCELLED), f"{where} without an attempt"
    assert job.losses <= job.retries or job.state is JobState.FAILED, f"{where} after {job.losses} losses"


def _check_events(job: Any, told: list[Any]) -> None:
    assert told, f"{job.name} has no events"
    before = None
    for event in told:
        assert event.from_state == before, f"{job.name}: {before}, then {event.from_state} → {event.to_state}"
        after = JobState(event.to_state)
        if before is not None and after != before:
            assert after in TRANSITIONS[JobState(before)], f"{job.name}: {before} → {after}"
        before = after
    assert before == job.state, f"{job.name} is {job.state}, its events end with {before}"


def _check_attempts(job: Any, tried: list[Any]) -> None:
    numbers = [each.number for each in tried]
    assert numbers == list(range(1, job.attempt + 1)), f"{job.name}: attempts {numbers}, the current is {job.attempt}"
    for each in tried[:-1]:
        assert each.ended_at is not None, f"{job.name}: attempt {each.number} has not ended, and others have begun"
    if tried:
        has_ended = tried[-1].ended_at is not None
        assert has_ended == (JobState(job.state) not in ACTIVE), f"{job.name} is {job.state}: {tried[-1]}"


def _by_job(rows: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(row.job, []).append(row)
    return found
