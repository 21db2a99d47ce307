"""What the rows of the queue's tables stand for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from raygen.queue.job import Attempt, Event, Job, JobState, RegisteredDispatcher


def to_job(row: Row[Any]) -> Job:
    """The job that a whole row of `jobs` is."""
    return Job(**{**row._mapping, "state": JobState(row.state), "places": row.places or {}})


def to_attempt(row: Row[Any]) -> Attempt:
    """The attempt that a whole row of `attempts` is."""
    return Attempt(**_without(row, "job"))


def to_event(row: Row[Any]) -> Event:
    """The event that a whole row of `events` is."""
    return Event(
        at=row.at,
        from_state=JobState(row.from_state) if row.from_state else None,
        to_state=JobState(row.to_state),
        reason=row.reason,
    )


def to_dispatcher(row: Row[Any], *, is_alive: bool) -> RegisteredDispatcher:
    """The dispatcher that a whole row of `dispatchers` is."""
    return RegisteredDispatcher(**{**_without(row, "lease_until"), "away": row.away or {}}, is_alive=is_alive)


def _without(row: Row[Any], name: str) -> dict[str, Any]:
    return {column: value for column, value in row._mapping.items() if column != name}
