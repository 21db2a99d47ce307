"""How a job changes, within a transaction: its row, its attempts, and the event that tells of the change."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.errors import JobChangedError, JobError
from raygen.queue import database, usage
from raygen.queue.job import ACTIVE, ENDED, TRANSITIONS, Job, JobState
from raygen.queue.rows import to_job
from raygen.queue.schema import attempts, events, jobs


def requeue(connection: Connection, job: Job, reason: str) -> Job:
    """Queue an ended job again, as if nothing had been lost before."""
    nothing: dict[str, Any] = {"losses": 0, "restarts": 0, "ran_s": 0.0}
    fresh = {**nothing, "cancelled_at": None, "ended_at": None, "not_before": 0.0, "held_at": None}
    return move(connection, job, JobState.QUEUED, reason=reason, also=fresh)


def begin_attempt(connection: Connection, job: Job, dispatcher: int) -> Job:
    """Give a waiting job to a dispatcher, which is to start its next attempt."""
    number = job.attempt + 1
    begun = move(
        connection,
        job,
        JobState.STARTING,
        reason=f"attempt {number}",
        also={
            "attempt": number,
            "owner": dispatcher,
            "not_before": 0.0,
            "places": None,
            "pending": 0,
            "unplaced_since": None,
            "started_at": database.now(connection),
        },
    )
    values = {
        "job": job.id,
        "number": number,
        "submission_id": begun.submission_id,
        "started_at": begun.started_at,
        "outcome": "",
    }
    connection.execute(attempts.insert().values(values))
    return begun


def move(connection: Connection, job: Job, to: JobState, *, reason: str, also: dict[str, Any] | None = None) -> Job:
    """Change a job from exactly what the caller saw; the attempt that this ends is closed.

    Raises JobChangedError if somebody has changed the job since.
    """
    assert to in TRANSITIONS[job.state], f"{job.state} → {to}"
    values: dict[str, Any] = {"state": to, "reason": reason, **(also or {})}
    now = database.now(connection)
    if to is JobState.RUNNING:
        values["started_at"] = now
    if to not in ACTIVE:
        values |= {"owner": None, "places": None, "pending": 0, "started_at": None}
        values.setdefault("ran_s", job.ran_s + job.runs_s(now))
    if to in ENDED:
        values["ended_at"] = now
    row = connection.execute(as_seen(job).values(values).returning(jobs)).one_or_none()
    if row is None:
        raise JobChangedError(f"{job.name} is no longer {job.state} in attempt {job.attempt}")
    if job.state in ACTIVE and to not in ACTIVE:
        current = (attempts.c.job == job.id) & (attempts.c.number == job.attempt)
        outcome = f"{to}: {reason}" if reason else str(to)
        connection.execute(attempts.update().where(current).values(ended_at=now, outcome=outcome))
        usage.charge(connection, job)
    record(connection, job.id, job.state, to, reason)
    return to_job(row)


def note(connection: Connection, job: Job, reason: str) -> None:
    """Say why a job is in its state, from exactly what the caller saw; raises JobChangedError if it was changed."""
    if connection.execute(as_seen(job).values(reason=reason)).rowcount == 0:
        raise JobChangedError(f"{job.name} is no longer {job.state} in attempt {job.attempt}")
    record(connection, job.id, job.state, job.state, reason)


def as_seen(job: Job) -> sa.Update:
    """An update of the job, as long as it is what the caller saw."""
    same_owner = jobs.c.owner.is_(None) if job.owner is None else jobs.c.owner == job.owner
    return jobs.update().where(
        jobs.c.id == job.id, jobs.c.state == job.state, jobs.c.attempt == job.attempt, same_owner
    )


def locked(connection: Connection, job_id: int) -> Job:
    """The job as it is now, kept from others until the transaction ends; raises JobError if it was removed."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise JobError("the job was removed meanwhile")
    return to_job(row)


def record(connection: Connection, job_id: int, before: JobState | None, after: JobState, reason: str) -> None:
    """Write down an event."""
    values = {
        "job": job_id,
        "at": database.now(connection),
        "from_state": before,
        "to_state": after,
        "reason": reason,
    }
    connection.execute(events.insert().values(values))
