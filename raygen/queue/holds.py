"""Jobs and clusters that people hold: nothing of them is started until they are released. What runs goes on."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.errors import JobError
from raygen.queue import changes, database, transitions
from raygen.queue.job import Job
from raygen.queue.schema import clusters


def hold(connection: Connection, job: Job) -> Job:
    """Keep a waiting job from being started; raises JobError if it does not wait."""
    return _set(connection, job, "hold", database.now(connection), "held on request")


def release(connection: Connection, job: Job) -> Job:
    """Let a held job start again; raises JobError if it has ended."""
    return _set(connection, job, "release", None, "released on request")


def _set(connection: Connection, job: Job, change: changes.Change, held_at: float | None, reason: str) -> Job:
    current = transitions.locked(connection, job.id)
    changes.check(current, change)
    if (current.held_at is None) == (held_at is None):
        return current
    connection.execute(transitions.as_seen(current).values(held_at=held_at))
    transitions.record(connection, job.id, current.state, current.state, reason)
    return transitions.locked(connection, job.id)


def hold_cluster(connection: Connection, name: str, user: str, *, force: bool) -> None:
    """Have no job of a cluster started, those among them that are still to come; `user` asks for that.

    Raises JobError if another user holds it, unless forced: then this one does.
    """
    if _holder(connection, name, user, force=force) != user:
        values = {"held_at": database.now(connection), "held_by": user}
        connection.execute(clusters.update().where(clusters.c.name == name).values(values))


def release_cluster(connection: Connection, name: str, user: str, *, force: bool) -> None:
    """Let the jobs of a cluster start again, but for those that are held themselves; `user` asks for that.

    Raises JobError if another user holds it, unless forced.
    """
    if _holder(connection, name, user, force=force) is not None:
        connection.execute(clusters.update().where(clusters.c.name == name).values(held_at=None, held_by=None))


def _holder(connection: Connection, name: str, user: str, *, force: bool) -> str | None:
    """Who holds a cluster until this transaction ends, if anybody; raises JobError if not `user`, unless forced."""
    holder = connection.scalar(sa.select(clusters.c.held_by).where(clusters.c.name == name).with_for_update())
    if holder not in (None, user) and not force:
        raise JobError(f"{holder} holds the queue; --force reaches others' holds, too")
    return holder
