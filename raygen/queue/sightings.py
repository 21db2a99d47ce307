"""What a dispatcher sees of its cluster and of the attempts that it looks after, written down."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.capacity import Capacity
from raygen.errors import JobChangedError
from raygen.queue import database, transitions, usage
from raygen.queue.job import ACTIVE, Job, Placement
from raygen.queue.schema import clusters, jobs


def saw(connection: Connection, cluster: str, capacity: Capacity) -> None:
    """A cluster answers, and has or has lost these nodes."""
    values = {
        "nodes": [vars(node) for node in capacity.nodes],
        "lost_nodes": [vars(node) for node in capacity.lost],
        "unreachable_since": None,
        "problem": "",
    }
    connection.execute(clusters.update().where(clusters.c.name == cluster).values(values))


def lost_sight(connection: Connection, cluster: str, problem: str, since: float | None) -> None:
    """A cluster does not answer, and has not since then; None: since now."""
    values = {"unreachable_since": since or database.now(connection), "problem": problem}
    connection.execute(clusters.update().where(clusters.c.name == cluster).values(values))


def saw_placed(connection: Connection, job: Job, placement: Placement) -> None:
    """The processes of a job's current attempt are there; while none has a node it does not run."""
    now = database.now(connection)
    values: dict[str, Any] = {"places": dict(placement.places), "pending": placement.pending}
    if placement.places:
        values["unplaced_since"] = None
        if job.unplaced_since is not None and job.started_at is not None:
            values["started_at"] = job.started_at + now - job.unplaced_since
    elif placement.pending and job.unplaced_since is None:
        values["unplaced_since"] = now
    connection.execute(transitions.as_seen(job).values(values))


def saw_over(connection: Connection, job: Job) -> None:
    """A job's current attempt is over for its cluster, and gives back its devices, whenever it can be judged.

    Raises JobChangedError if somebody has changed the job since.
    """
    ran_s = job.ran_s + job.runs_s(database.now(connection))
    values = {"places": None, "pending": 0, "unplaced_since": None, "started_at": None, "ran_s": ran_s}
    if connection.execute(transitions.as_seen(job).values(values)).rowcount == 0:
        raise JobChangedError(f"{job.name} is no longer {job.state} in attempt {job.attempt}")
    usage.charge(connection, job)


def saw_step(connection: Connection, dispatcher: int, by_s: float) -> None:
    """The database's clock was set by so many seconds: what a dispatcher looks after has run for as long as before."""
    own = sa.and_(jobs.c.owner == dispatcher, jobs.c.state.in_(ACTIVE))
    times = {name: jobs.c[name] + by_s for name in ("started_at", "unplaced_since")}
    connection.execute(jobs.update().where(own).values(times))
