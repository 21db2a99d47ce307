"""What the policy decides about, as the tables tell it: a cluster, and the claims of its jobs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from raygen.capacity import ROUNDING, Capacity, Devices, LostNode, Node, OnDemand
from raygen.queue import leases, policy
from raygen.queue.job import ACTIVE, EVERYBODY, LONGEST_BACKOFF_S, Job, JobState
from raygen.queue.policy import Cluster
from raygen.queue.schema import clusters, jobs, waits
from raygen.queue.turns import Claim

CLAIMED = (
    *("id", "name", "user", "storage", "priority", "processes", "fewest_processes", "gpus_each", "cpus_each"),
    *("not_before", "time_limit_s", "ran_s"),
)
"""What of a job its claim is made of."""

OF_ACTIVE = ("state", "places", "pending", "started_at", "unplaced_since")
"""The same of one that holds devices alone; places are slow to read."""

Condition = Callable[[sa.FromClause], sa.ColumnElement[bool]]
"""What is asked of a job, by the table that it is looked for in."""


@dataclass(frozen=True)
class Line:
    """The first claims that wait, so many of each user; those behind are not looked at."""

    claims: Sequence[Claim]
    of_each: int

    def hides(self, job: Job) -> bool:
        """Whether a job that waits is not among them because too many of its user are before it."""
        own = [claim.id for claim in self.claims if claim.user == job.user]
        return len(own) == self.of_each and job.id not in own


def active(connection: Connection, cluster: str, now: float) -> list[Claim]:
    """The claims of all jobs that hold devices of a cluster at `now`, the database's time."""
    columns = (jobs.c[name] for name in (*CLAIMED, *OF_ACTIVE))
    holding = sa.and_(jobs.c.cluster == cluster, jobs.c.state.in_(ACTIVE), jobs.c.started_at.is_not(None))
    return [
        replace(
            _claim(row),
            active=True,
            places=row.places or {},
            pending=row.pending,
            started_at=_started_at(row, now),
        )
        for row in connection.execute(sa.select(*columns).where(holding))
    ]


def _started_at(row: Row[Any], now: float) -> float:
    """Since when an active job would have run for as long as it has; one that does not run yet starts now."""
    if row.state != JobState.RUNNING:
        return now
    return float(row.started_at if row.unplaced_since is None else row.started_at + now - row.unplaced_since)


def waiting(connection: Connection, cluster: str, condition: Condition) -> Line:
    """The claims of the first jobs of each user that wait and of which the condition holds."""
    users = _waiting_users(cluster)
    number = connection.scalar(sa.select(sa.func.count(users.c.user))) or 0
    of_each = policy.depth_of_each(number)

    def first(table: sa.FromClause, *columns: str) -> sa.Select[Any]:
        its = [table.c.cluster == cluster, table.c.user == users.c.user, waits(table), condition(table)]
        order = (table.c.priority.desc(), table.c.id)
        return sa.select(*(table.c[name] for name in columns)).where(*its).order_by(*order).limit(of_each)

    if connection.dialect.name == "sqlite":  # which has no LATERAL
        ids = first(jobs.alias(), "id").correlate(users).scalar_subquery()
        query = sa.select(*(jobs.c[name] for name in CLAIMED)).select_from(users).join(jobs, jobs.c.id.in_(ids))
    else:
        query = sa.select(first(jobs, *CLAIMED).correlate(users).lateral("first")).select_from(users)
    return Line([_claim(row) for row in connection.execute(query)], of_each)


def _waiting_users(cluster: str) -> sa.CTE:
    """Those who have jobs that wait, found by as many steps through the index."""
    own = sa.and_(jobs.c.cluster == cluster, waits(jobs))
    users = sa.select(sa.func.min(jobs.c.user).label("user")).where(own).cte("users", recursive=True)
    following = sa.select(sa.func.min(jobs.c.user)).where(own, jobs.c.user > users.c.user).scalar_subquery()
    return users.union_all(sa.select(following).where(users.c.user.is_not(None)))


def not_held(table: sa.FromClause) -> sa.ColumnElement[bool]:
    """That nobody asked that a job be not started."""
    return table.c.held_at.is_(None)


def startable(capacity: Capacity, now: float, *, users: Collection[str], among: Condition) -> Condition:
    """That a job could start at once on the empty cluster, by a dispatcher of one of the users."""

    def condition(table: sa.FromClause) -> sa.ColumnElement[bool]:
        # As in `Claim.waits_at`.
        is_due = sa.or_(table.c.not_before <= now, table.c.not_before > now + LONGEST_BACKOFF_S)
        could_start = sa.and_(among(table), is_due, _fits_some_node(capacity, table))
        return could_start if EVERYBODY in users else sa.and_(could_start, table.c.user.in_(users))

    return condition


def _claim(row: Row[Any]) -> Claim:
    return Claim(
        id=row.id,
        name=row.name,
        user=row.user,
        storage=row.storage,
        priority=row.priority,
        processes=row.processes,
        fewest=row.fewest_processes,
        each=Devices(row.gpus_each, row.cpus_each),
        active=False,
        not_before=row.not_before,
        limit_s=None if row.time_limit_s is None else row.time_limit_s - row.ran_s,
    )


def _fits_some_node(capacity: Capacity, table: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether a job could have the fewest processes that it can go on with, as far as a database can tell."""
    nodes = [
        sa.and_(table.c.gpus_each <= gpus + ROUNDING, table.c.cpus_each <= cpus)
        for gpus, cpus in {(node.gpus, node.cpus) for node in capacity.possible}
    ]
    return sa.and_(
        sa.or_(sa.false(), *nodes),
        table.c.fewest_processes * table.c.gpus_each <= capacity.gpus + ROUNDING,
        table.c.fewest_processes * table.c.cpus_each <= capacity.cpus,
    )


def cluster(connection: Connection, name: str, now: float) -> Cluster:
    """What is known of a cluster at `now`, the database's time; of one that the queue never heard of, nothing."""
    row = connection.execute(sa.select(clusters).where(clusters.c.name == name)).one_or_none()
    return Cluster(
        name=name,
        capacity=None if row is None or row.nodes is None else capacity_of(row),
        on_demand=None if row is None else _on_demand(row),
        unreachable_since=None if row is None else row.unreachable_since,
        problem="" if row is None else row.problem,
        users=leases.users(connection, name, now),
        held_at=None if row is None else row.held_at,
        held_by=None if row is None else row.held_by,
    )


def capacity_of(cluster: Row[Any]) -> Capacity:
    """The nodes of a cluster that a dispatcher has seen, by its row."""
    return Capacity(
        nodes=tuple(Node(**node) for node in cluster.nodes),
        lost=tuple(LostNode(**node) for node in cluster.lost_nodes),
        on_demand=_on_demand(cluster),
        where=place(cluster.name),
    )


def _on_demand(cluster: Row[Any]) -> OnDemand | None:
    return None if cluster.on_demand is None else OnDemand(**cluster.on_demand)


def place(cluster: str) -> str:
    """A cluster's name as people say it."""
    if "://" in cluster:
        return f"the cluster at {cluster}"
    host = cluster.removeprefix("local:")
    return "this machine" if host == socket.gethostname() else host
