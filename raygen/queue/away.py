"""What is wrong with the storages of a cluster's jobs, as its dispatchers have written it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from raygen.queue import leases
from raygen.queue.claims import Condition
from raygen.queue.job import ACTIVE, EVERYBODY, WAITING, Job
from raygen.queue.schema import dispatchers, jobs


def runs(connection: Connection, dispatcher: int) -> dict[str, tuple[str, ...]]:
    """The storages of the jobs that a dispatcher looks after or starts, each with the names of its oldest and newest.

    Empty if it was taken for dead.
    """
    own = connection.execute(sa.select(dispatchers).where(dispatchers.c.id == dispatcher)).one_or_none()
    if own is None:
        return {}
    unfinished = sa.and_(jobs.c.cluster == own.cluster, jobs.c.state.in_((*WAITING, *ACTIVE)))
    if own.user != EVERYBODY:
        unfinished &= jobs.c.user == own.user
    ends = sa.select(sa.func.min(jobs.c.id).label("oldest"), sa.func.max(jobs.c.id).label("newest"))
    by_storage = ends.where(unfinished).group_by(jobs.c.storage).subquery()
    either = sa.or_(jobs.c.id == by_storage.c.oldest, jobs.c.id == by_storage.c.newest)
    found: dict[str, tuple[str, ...]] = {}
    for storage, name in connection.execute(sa.select(jobs.c.storage, jobs.c.name).where(either)):
        found[storage] = (*found.get(storage, ()), name)
    return found


def runs_in(connection: Connection, storage: str) -> tuple[str, ...]:
    """The names of the oldest and the newest of the jobs in a storage, which have their runs there."""
    names = sa.select(jobs.c.name).where(jobs.c.storage == storage).limit(1)
    found = (connection.scalar(names.order_by(order)) for order in (jobs.c.id, jobs.c.id.desc()))
    return tuple(name for name in found if name is not None)


def write(connection: Connection, dispatcher: int, problems: Mapping[str, str]) -> None:
    """Write down what is wrong with storages, by their addresses, to one dispatcher."""
    own = dispatchers.update().where(dispatchers.c.id == dispatcher)
    connection.execute(own.values(away=dict(problems) or None))


class Away:
    """The storages of a cluster's jobs that none of the dispatchers can use which start a job."""

    def __init__(self, connection: Connection, cluster: str, now: float) -> None:
        alive = [each for each in leases.registered(connection, now) if each.is_alive and each.cluster == cluster]
        self._by_user = {
            user: _to_all([each.away for each in alive if each.user in (EVERYBODY, user)])
            for user in {EVERYBODY, *(each.user for each in alive)}
        }

    def problem(self, job: Job) -> str | None:
        """What is wrong with a job's storage, as one of them says it."""
        return self._by_user.get(job.user, self._by_user[EVERYBODY]).get(job.storage)

    def excluded_from(self, condition: Condition) -> Condition:
        """That a condition holds of a job whose storage is none of them."""
        return lambda table: condition(table) & self._is_not_away(table)

    def _is_not_away(self, table: sa.FromClause) -> sa.ColumnElement[bool]:
        concerned = [
            table.c.storage.in_(problems)
            & (table.c.user == user if user != EVERYBODY else table.c.user.not_in(self._by_user))
            for user, problems in self._by_user.items()
            if problems
        ]
        return sa.not_(sa.or_(*concerned)) if concerned else sa.true()


def _to_all(seen: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What is wrong to all of them, in the words of the first."""
    if not seen:
        return {}
    first, *others = seen
    return {storage: problem for storage, problem in first.items() if all(storage in each for each in others)}
