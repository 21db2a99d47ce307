"""Jobs by what people call them, or by what they have in common.

By the beginning of a name one is looked at, by its whole name it is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from raygen.errors import JobError
from raygen.queue import database
from raygen.queue.job import Job, JobState
from raygen.queue.rows import to_job
from raygen.queue.schema import jobs

MOST_NAMED = 3
"""Jobs that one line names."""


def named(connection: Connection, name: str) -> Job | None:
    """The job of exactly that name; None if there is none."""
    row = connection.execute(sa.select(jobs).where(jobs.c.name == name)).one_or_none()
    return None if row is None else to_job(row)


def found(connection: Connection, name: str) -> Job:
    """The job of that name, or whose name alone begins so; raises JobError if there is none or several."""
    job = named(connection, name)
    if job is not None:
        return job
    rows = _beginning(connection, name)
    if len(rows) == 1:
        return to_job(rows[0])
    if rows:
        raise JobError(f"{name!r} begins the names of several jobs: {_enumerated(rows)}")
    raise JobError(f"there is no job {name!r}; `raygen ls` lists those there are")


def unnamed(connection: Connection, name: str) -> JobError:
    """That there is no job of exactly that name, and what to type instead."""
    rows = _beginning(connection, name)
    hint = (
        f"type the whole name of a job to change: {_enumerated(rows)}" if rows else "`raygen ls` lists those there are"
    )
    return JobError(f"there is no job {name!r}; {hint}")


def alike(
    connection: Connection,
    *,
    states: Collection[JobState],
    user: str | None,
    ended_s_ago: float | None,
    limit: int | None,
) -> list[Job]:
    """Jobs in one of these states, of a user, or that ended so long ago, as far as this is asked; the newest first."""
    query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if user is not None:
        query = query.where(jobs.c.user == user)
    if ended_s_ago is not None:
        query = query.where(jobs.c.ended_at <= database.now(connection) - ended_s_ago)
    return [to_job(row) for row in connection.execute(query)]


def _beginning(connection: Connection, name: str) -> Sequence[Row[Any]]:
    """The first few jobs whose names begin so."""
    if not name:
        return []
    # LIKE would take upper and lower case for the same on SQLite alone.
    beginning = sa.func.substr(jobs.c.name, 1, len(name)) == name
    return connection.execute(sa.select(jobs).where(beginning).order_by(jobs.c.id).limit(MOST_NAMED + 1)).all()


def _enumerated(rows: Sequence[Row[Any]]) -> str:
    return ", ".join(row.name for row in rows[:MOST_NAMED]) + (", …" if len(rows) > MOST_NAMED else "")
